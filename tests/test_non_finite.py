"""NaN, Inf and subnormal numbers on the CPU path: results have them where the definition has, and nowhere else."""

import pytest
import torch

from lc_triton.core.activations import FUSED_NAMES, parse_activation
from tests.cases import (
    BY_NAME,
    CASES,
    IDS,
    Case,
    assert_close,
    expected,
    number_kinds,
    run,
    tensors,
    torch_results,
    with_number,
    with_subnormals,
)
from tests.cpu_strategies import CpuStrategy

NAN, INF = float("nan"), float("inf")
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(
    params=[
        CpuStrategy(),
        CpuStrategy(block_bytes=1),
        CpuStrategy(block_bytes=1500, few_samples=True, few_filters=True, tap_by_tap=True),
    ],
    ids=["one_block", "one_position", "in_blocks"],
    autouse=True,
)
def cpu_strategy(request, monkeypatch):
    """One block, and several, with windows in either order."""
    request.param.apply(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x", "weight", "bias", "g"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_non_finite_numbers_spread_as_in_the_definition_and_change_no_other_bit(case, name):
    clean = run(case, tensors(case))
    for seed, value in enumerate((NAN, INF, -INF)):
        t = with_number(tensors(case), name, value, seed)
        got, want = run(case, t), expected(case, t)
        for key, exact in want.items():
            assert torch.equal(number_kinds(got[key]), number_kinds(exact)), (key, value)
            finite = exact.isfinite()
            assert torch.equal(got[key][finite], clean[key][finite]), (key, value)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("weight_dtype", [None, torch.float32], ids=str)
def test_in_16_bits(dtype, weight_dtype):
    case = BY_NAME["2d_asymmetric"]
    for name in ("x", "weight", "g"):
        t = with_number(tensors(case, dtype, weight_dtype=weight_dtype), name, INF)
        got, want = run(case, t), expected(case, t)
        for key, exact in want.items():
            assert torch.equal(number_kinds(got[key]), number_kinds(exact)), (name, key)


def test_float16_overflows_to_inf_as_in_torch():
    case = BY_NAME["2d"]
    t = tensors(case, torch.float16)
    t.x *= 1e4
    t.weight *= 30
    got, of_torch = run(case, t), torch_results(case, t)
    assert torch.equal(number_kinds(got["y"]), number_kinds(of_torch["y"]))
    assert set(number_kinds(got["y"]).flatten().tolist()) == {0, 2, 3}


@pytest.mark.slow
@pytest.mark.parametrize("activation", FUSED_NAMES)
def test_non_finite_numbers_before_an_activation(activation):
    case, act = BY_NAME["2d_asymmetric"], parse_activation(activation)
    for name in ("x", "g"):
        for value in (NAN, INF, -INF):
            t = with_number(tensors(case), name, value)
            got, want = run(case, t, activation=activation), expected(case, t, act)
            for key, exact in want.items():  # torch's softsign makes inf - inf of an infinite g
                assert torch.equal(got[key].isfinite(), exact.isfinite()), (name, value, key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x", "g", "weight"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("case", [BY_NAME[name] for name in ("1d", "2d", "2d_depthwise")], ids=lambda case: case.name)
def test_subnormal_numbers_are_not_flushed(case, dtype, name):
    t = with_subnormals(tensors(case, dtype), name)
    got, want, of_torch = run(case, t), expected(case, t), torch_results(case, t)
    spacing = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    for key in {"x": ("y", "dw"), "g": ("dx", "dw", "db"), "weight": ("y", "dx")}[name]:
        if dtype == torch.float64:  # the definition rounds as much in float64
            assert torch.equal(got[key] == 0, want[key] == 0)
        assert want[key].abs().max() > 8 * spacing
        assert (got[key].double() - want[key]).abs().max() <= case.geometry.window * spacing, key
        assert not ((of_torch[key] != 0) & (got[key] == 0) & (want[key].abs() > spacing)).any(), key


LARGE = [
    Case("channels", (5,), 1 << 14, 3, 4),
    Case("channels_of_groups", (4,), 1 << 15, 4, 4, groups=2),
    Case("plane", (257, 256), 1, 2, 256),
    Case("line", ((1 << 16) + 2,), 1, 2, 1 << 16),
    Case("filters", (4,), 2, 1 << 15, 2),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
def test_windows_and_sums_of_65536_numbers(case):
    geo = case.geometry
    assert 1 << 16 in (geo.window, geo.taps * geo.out_channels)
    t = tensors(case)
    # The definition loops over taps, which takes minutes for so many; patches and one product compute the same.
    want = torch_results(case, t) if geo.taps > 1000 else expected(case, t)
    for key, got in run(case, t).items():
        assert_close(got, want[key], 1e-11, key)
