"""The launch of an input gradient and a weight update, interpreted: against the definition and two launches."""

import pytest
import torch

from lc_triton import launch
from lc_triton.core.fused import Penalty, Small, Update
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.errors import MiscompiledError
from lc_triton.launch import linear_backward
from lc_triton.optim.rounding import random_bits, split_master
from lc_triton.tiles.config import TileConfig
from tests.cases import assert_close
from tests.interpreter.test_weight_update import RULES

# (positions, channels, filters), batch: full blocks of a matrix product, partial ones, and products without `tl.dot`.
SIZES = {
    "whole": ((2, 32, 64), 16),
    "odd": ((3, 33, 19), 5),
    "two samples": ((2, 18, 37), 2),
    "one sample": ((3, 16, 8), 1),
    "few channels": ((2, 3, 40), 9),
    "one filter": ((2, 8, 1), 50),
    "one of all": ((1, 1, 1), 1),
}

TILE = TileConfig(1, 1, 32, 16, 32)  # the tile of the two launches


def problem_of(sizes):
    positions, channels, filters = sizes
    return Problem(Geometry.make((positions,), channels, filters, 1), backend="triton")


def operands(sizes, batch, dtype=torch.float64, weight_dtype=None):
    (positions, channels, filters), gen = sizes, torch.Generator().manual_seed(0)
    shapes = (batch, positions, channels), (batch, positions, filters), (positions, 1, channels, filters)
    x, g, weight = (torch.randn(shape, generator=gen, dtype=torch.float64) for shape in shapes)
    return x.to(dtype), g.to(dtype), weight.to(weight_dtype or dtype)


def definition(x, g, weight):
    """dx, with the weight rounded to the dtype of x, and dw, in float64."""
    x, g, w = x.double(), g.double(), weight.to(x.dtype).double()
    return torch.einsum("bpf,ptcf->bpc", g, w), torch.einsum("bpc,bpf->pcf", x, g).unsqueeze(1)


def states_of(weight, count, dtype=None):
    gen = torch.Generator().manual_seed(1)
    dtype = dtype or torch.promote_types(weight.dtype, torch.float32)
    return tuple(torch.rand(weight.shape, generator=gen).to(dtype) for _ in range(count))


def copy_of(update):
    """A copy of an update, with copies of its tensors."""
    small = Small(*(None if t is None else t.clone() for t in update.small))
    states = tuple(state.clone() for state in update.states)
    return Update(update.rule, update.weight.clone(), states, update.added, update.scale, update.penalty, small)


def update_in_one_launch(x, g, update, problem, config=None):
    dx = torch.full(x.shape, float("nan"), dtype=x.dtype)
    assert launch.reads_weight_once(x, problem)
    launch.input_grad_and_update(x, g, dx, update, problem, config)
    return dx


def assert_launches_agree(sizes, batch, update_of, tolerance, dtype=torch.float64, weight_dtype=None):
    """dx, the weight and its states agree after one launch, after two, and by the definition."""
    x, g, weight = operands(sizes, batch, dtype, weight_dtype)
    one, problem = update_of(weight), problem_of(sizes)
    two, exact = copy_of(one), copy_of(one)
    dx, gradient = definition(x, g, weight)
    exact.apply(gradient.to(torch.promote_types(weight.dtype, torch.float32)))
    found, rebuilt = update_in_one_launch(x, g, one, problem), torch.empty_like(x)
    launch.input_grad(g, weight, None, rebuilt, problem, TILE)
    launch.weight_update(x, g, two, problem, TILE)
    x_tolerance = tolerance if dtype.itemsize > 2 else torch.finfo(dtype).eps
    for got, others in ((found, (dx, rebuilt)), (one.weight, (exact.weight, two.weight))):
        for other in others:
            assert_close(got, other, x_tolerance if got is found else tolerance)
    for got, *others in zip(one.states, exact.states, two.states, strict=True):
        for other in others:
            assert_close(got, other, tolerance)
    assert not torch.equal(one.weight, weight)
    return one, two


