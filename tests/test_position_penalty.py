"""position_penalty against its definition: values in blocks of any size, and gradients of first and second order."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, hessian, jvp, vmap

import lc_triton
from lc_triton import errors as E
from lc_triton.ops import position_penalty as ours
from tests.cases import assert_close
from tests.errors.checking import check_message, parametrize_errors
from tests.pairwise import pairwise

KINDS = ("neighbours", "mean", "smooth")


def grid_layers():
    """Layers of every kind and dimension, with grids that have sides of 1."""
    return {
        "1d": lc_triton.LocalConv1d(2, 3, 2, input_size=6, dtype=torch.float64),
        "2d": lc_triton.LocalConv2d(2, 6, 2, input_size=(5, 4), dtype=torch.float64),
        "2d_row": lc_triton.LocalConv2d(2, 6, 2, input_size=(2, 4), padding=(0, 1), dtype=torch.float64),
        "2d_one": lc_triton.LocalConv2d(1, 6, 3, input_size=3, dtype=torch.float64),
        "3d": lc_triton.LocalConv3d(2, 2, 2, input_size=(3, 4, 3), groups=2, dtype=torch.float64),
        "transposed": lc_triton.LocalConvTranspose2d(3, 2, 2, input_size=(2, 3), dtype=torch.float64),
        "keras": lc_triton.LocallyConnected2D(4, 2, input_shape=(4, 3, 2), dtype=torch.float64),
        "linear": lc_triton.LocalLinear(5, 2, 3, dtype=torch.float64),
    }


def definition(layer, kind, reduction="mean", sheet=None):
    """The penalty, summed pair by pair and filter by filter."""
    w, n = layer.weight, layer.geometry.ndim
    grid, filters = w.shape[:n], w.shape[-1]
    if kind == "mean":
        squares = (w - w.flatten(0, n - 1).mean(0)).square()
        return squares.mean() if reduction == "mean" else squares.sum()
    rows, columns = sheet or (1, 1)
    units = {}
    for p in itertools.product(*map(range, grid)):
        for f in range(filters):
            place = tuple(p) if sheet is None else (p[0] * rows + f // columns, p[1] * columns + f % columns)
            units[place, f if sheet is None else 0] = w[p][..., f].flatten()
    directions = []
    for dim in range(n):
        pairs = []
        for (place, f), a in units.items():
            b = units.get((tuple(i + (d == dim) for d, i in enumerate(place)), f))
            if b is not None and kind == "neighbours":
                pairs.append((1 - F.cosine_similarity(a, b, 0)) / 2)
            elif b is not None:
                pairs.append((a - b).square())
        if pairs:
            each = torch.stack(pairs)
            directions.append(each.sum() if reduction == "sum" else each.mean())
    if not directions:
        return w.sum() * 0
    return torch.stack(directions).sum() if reduction == "sum" else torch.stack(directions).mean()


ROWS = pairwise(list(grid_layers()), KINDS, ("mean", "sum"), (1, 60, 1 << 17), (None, (2, 3), (6, 1), (1, 6)))


@pytest.mark.parametrize(("name", "kind", "reduction", "block", "sheet"), ROWS)
def test_value_and_gradients_are_the_definitions(name, kind, reduction, block, sheet, monkeypatch):
    monkeypatch.setattr(ours, "BLOCK", block)
    torch.manual_seed(0)
    layer = grid_layers()[name]
    if kind == "mean" or layer.geometry.ndim != 2 or layer.weight.shape[-1] != 6:
        sheet = None
    value = lc_triton.position_penalty(layer, kind, reduction=reduction, sheet=sheet)
    want = definition(layer, kind, reduction, sheet)
    assert_close(value, want.detach())
    g = torch.tensor(0.7).double()
    (block_gradient,) = torch.autograd.grad(value, layer.weight, g, retain_graph=True)
    (exact,) = torch.autograd.grad(want, layer.weight, g, create_graph=True)
    assert_close(block_gradient, exact.detach())
    (found,) = torch.autograd.grad(value, layer.weight, g, create_graph=True)
    assert_close(found, exact.detach())
    v = torch.randn_like(exact)
    # Without pairs, the gradient has no graph.
    totals = [(gradient * v).sum() + 0 * layer.weight.sum() for gradient in (found, exact)]
    assert_close(*(torch.autograd.grad(total, layer.weight)[0] for total in totals))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind, dtype, monkeypatch):
    monkeypatch.setattr(ours, "BLOCK", 60)
    layer = grid_layers()["2d"].to(dtype)
    value = lc_triton.position_penalty(layer, kind)
    assert value.dtype == torch.float32
    value.backward()
    gradient, layer.weight.grad = layer.weight.grad, None
    exact = layer.double()
    want = definition(exact, kind)
    assert_close(value, want.detach(), 1e-6)
    (want_gradient,) = torch.autograd.grad(want, exact.weight)
    assert gradient.dtype == dtype
    assert_close(gradient, want_gradient, 2 * torch.finfo(dtype).eps * want_gradient.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_and_compilers(kind):
    layer = grid_layers()["2d_row"]

    def penalty(weight):
        return functional_call(Wrapped(layer, kind), {"layer.weight": weight}, ())

    w, v = layer.weight.detach(), torch.randn_like(layer.weight)
    (gradient,) = torch.autograd.grad(definition(layer, kind), layer.weight)
    assert_close(grad(penalty)(w), gradient)
    assert_close(jvp(penalty, (w,), (v,))[1], (gradient * v).sum())
    assert_close(vmap(penalty)(torch.stack([w, 2 * w]))[0], definition(layer, kind).detach())
    small = lc_triton.LocalConv1d(1, 1, 2, input_size=3, dtype=torch.float64)
    curvature = hessian(lambda w: functional_call(Wrapped(small, kind), {"layer.weight": w}, ()))(small.weight.detach())
    assert_close(curvature, curvature.flatten(4).flatten(0, 3).mT.reshape(curvature.shape))
    compiled = torch.compile(lambda: lc_triton.position_penalty(layer, kind), backend="eager", fullgraph=True)
    assert_close(compiled(), definition(layer, kind).detach())


class Wrapped(nn.Module):
    """A penalty as the output of a module, for torch.func."""

    def __init__(self, layer, kind):
        super().__init__()
        self.layer, self.kind = layer, kind

    def forward(self):
        return lc_triton.position_penalty(self.layer, self.kind)


def test_equal_filters_cost_nothing_and_have_no_gradient():
    layer = lc_triton.LocalConv2d.from_conv(nn.Conv2d(3, 4, 3), input_size=7)
    for kind in ("mean", "smooth"):
        value = lc_triton.position_penalty(layer, kind)
        (gradient,) = torch.autograd.grad(value, layer.weight)
        assert value.item() < 1e-14
        assert gradient.abs().max() < 1e-8
    assert torch.autograd.grad(lc_triton.position_penalty(layer, "smooth"), layer.weight)[0].abs().max() == 0
    assert abs(lc_triton.position_penalty(layer, "neighbours").item()) < 1e-6


def test_filters_of_zeros_have_no_direction():
    layer = grid_layers()["2d"]
    with torch.no_grad():
        layer.weight[1, 1] = 0
    value = lc_triton.position_penalty(layer)
    assert_close(value, definition(layer, "neighbours").detach())
    (gradient,) = torch.autograd.grad(value, layer.weight)
    assert gradient.isfinite().all()
    assert gradient[1, 1].abs().max() == 0


def test_the_mean_penalty_of_filters_far_from_zero_is_accurate(monkeypatch):
    monkeypatch.setattr(ours, "BLOCK", 60)
    layer = grid_layers()["2d"].float()
    with torch.no_grad():
        layer.weight += 1000
    want = definition(layer.double(), "mean").item()
    assert math.isclose(lc_triton.position_penalty(layer.float(), "mean").item(), want, rel_tol=1e-3)


def test_gradient_descent_lowers_the_penalty():
    layer = lc_triton.LocalConv2d(2, 4, 3, input_size=6)
    optimizer = torch.optim.SGD(layer.parameters(), lr=20.0)
    before = lc_triton.position_penalty(layer).item()
    for _ in range(20):
        optimizer.zero_grad()
        lc_triton.position_penalty(layer).backward()
        optimizer.step()
    assert lc_triton.position_penalty(layer).item() < before / 4


LAYER = lc_triton.LocalConv2d(2, 6, 3, input_size=5)
CALLS = [
    (lambda: lc_triton.position_penalty(nn.Conv2d(2, 3, 3)), E.ArgumentTypeError, "layer must be a layer of lc_triton"),
    (
        lambda: lc_triton.position_penalty(lc_triton.LocalGather(3, [[0], [1]], 2, 2)),
        E.ArgumentTypeError,
        "whose positions are a grid",
    ),
    (lambda: lc_triton.position_penalty(LAYER, "neighbors"), E.UnknownNameError, "did you mean 'neighbours'?"),
    (lambda: lc_triton.position_penalty(LAYER, reduction="none"), E.UnknownNameError, "allowed: mean, sum"),
    (lambda: lc_triton.position_penalty(LAYER, sheet=6), E.ArgumentTypeError, "None or two integers (rows, columns)"),
    (lambda: lc_triton.position_penalty(LAYER, sheet=(2, 2)), E.ArgumentValueError, "rows * columns = 6"),
    (lambda: lc_triton.position_penalty(LAYER, "mean", sheet=(2, 3)), E.ArgumentValueError, "sheet must be None: only"),
    (lambda: lc_triton.position_penalty(lc_triton.LazyLocalConv2d(4, 3)), E.NotBuiltError, "call it once on an input"),
]


@parametrize_errors(CALLS)
def test_errors(call, kind, message):
    check_message(call, kind, message)
