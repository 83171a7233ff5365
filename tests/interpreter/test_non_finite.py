"""NaN, Inf and subnormal numbers in the kernels: the results of the definition, except inside a band tile."""

from dataclasses import replace

import pytest
import torch

from lc_triton import launch
from lc_triton.core.activations import FUSED_NAMES, Activation, parse_activation
from lc_triton.core.problem import Problem
from lc_triton.tiles.config import TileConfig
from tests.cases import BY_NAME, Case, expected, number_kinds, tensors, with_number, with_subnormals
from tests.interpreter.test_passes import BOXES, run_passes, tile

NAN, INF = float("nan"), float("inf")
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
# The same kinds with few positions, because each tile of one position is a program.
FEW = [
    Case("1d_causal_dilated", (4,), 2, 3, 2, padding="causal", dilation=2),
    Case("2d_stride_slack", (6, 6), 2, 3, 2, stride=3),
    Case("2d_dilated_stride", (4, 4), 2, 3, 2, stride=2, dilation=2, padding=1),
    Case("2d_groups", (3, 3), 4, 6, 2, groups=2),
    Case("2d_depthwise", (3, 3), 3, 3, 2, groups=3),
    Case("3d_stride_same", (3, 2, 3), 2, 2, 2, stride=2, padding="same"),
]
# Tiles of one position, and tiles without `tl.dot`, whose positions read only their own windows. No zero of a band is
# multiplied.
TILES_WITHOUT_BAND = {
    "dot": lambda channels: tile(1, 1, channels),
    "swapped": lambda channels: tile(1, 1, channels, swap=True),
    "split": lambda channels: tile(1, 1, channels, split=2),
    "reduced": lambda channels: tile(1, 1, channels, dot=False),
    "reduced_1x2": lambda channels: tile(1, 2, channels, dot=False),
}


def marks(case, tile_name):
    """One tile with all cases, and all tiles with one case, are in every run; the others are nightly."""
    in_every_run = tile_name == "dot" or case.name == "2d_stride_slack"
    return () if in_every_run else pytest.mark.nightly


CASES_AND_TILES = [pytest.param(c, w, id=f"{c.name}-{w}", marks=marks(c, w)) for c in FEW for w in TILES_WITHOUT_BAND]


def padded_taps(case):
    """Whether the tap of each weight `(*out_spatial, *kernel, 1, 1)` is on padding."""
    geo = case.geometry
    one_sample = Case(**(vars(case) | {"batch": 1}))
    t = tensors(one_sample)
    t.x, t.g = torch.ones_like(t.x), torch.ones_like(t.g)
    return (expected(one_sample, t)["dw"] == 0).view(geo.weight_shape)


def rotated_values(case, tile_name):
    """NaN, Inf and -Inf, in an order that depends on the case and the tile."""
    n = FEW.index(case) + list(TILES_WITHOUT_BAND).index(tile_name)
    return [(NAN, INF, -INF)[(n + i) % 3] for i in range(3)]


# An interpreted program takes 30 ms, so one call tests all tensors, each with another value. x reaches y and dw; g
# reaches dx, dw and db; the bias reaches y. The kinds of the results show which tensor a number came from.
@pytest.mark.slow
@pytest.mark.parametrize(("case", "tile_name"), CASES_AND_TILES)
def test_tiles_without_a_band_spread_numbers_as_in_the_definition(case, tile_name):
    t = tensors(case)
    for seed, (name, value) in enumerate(zip(("x", "g", "bias"), rotated_values(case, tile_name), strict=True)):
        t = with_number(t, name, value, seed)
    got, want = run_passes(case, t, TILES_WITHOUT_BAND[tile_name]), expected(case, t)
    for key, exact in want.items():
        assert 0 < exact.isfinite().sum() < exact.numel(), key
        assert torch.equal(number_kinds(got[key]), number_kinds(exact)), key


