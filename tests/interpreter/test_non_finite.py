"""NaN, Inf and denormals by the kernels: where the definition has them, and near by in a band tile."""

from dataclasses import replace

import pytest
import torch

from lc_triton import launch
from lc_triton.core.activations import FUSED_NAMES, Activation, parse_activation
from lc_triton.core.problem import Problem
from lc_triton.tiles.config import TileConfig
from tests.cases import CASES, Case, expected, number_kinds, tensors, with_number, with_subnormals
from tests.interpreter.test_passes import BOXES, passes, tile

NAN, INF = float("nan"), float("inf")
BY_NAME = {case.name: case for case in CASES}
SOME = [
    BY_NAME[name]
    for name in (
        "1d_causal_dilated",
        "2d_stride_slack",
        "2d_dilated_stride",
        "2d_groups",
        "2d_depthwise",
        "3d_stride_same",
    )
]
# Of the same kinds, with a few positions each: a tile of one position is a program a position.
FEW = [
    Case("1d_causal_dilated", (4,), 2, 3, 2, padding="causal", dilation=2),
    Case("2d_stride_slack", (6, 6), 2, 3, 2, stride=3),
    Case("2d_dilated_stride", (4, 4), 2, 3, 2, stride=2, dilation=2, padding=1),
    Case("2d_groups", (3, 3), 4, 6, 2, groups=2),
    Case("2d_depthwise", (3, 3), 3, 3, 2, groups=3),
    Case("3d_stride_same", (3, 2, 3), 2, 2, 2, stride=2, padding="same"),
]
# Tiles of one position, and tiles whose positions each walk their own window: no zero is multiplied.
EXACT = {
    "dot": lambda channels: tile(1, 1, channels),
    "swapped": lambda channels: tile(1, 1, channels, swap=True),
    "split": lambda channels: tile(1, 1, channels, split=2),
    "reduced": lambda channels: tile(1, 1, channels, dot=False),
    "reduced_1x2": lambda channels: tile(1, 2, channels, dot=False),
}


def marks(case, way):
    """One way by all cases and all ways by one case in each run, the others each night."""
    often = way == "dot" or case.name == "2d_stride_slack"
    return () if often else pytest.mark.nightly


CASES_AND_WAYS = [pytest.param(c, w, id=f"{c.name}-{w}", marks=marks(c, w)) for c in FEW for w in EXACT]


def padded_taps(case):
    """Which weights `(*out_spatial, *kernel, 1, 1)` lie on padding."""
    geo = case.geometry
    zeros = Case(**(vars(case) | {"batch": 1}))
    t = tensors(zeros)
    t.x, t.g = torch.ones_like(t.x), torch.ones_like(t.g)
    return (expected(zeros, t)["dw"] == 0).view(geo.weight_shape)


def turn(case, way):
    """NaN, Inf and -Inf, beginning with another one for each case and way of summing."""
    n = FEW.index(case) + list(EXACT).index(way)
    return [(NAN, INF, -INF)[(n + i) % 3] for i in range(3)]


# A call of the passes takes 30 ms a program here, so one call has all that is planted, each with a value of its own: x
# reaches y and dw, g dx, dw and db, the bias y. The definition tells them apart, and most numbers stay finite.
@pytest.mark.slow
@pytest.mark.parametrize(("case", "way"), CASES_AND_WAYS)
def test_one_position_a_tile_keeps_the_definition(case, way):
    t = tensors(case)
    for seed, (name, value) in enumerate(zip(("x", "g", "bias"), turn(case, way), strict=True)):
        t = with_number(t, name, value, seed)
    got, want = passes(case, t, EXACT[way]), expected(case, t)
    for key, exact in want.items():
        assert 0 < exact.isfinite().sum() < exact.numel(), key
        assert torch.equal(number_kinds(got[key]), number_kinds(exact)), key