@pytest.mark.parametrize("size", SIZES)
def test_products_of_every_size(size):
    assert_launches_agree(*SIZES[size], lambda w: Update(RULES["adamw"][0], w.clone(), states_of(w, 2)), 1e-12)


@pytest.mark.parametrize("rule", [name for name in RULES if name != "add"])
def test_every_rule_with_an_added_gradient(rule):
    rule_, count = RULES[rule]

    def update_of(weight):
        states = states_of(weight, count)
        if rule == "momentum, first":
            states[0].zero_()
        return Update(rule_, weight.clone(), states, states_of(weight, 1)[0])

    assert_launches_agree((2, 17, 9), 3, update_of, 1e-12)


@pytest.mark.parametrize(
    ("rule", "penalty"),
    [
        ("adamw", Penalty(0.3, 0.2, non_neg=True)),
        ("maximize", Penalty(-0.3, 0.0)),
        ("nesterov", Penalty(0.0, 0.2, non_neg=True)),
        ("sgd", Penalty(non_neg=True)),
    ],
)
def test_penalties_and_bounds(rule, penalty):
    rule_, count = RULES[rule]
    assert_launches_agree(
        (2, 17, 9), 3, lambda w: Update(rule_, w.clone(), states_of(w, count), penalty=penalty), 1e-12
    )


@pytest.mark.parametrize(
    ("dtype", "weight_dtype", "tolerance"),
    [(torch.float32, torch.float32, 1e-6), (torch.float16, torch.float32, 1e-6)],
    ids=str,
)
def test_dtypes(dtype, weight_dtype, tolerance):
    """The numbers of a step are much larger than the spacing of float32."""
    rule_, count = RULES["momentum"]
    assert_launches_agree(
        (2, 20, 24), 6, lambda w: Update(rule_, w.clone(), states_of(w, count)), tolerance, dtype, weight_dtype
    )


def test_bfloat16_states_are_rounded_to_the_bits_of_the_cpu():
    x, g, weight = operands((2, 17, 9), 3)
    one = Update(RULES["adamw"][0], weight.clone(), states_of(weight, 2, torch.bfloat16))
    exact = copy_of(one)
    exact.apply(definition(x, g, weight)[1])
    update_in_one_launch(x, g, one, problem_of((2, 17, 9)))
    assert_close(one.weight, exact.weight, 1e-12)
    for got, want in zip(one.states, exact.states, strict=True):
        assert torch.equal(got, want)


def test_masters_of_bfloat16_weights_are_those_of_two_launches():
    """Products without `tl.dot`, which the interpreter computes correctly in bfloat16, have the same bits."""
    sizes = 3, 8, 5
    x, g, weight = operands(sizes, 2, torch.bfloat16, torch.float32)
    weight, correction = split_master(weight, random_bits(0, weight.numel(), 1, weight.device))
    weight = weight.to(torch.bfloat16)
    one = Update(RULES["adamw"][0], weight.clone(), states_of(weight, 2), small=Small(correction))
    two, problem = copy_of(one), problem_of(sizes)
    dx, rebuilt = update_in_one_launch(x, g, one, problem), torch.empty_like(x)
    launch.input_grad(g, weight, None, rebuilt, problem)
    launch.weight_update(x, g, two, problem)
    assert_close(dx, definition(x, g, weight)[0], torch.finfo(torch.bfloat16).eps)
    assert torch.equal(dx, rebuilt)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.small.correction, two.small.correction)
    assert not torch.equal(one.weight, weight)


@pytest.mark.parametrize("layout", ["cropped", "strided batch", "expanded", "transposed"])
def test_operands_of_other_layouts(layout):
    sizes = 3, 16, 8
    x, g, weight = operands(sizes, 4)
    if layout == "cropped":
        x = torch.nn.functional.pad(x, (0, 0, 2, 1))[:, 2:-1]
    elif layout == "strided batch":
        g = torch.stack([g, g], 1)[:, 0]
    elif layout == "expanded":
        x, g = x[:1].expand_as(x), g[:1].expand_as(g)
    else:
        x = x.mT.contiguous().mT
    update = Update(RULES["sgd"][0], weight.clone(), ())
    exact = copy_of(update)
    dx, gradient = definition(x, g, weight)
    exact.apply(gradient)
    assert_close(update_in_one_launch(x, g, update, problem_of(sizes)), dx, 1e-12)
    assert_close(update.weight, exact.weight, 1e-12)


