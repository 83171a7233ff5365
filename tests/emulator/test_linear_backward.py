"""The kernel that makes dx and updates the weight, executed from its PTX, with the tiles that launches choose."""

import pytest
import torch

from lc_triton import launch
from lc_triton.core.fused import Penalty, Small, Update
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.optim import rules
from lc_triton.optim.rounding import join_master, random_bits, split_master
from tests.cases import assert_close
from tests.emulator.driver import Watch, emulated_gpu
from tests.emulator.machine import Options
from tests.emulator.traffic import SECTOR

pytestmark = [pytest.mark.compile, pytest.mark.slow]

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
ADAMW = rules.AdamW(0.01, 0.9, 0.99, 1e-4, 0.1, False, 3, torch.tensor(3.0))
MOMENTUM = rules.SGD(0.1, 0.9, 0.5, 0.01, False, True, False)
SGD = rules.SGD(0.1, 0.0, 0.0, 0.01, False, False, False)
NESTEROV = rules.SGD(0.1, 0.9, 0.0, 0.01, True, False, False)
NIGHTLY = {"marks": pytest.mark.nightly}


def update_of(rule, weight, states_dtype, more):
    """An update of a copy of the weight: of a bfloat16 one with its correction."""
    gen = torch.Generator().manual_seed(1)
    count = {"adamw": 2, "sgd": 0}.get(rule.name, 1)
    dtype = states_dtype or torch.promote_types(weight.dtype, F32)
    states = tuple(torch.rand(weight.shape, generator=gen).to(dtype) for _ in range(count))
    correction = None
    if weight.dtype == BF16:
        bits = random_bits(0, weight.numel(), 1, weight.device)
        correction = split_master(weight.float(), bits)[1]
    penalty = Penalty(0.1, 0.2, non_neg=True) if more else None
    added = torch.rand(weight.shape, generator=gen).to(weight.dtype) if more else None
    return Update(rule, weight.clone(), states, added, None, penalty, Small(correction))


@pytest.mark.parametrize(
    ("arch", "dtype", "weight_dtype", "precision", "sizes", "rule", "states", "more"),
    [
        (80, F32, F32, "ieee", (2, 40, 48, 20), SGD, None, False),
        (90, BF16, F32, "ieee", (2, 64, 72, 33), ADAMW, None, True),
        (80, F32, F32, "tf32", (3, 17, 9, 5), NESTEROV, None, True),
        (90, F32, F32, "ieee", (3, 8, 5, 2), MOMENTUM, None, False),
        (90, BF16, BF16, "ieee", (2, 32, 64, 16), ADAMW, None, False),
        pytest.param(80, F16, F32, "ieee", (2, 48, 130, 64), MOMENTUM, None, False, **NIGHTLY),
        pytest.param(80, BF16, F32, "ieee", (2, 33, 40, 61), ADAMW, BF16, False, **NIGHTLY),
        pytest.param(90, F64, F64, "ieee", (2, 20, 24, 18), ADAMW, None, True, **NIGHTLY),
        pytest.param(90, F32, F32, "ieee", (3, 8, 1, 50), SGD, None, True, **NIGHTLY),
        pytest.param(80, BF16, BF16, "ieee", (3, 24, 40, 1), ADAMW, BF16, True, **NIGHTLY),
    ],
    ids=str,
)
def test_the_definition_is_computed_and_nothing_else_touched(
    arch, dtype, weight_dtype, precision, sizes, rule, states, more
):
    positions, channels, filters, batch = sizes
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(batch, positions, channels, generator=gen).to(dtype)
    g = torch.randn(batch, positions, filters, generator=gen).to(dtype)
    weight = torch.randn(positions, 1, channels, filters, generator=gen).to(weight_dtype)
    got = update_of(rule, weight, states, more)
    want, dx = update_of(rule, weight, states, more), torch.empty_like(x)
    problem = Problem(Geometry.make((positions,), channels, filters, 1), backend="triton", precision=precision)
    assert launch.reads_weight_once(x, problem)
    with emulated_gpu(arch) as gpu:
        launch.input_grad_and_update(x, g, dx, got, problem)
    assert [name for name, _ in gpu.results] == ["linear_backward_kernel"]
    assert not [finding for _, result in gpu.results for finding in result.findings]
    w = weight.squeeze(1).to(dtype).double()
    unit = 2**-10 if precision == "tf32" else torch.finfo(dtype).eps
    assert_close(dx, torch.einsum("bpf,pcf->bpc", g.double(), w), 8 * unit)
    gradient = torch.einsum("bpc,bpf->pcf", x.double(), g.double()).unsqueeze(1)
    want.apply(gradient.to(torch.promote_types(weight_dtype, F32)))
    exact = 2**-10 if precision == "tf32" else 1e-12 if dtype == F64 else 1e-5
    if weight_dtype == BF16:
        masters = [join_master(update.weight, update.small.correction) for update in (got, want)]
        assert_close(masters[0], masters[1], 2**-14)
        assert (masters[0] == masters[1]).double().mean() > 0.9
    else:
        assert_close(got.weight, want.weight, exact)
    for found, right in zip(got.states, want.states, strict=True):
        assert_close(found, right, 2**-7 if states == BF16 else exact)
    assert not torch.equal(got.weight, weight)


@pytest.mark.parametrize(
    ("arch", "dtype"), [(80, F32), pytest.param(90, BF16, **NIGHTLY), pytest.param(90, F32, **NIGHTLY)], ids=str
)
def test_each_weight_is_loaded_and_stored_once(arch, dtype):
    """Two launches load each sector of the weight twice."""
    x, g, weight = torch.ones(16, 2, 32, dtype=dtype), torch.ones(16, 2, 64, dtype=dtype), torch.ones(2, 1, 32, 64)
    update = Update(MOMENTUM, weight, (torch.ones_like(weight),))
    problem = Problem(Geometry.make((2,), 32, 64, 1), backend="triton")
    with emulated_gpu(arch, Watch(Options(counts=True))) as gpu:
        launch.input_grad_and_update(x, g, torch.empty_like(x), update, problem)
    counts = gpu.results[0][1].counts
    for name in ("p_w", "p_m"):
        assert counts[f"{name} load sectors"] == counts[f"{name} store sectors"] == weight.nbytes // SECTOR