@pytest.mark.slow
@pytest.mark.parametrize(("case", "way"), CASES_AND_WAYS)
def test_a_weight_reaches_what_reads_it(case, way):
    """A tap on padding has a weight that these kernels do not fetch: that one is no part of the sum."""
    t = tensors(case)
    outside = padded_taps(case)
    inside = (~outside).nonzero()
    *values, on_padding = turn(case, way)
    for place, value in zip((inside[len(inside) // 3], inside[-1]), values, strict=True):
        t.weight[tuple(place)] = value
    want = expected(case, t)
    got = passes(case, replace(t, weight=t.weight.masked_fill(outside, on_padding)), EXACT[way])
    for key, exact in want.items():
        assert torch.equal(number_kinds(got[key]), number_kinds(exact)), key


@pytest.mark.slow
def test_boxes_fetch_the_weights_of_padding_too():
    case = next(c for c in BOXES if c.name == "boxes")
    t = tensors(case, torch.float32)
    outside = padded_taps(case)
    assert outside.any()
    t.weight.masked_fill_(outside, NAN)
    got = passes(case, t, lambda _: TileConfig(1, 1, 16, 16, 16, descriptor=True))
    assert torch.equal(number_kinds(got["y"]), number_kinds(expected(case, t)["y"]))


def spread(bad, case, rows, cols, groups):
    """All numbers `(B, *spatial, channels)` that share sample, tile and group with a bad one."""
    lead = [1] * (4 - case.geometry.ndim)
    full = bad.view(len(bad), *lead, *bad.shape[1:])
    height, width = full.shape[3:5]
    tall, wide = -(-height // rows), -(-width // cols)
    room = full.new_zeros(*full.shape[:3], tall * rows, wide * cols, full.shape[-1])
    room[:, :, :, :height, :width] = full
    blocks = room.view(*full.shape[:3], tall, rows, wide, cols, groups, -1)
    hit = blocks.any(-1, keepdim=True).any(-3, keepdim=True).any(-5, keepdim=True).expand(blocks.shape)
    return hit.reshape(room.shape)[:, :, :, :height, :width].reshape(bad.shape)


@pytest.mark.slow
@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_a_band_tile_keeps_it_in_its_sample_and_tile(case):
    rows, cols = (2 if case.geometry.ndim > 1 else 1), 2
    values = (NAN, INF) if SOME.index(case) % 2 else (INF, NAN)
    t = with_number(with_number(tensors(case), "x", values[0], seed=6), "g", values[1], seed=7)
    got, want = passes(case, t, lambda channels: tile(rows, cols, channels)), expected(case, t)
    for key in ("y", "dx"):
        bad = ~want[key].isfinite()
        assert bad.any(), key
        assert not (bad & got[key].isfinite()).any(), key
        assert not (~got[key].isfinite() & ~spread(bad, case, rows, cols, case.groups)).any(), key
    for key in ("dw", "db"):
        assert torch.equal(number_kinds(got[key]), number_kinds(want[key])), key


def test_a_band_tile_keeps_a_weight_to_its_position():
    case = BY_NAME["2d_stride_slack"]
    t = with_number(tensors(case), "weight", NAN)
    got, want = passes(case, t, lambda channels: tile(2, 2, channels)), expected(case, t)
    for key, exact in want.items():
        assert torch.equal(number_kinds(got[key]), number_kinds(exact)), key


@pytest.mark.parametrize("name", FUSED_NAMES)
def test_activations_of_what_is_not_finite(name):
    """Value and derivative are non-finite where torch's own are, and of the same kind."""
    geo, act = BY_NAME["1d_one"].geometry, parse_activation(name)
    z = torch.tensor([NAN, INF, -INF, 1.0])
    one, config = torch.ones(geo.weight_shape), TileConfig(1, 1, 16, 16, 16)
    y = torch.zeros(len(z), *geo.bias_shape)
    launch.forward(z[:, None, None], one, None, y, None, Problem(geo, act, "triton"), config)
    assert torch.equal(number_kinds(y.flatten()), number_kinds(act(z.double())))
    if name == "linear":
        return
    saved = act(z) if act.saves == "y" else z
    g = torch.full((len(z), 1, 1), 2.0)
    dw, dz = torch.empty(geo.weight_shape), torch.zeros_like(g)
    launch.weight_grad(g, g, dw, None, Problem(geo, act, "triton"), config, saved.view_as(g), dz)
    assert torch.equal(number_kinds(dz.flatten()), number_kinds(act.backward(g.flatten().double(), saved.double())))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x", "g", "weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("way", ["dot", "reduced"])
def test_subnormal_numbers_are_not_flushed(way, dtype, name):
    case = Case("2d", (4, 4), 3, 4, 3, batch=3)
    t = with_subnormals(tensors(case, dtype), name)
    got, want = passes(case, t, EXACT[way], Activation("linear")), expected(case, t)
    spacing = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    for key in {"x": ("y", "dw"), "g": ("dx", "dw", "db"), "weight": ("y", "dx")}[name]:
        assert want[key].abs().max() > 50 * spacing, key
        assert (got[key].double() - want[key]).abs().max() <= case.geometry.window * spacing, key
