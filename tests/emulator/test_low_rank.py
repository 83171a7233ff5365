"""The kernel that mixes the filters of a basis, executed from its PTX, with the tiles that launches choose."""

import pytest
import torch

import lc_triton
from lc_triton.core.activations import Activation
from lc_triton.core.problem import Problem
from lc_triton.launch import low_rank as launch
from lc_triton.ops.low_rank import unshared_weight
from tests.cases import Case, assert_close, tensors
from tests.emulator.driver import emulated_gpu

pytestmark = [pytest.mark.compile, pytest.mark.slow]

# Three positions a program, of which the last program has one; a batch that fills no block; two blocks of filters.
WGMMA = Case("wgmma", (6,), 8, 70, 3, batch=40)
STRIDE = Case("stride", (5, 4), 3, 20, 2, stride=(2, 1), padding=(1, 0), dilation=(1, 2), batch=17)
GROUPS = Case("groups", (3, 2, 3), 20, 36, 2, groups=2, padding=(0, 1, 0), batch=33)


@pytest.mark.parametrize(
    ("arch", "dtype", "rank", "positions", "case"),
    [
        (90, torch.bfloat16, 2, 3, WGMMA),
        pytest.param(80, torch.float16, 5, 2, STRIDE, marks=pytest.mark.nightly),
        pytest.param(80, torch.float32, 1, 1, GROUPS, marks=pytest.mark.nightly),
        pytest.param(90, torch.float64, 3, 2, GROUPS, marks=pytest.mark.nightly),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_the_kernel_computes_the_definition_and_touches_nothing_else(arch, dtype, rank, positions, case):
    t, problem = tensors(case, dtype), Problem(case.geometry, Activation("gelu"), "triton")
    gen = torch.Generator().manual_seed(1)
    basis = (torch.randn(rank, *t.weight.shape[case.geometry.ndim :], generator=gen) / 4).to(dtype)
    mixing = torch.randn(*case.geometry.out_spatial, rank, generator=gen).to(dtype)
    tile, _ = launch.tile_of(case.geometry, 64, rank, dtype, "ieee")
    y, z = torch.empty_like(t.g), torch.empty_like(t.g)
    with emulated_gpu(arch) as gpu:
        launch.low_rank_forward(t.x, basis, mixing, t.bias, y, z, problem, (tile, positions))
    ((name, result),) = gpu.results
    assert name == "low_rank_forward_kernel"
    assert not result.findings
    weight = unshared_weight(basis.double(), mixing.double())
    arguments = case.arguments | {"data_format": "channels_last"}
    want = lc_triton.local_conv(t.x.double(), weight, t.bias.double(), **arguments)
    tolerance = 8 * torch.finfo(dtype).eps
    assert_close(z, want, tolerance)
    assert_close(y, torch.nn.functional.gelu(want), tolerance)
