"""The kernels of position_penalty, interpreted, against the penalty by torch's operations in float64."""

import pytest
import torch

import lc_triton
from lc_triton.launch import position_penalty as launch
from lc_triton.ops import position_penalty as ours
from tests.cases import assert_close
from tests.pairwise import pairwise

KINDS = ("neighbours", "mean", "smooth")
# Name: the grid, and the entries and filters of a position.
SIZES = {
    "one": ((1, 1), 3, 4),
    "row": ((6,), 4, 3),
    "one_filter": ((9,), 2, 1),
    "column": ((3, 1), 5, 2),
    "rows": ((1, 4), 3, 9),
    "plane": ((3, 3), 5, 3),
    "box": ((2, 2, 3), 2, 2),
    "no_rows": ((2, 1, 2), 3, 1),
}
NAN = float("nan")


def weight_of(name, dtype):
    torch.manual_seed(0)
    grid, entries, filters = SIZES[name]
    return torch.randn(*grid, entries, filters).to(dtype)


def penalty_of(name, kind, reduction="mean"):
    grid, _, filters = SIZES[name]
    return ours.Penalty(kind, reduction, grid, (1, filters))


def results(w, penalty, g):
    """Value and gradient by the kernels."""
    w = w.detach().requires_grad_()
    with lc_triton.backend("triton"):
        value = ours.penalty(w, penalty)
    (gradient,) = torch.autograd.grad(value, w, g.to(value.dtype))
    return value.detach(), gradient


def definition(w, penalty, g):
    w = w.detach().double().requires_grad_()
    value = ours._plain(w.view(*penalty.grid, -1, *penalty.sheet), penalty)
    return value.detach(), torch.autograd.grad(value + 0 * w.sum(), w, g)[0]


@pytest.fixture
def without_blocks(monkeypatch):
    """Disable the functions that compute the penalty in blocks."""
    monkeypatch.setattr(ours, "FORWARD", {})
    monkeypatch.setattr(ours, "BACKWARD", {})


@pytest.fixture
def small_tiles(monkeypatch):
    """Small limits, so that small weights have several blocks, groups and chunks of positions."""
    smaller = {"THREADS": 8, "WARP": 4, "LEAST": 1, "COLUMNS": 2, "REUSED": 200, "CHUNK": 4, "LOADED": 2}
    for name, value in (smaller | {"ROWS": {1: 1, 2: 2, 3: 2}}).items():
        monkeypatch.setattr(launch, name, value)


G = torch.tensor(0.7, dtype=torch.float64)
FLOATS = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-6, 1e-6), torch.bfloat16: (1e-6, 2**-8)}
FLOATS[torch.float16] = 1e-6, 2**-11


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "dtype", "reduction"), pairwise(list(SIZES), KINDS, list(FLOATS), ("mean", "sum"))
)
def test_value_and_gradient_are_those_in_float64(name, kind, dtype, reduction, without_blocks, small_tiles):
    w, penalty = weight_of(name, dtype), penalty_of(name, kind, reduction)
    value, gradient = results(w, penalty, G)
    want, want_grad = definition(w, penalty, G)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert gradient.dtype == dtype
    value_tolerance, grad_tolerance = FLOATS[dtype]
    assert_close(value, want, value_tolerance)
    largest = max(want_grad.abs().max().item(), 1e-9)
    assert_close(gradient / largest, want_grad / largest, 2 * grad_tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_default_tiles_give_the_same_bits_twice(kind, without_blocks):
    w, penalty = weight_of("plane", torch.float64), penalty_of("plane", kind)
    first, second = results(w, penalty, G), results(w, penalty, G)
    for a, b, want in zip(first, second, definition(w, penalty, G), strict=True):
        assert_close(a, want)
        assert torch.equal(a, b)


@pytest.mark.slow
def test_filters_of_zeros_have_no_direction(without_blocks, small_tiles):
    w, penalty = weight_of("plane", torch.float32), penalty_of("plane", "neighbours")
    w[1, 1, :, 2] = 0
    value, gradient = results(w, penalty, G)
    want, want_grad = definition(w, penalty, G)
    assert_close(value, want, 1e-6)
    assert_close(gradient, want_grad, 1e-6)
    assert gradient[1, 1, :, 2].abs().max() == 0


def test_equal_filters_have_no_gradient(without_blocks, small_tiles):
    w = weight_of("plane", torch.float32)[:1, :1].expand(3, 3, 5, 3)
    value, gradient = results(w, penalty_of("plane", "smooth"), G)
    assert value == 0
    assert gradient.abs().max() == 0


def test_the_mean_penalty_of_filters_far_from_zero_is_accurate(without_blocks, small_tiles):
    w, penalty = weight_of("plane", torch.float32) + 1000, penalty_of("plane", "mean")
    value, gradient = results(w, penalty, G)
    want, want_grad = definition(w, penalty, G)
    assert_close(value, want, 1e-5)
    assert_close(gradient, want_grad, 1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy warns in the interpreter
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [NAN, float("inf")], ids=str)
def test_non_finite_numbers_spread_as_without_kernels(kind, number):
    w, penalty = weight_of("plane", torch.float64), penalty_of("plane", kind)
    w[0, 1, 2, 1] = number
    value, gradient = results(w, penalty, G)
    leaf = w.clone().requires_grad_()
    want = ours.penalty(leaf, penalty)
    (want_grad,) = torch.autograd.grad(want, leaf, G)
    assert torch.equal(value.isnan(), want.isnan())
    assert torch.equal(gradient.isfinite(), want_grad.isfinite())
    assert torch.equal(gradient.isnan(), want_grad.isnan())
    finite = want_grad.isfinite()
    assert_close(gradient[finite], want_grad[finite])


def test_layers_and_weights_of_any_strides(without_blocks):
    layer = lc_triton.LocallyConnected1D(2, 2, input_shape=(5, 2), dtype=torch.float64)
    want = definition(layer.weight, ours.Penalty("smooth", "mean", tuple(layer.weight.shape[:1]), (1, 2)), G)
    with lc_triton.backend("triton"):
        value = lc_triton.position_penalty(layer, "smooth")
    assert_close(value, want[0])
    assert_close(torch.autograd.grad(value, layer.weight, G)[0], want[1])
    w = weight_of("plane", torch.float64)
    permuted = w.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2)
    for a, b in zip(*(results(v, penalty_of("plane", "smooth"), G) for v in (w, permuted)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives(kind, without_blocks, small_tiles):
    w, penalty = weight_of("row", torch.float64).requires_grad_(), penalty_of("row", kind)
    with lc_triton.backend("triton"):
        value = ours.penalty(w, penalty)
    (first,) = torch.autograd.grad(value, w, create_graph=True)
    (found,) = torch.autograd.grad(first.square().sum(), w)
    (first,) = torch.autograd.grad(ours._plain(w.view(6, 4, 1, 3), penalty), w, create_graph=True)
    assert_close(found, torch.autograd.grad(first.square().sum(), w)[0])


def test_a_sheet_is_computed_in_blocks():
    layer = lc_triton.LocalConv2d(1, 6, 2, input_size=(3, 3))
    want = lc_triton.position_penalty(layer, sheet=(2, 3))
    with lc_triton.backend("triton"):
        assert_close(lc_triton.position_penalty(layer, sheet=(2, 3)), want.detach(), 0)