@pytest.mark.slow
@pytest.mark.parametrize(("case", "tile_name"), CASES_AND_TILES)
def test_a_non_finite_weight_reaches_the_sums_that_read_it(case, tile_name):
    """These kernels do not read the weight of a tap on padding, so it is no part of a sum."""
    t = tensors(case)
    outside = padded_taps(case)
    inside = (~outside).nonzero()
    *values, on_padding = rotated_values(case, tile_name)
    for place, value in zip((inside[len(inside) // 3], inside[-1]), values, strict=True):
        t.weight[tuple(place)] = value
    want = expected(case, t)
    got = run_passes(case, replace(t, weight=t.weight.masked_fill(outside, on_padding)), TILES_WITHOUT_BAND[tile_name])
    for key, exact in want.items():
        assert torch.equal(number_kinds(got[key]), number_kinds(exact)), key


@pytest.mark.slow
def test_boxes_read_the_weights_of_taps_on_padding():
    case = next(c for c in BOXES if c.name == "boxes")
    t = tensors(case, torch.float32)
    outside = padded_taps(case)
    assert outside.any()
    t.weight.masked_fill_(outside, NAN)
    got = run_passes(case, t, lambda _: TileConfig(1, 1, 16, 16, 16, descriptor=True))
    assert torch.equal(number_kinds(got["y"]), number_kinds(expected(case, t)["y"]))


def in_tiles_of(bad, case, rows, cols, groups):
    """Whether each number `(B, *spatial, channels)` has the sample, the tile and the group of a bad one."""
    lead = [1] * (4 - case.geometry.ndim)
    full = bad.view(len(bad), *lead, *bad.shape[1:])
    height, width = full.shape[3:5]
    tile_rows, tile_cols = -(-height // rows), -(-width // cols)
    padded = full.new_zeros(*full.shape[:3], tile_rows * rows, tile_cols * cols, full.shape[-1])
    padded[:, :, :, :height, :width] = full
    blocks = padded.view(*full.shape[:3], tile_rows, rows, tile_cols, cols, groups, -1)
    affected = blocks.any(-1, keepdim=True).any(-3, keepdim=True).any(-5, keepdim=True).expand(blocks.shape)
    return affected.reshape(padded.shape)[:, :, :, :height, :width].reshape(bad.shape)


@pytest.mark.slow
@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_a_band_tile_spreads_numbers_only_in_their_sample_and_tile(case):
    rows, cols = (2 if case.geometry.ndim > 1 else 1), 2
    values = (NAN, INF) if SOME.index(case) % 2 else (INF, NAN)
    t = with_number(with_number(tensors(case), "x", values[0], seed=6), "g", values[1], seed=7)
    got, want = run_passes(case, t, lambda channels: tile(rows, cols, channels)), expected(case, t)
    for key in ("y", "dx"):
        bad = ~want[key].isfinite()
        assert bad.any(), key
        assert not (bad & got[key].isfinite()).any(), key
        assert not (~got[key].isfinite() & ~in_tiles_of(bad, case, rows, cols, case.groups)).any(), key
    for key in ("dw", "db"):
        assert torch.equal(number_kinds(got[key]), number_kinds(want[key])), key


def test_a_band_tile_does_not_spread_a_weight_to_other_positions():
    case = BY_NAME["2d_stride_slack"]
    t = with_number(tensors(case), "weight", NAN)
    got, want = run_passes(case, t, lambda channels: tile(2, 2, channels)), expected(case, t)
    for key, exact in want.items():
        assert torch.equal(number_kinds(got[key]), number_kinds(exact)), key


@pytest.mark.parametrize("name", FUSED_NAMES)
def test_activations_of_non_finite_numbers(name):
    """Values and derivatives have the same kinds as torch's."""
    geo, act = BY_NAME["1d_one"].geometry, parse_activation(name)
    z = torch.tensor([NAN, INF, -INF, 1.0])
    ones, config = torch.ones(geo.weight_shape), TileConfig(1, 1, 16, 16, 16)
    y = torch.zeros(len(z), *geo.bias_shape)
    launch.forward(z[:, None, None], ones, None, y, None, Problem(geo, act, "triton"), config)
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
@pytest.mark.parametrize("tile_name", ["dot", "reduced"])
def test_subnormal_numbers_are_not_flushed(tile_name, dtype, name):
    case = Case("2d", (4, 4), 3, 4, 3, batch=3)
    t = with_subnormals(tensors(case, dtype), name)
    got, want = run_passes(case, t, TILES_WITHOUT_BAND[tile_name], Activation("linear")), expected(case, t)
    spacing = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    for key in {"x": ("y", "dw"), "g": ("dx", "dw", "db"), "weight": ("y", "dx")}[name]:
        assert want[key].abs().max() > 50 * spacing, key
        assert (got[key].double() - want[key]).abs().max() <= case.geometry.window * spacing, key