def test_a_two_dimensional_layer():
    """The image is a crop, with gaps between its rows."""
    geometry = Geometry.make((2, 3), 16, 8, 1)
    x, g, weight = operands((6, 16, 8), 4)
    x = torch.nn.functional.pad(x.view(4, 2, 3, 16), (0, 0, 1, 1))[:, :, 1:-1]
    g, weight = g.view(4, 2, 3, 8), weight.view(2, 3, 1, 1, 16, 8)
    update = Update(RULES["sgd"][0], weight.clone(), ())
    exact = copy_of(update)
    dx, gradient = definition(x.flatten(1, 2), g.flatten(1, 2), weight.view(6, 1, 16, 8))
    exact.apply(gradient.view_as(weight))
    assert_close(update_in_one_launch(x, g, update, Problem(geometry, backend="triton")), dx.view_as(x), 1e-12)
    assert_close(update.weight, exact.weight, 1e-12)


def test_supported_layers_and_batches():
    x = torch.empty(16, 4, 32)

    def is_supported(x, *args, precision="ieee", **kwargs):
        return launch.reads_weight_once(x, Problem(Geometry.make(*args, **kwargs), precision=precision))

    assert is_supported(x, (4,), 32, 8, 1)
    assert is_supported(x, (4,), 32, 8, 1, dilation=3)
    assert not is_supported(x, (4,), 32, 8, 2)
    assert not is_supported(x, (4,), 32, 8, 1, stride=2)
    assert not is_supported(x, (4,), 32, 8, 1, padding=1)
    assert not is_supported(x, (4,), 32, 8, 1, groups=2)
    assert not is_supported(x, (4,), 32, 8, 1, regions=((1, 2),))
    assert not is_supported(x, (3,), 32, 8, 1, stride=2, padding=1)  # the output has the size of the input
    assert not is_supported(x[:0], (4,), 32, 8, 1)
    assert not is_supported(torch.empty(33, 4, 32), (4,), 32, 8, 1)
    assert is_supported(torch.empty(32, 4, 32), (4,), 32, 8, 1, precision="tf32")
    assert not is_supported(torch.empty(33, 4, 32), (4,), 32, 8, 1, precision="tf32")
    assert is_supported(torch.empty(64, 4, 32, dtype=torch.bfloat16), (4,), 32, 8, 1)
    assert is_supported(torch.empty(128, 4, 32), (4,), 32, 1, 1)
    assert not is_supported(torch.empty(65, 4, 32, dtype=torch.bfloat16), (4,), 32, 8, 1)
    assert not is_supported(torch.empty(129, 4, 32), (4,), 32, 1, 1)


def test_two_launches_replace_a_miscompiled_kernel(monkeypatch, caplog):
    def refuse(*args):
        raise MiscompiledError(version="0", kernel="linear_backward_kernel", tile=TileConfig(), mark="a mark")

    monkeypatch.setattr(linear_backward, "bind", refuse)
    one, two = assert_launches_agree((2, 17, 9), 3, lambda w: Update(RULES["sgd"][0], w.clone(), ()), 1e-12)
    assert torch.equal(one.weight, two.weight)
    assert "two launches take its place" in caplog.text


def test_launches_are_bound_once(monkeypatch):
    x, g, weight = operands((2, 17, 9), 3)
    problem, bound, calls = problem_of((2, 17, 9)), {}, []
    bind = linear_backward.bind
    monkeypatch.setattr(linear_backward, "bind", lambda *args: calls.append(args) or bind(*args))
    for _ in range(2):
        update = Update(RULES["sgd"][0], weight.clone(), ())
        launch.input_grad_and_update(x, g, torch.empty_like(x), update, problem, bound=bound)
    assert len(calls) == len(bound) == 1
