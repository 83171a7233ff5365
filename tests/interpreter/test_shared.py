"""The kernels of layers whose positions share filters, interpreted with given tiles and with the model's."""

from dataclasses import replace

import pytest
import torch

import lc_triton
from lc_triton import launch
from lc_triton.core.problem import Problem
from lc_triton.errors import ArgumentValueError
from lc_triton.launch import passes as passes_module
from lc_triton.launch.plan import LaunchPlan
from lc_triton.tiles.config import TileConfig
from tests.cases import Case, assert_close, assert_results_close, expected, tensors
from tests.interpreter.test_passes import NAN, tile
from tests.shared_cases import SHARED


def run_passes(case, t, gather_tile, region_tile):
    """y, dx, dw and db by the kernels, into outputs full of NaN."""
    geo, problem = case.geometry, Problem(case.geometry, backend="triton")
    y = torch.full((case.batch, *geo.bias_shape), NAN, dtype=t.x.dtype)
    dx = torch.full_like(t.x, NAN)
    dw, db = torch.full_like(t.weight, NAN), torch.full_like(t.bias, NAN)
    launch.forward(t.x, t.weight, t.bias, y, None, problem, gather_tile(geo.out_channels))
    launch.input_grad(t.g, t.weight, None, dx, problem, gather_tile(geo.in_channels))
    launch.weight_grad(t.x, t.g, dw, db, problem, region_tile)
    return {"y": y, "dx": dx, "dw": dw, "db": db}


REGION_TILES = {
    "small": TileConfig(1, 1, 16, 16, 16),
    "swapped": TileConfig(1, 1, 16, 32, 32, swap=True),
    "split": TileConfig(1, 1, 16, 16, 32, split=4),
}
GATHER_TILES = {
    "2x2": {"rows": 2, "cols": 2},
    "2x4 swapped": {"rows": 2, "cols": 4, "swap": True, "block_k": 32},
    "1x2 reduced": {"rows": 1, "cols": 2, "dot": False},
}


FEW = ("rows", "1d_tile")  # the others run the same code of a kernel


@pytest.mark.parametrize(
    ("case", "region_tile", "gather_tile"),
    [
        pytest.param(
            case, r, g, id=f"{case.name}-{r}-{g}", marks=pytest.mark.slow if case.name in FEW else pytest.mark.nightly
        )
        for n, case in enumerate(SHARED)
        for r, g in [(list(REGION_TILES)[n % 3], list(GATHER_TILES)[n % 3])]
    ],
)
def test_values(case, region_tile, gather_tile):
    t = tensors(case)
    got = run_passes(
        case, t, lambda channels: tile(channels=channels, **GATHER_TILES[gather_tile]), REGION_TILES[region_tile]
    )
    assert_results_close(got, expected(case, t))


FEW_POSITIONS = Case("few_positions", (4,), 1, 2, 2, share=2, batch=1)


@pytest.mark.parametrize(
    "case", [FEW_POSITIONS, *(pytest.param(c, marks=pytest.mark.nightly) for c in SHARED[3:12:4])], ids=lambda c: c.name
)
def test_gradients_of_two_orders_with_the_models_tiles(case):
    t = tensors(case)
    leaves = [v.clone().requires_grad_() for v in (t.x, t.weight, t.bias)]

    def results():
        y = lc_triton.local_conv(*leaves, **case.arguments, data_format="channels_last", activation="tanh")
        first = torch.autograd.grad(y, leaves, t.g, create_graph=True)
        second = torch.autograd.grad(sum(v.square().sum() for v in first), leaves)
        return [y, *first, *second]

    with lc_triton.backend("triton"):
        got = results()
    with lc_triton.backend("reference"):
        want = results()
    for a, b in zip(got, want, strict=True):
        assert_close(a, b.detach(), 1e-11)


def test_an_ensemble_of_shared_filters():
    x, weights = torch.randn(2, 1, 4, dtype=torch.float64), torch.randn(3, 2, 2, 1, 2, dtype=torch.float64)
    arguments = {"activation": "tanh", "share": ("tile", 2)}
    with lc_triton.backend("triton"):
        ys = torch.func.vmap(lambda w: lc_triton.local_conv(x, w, **arguments))(weights)
    for y, weight in zip(ys, weights, strict=True):
        with lc_triton.backend("reference"):
            assert_close(y, lc_triton.local_conv(x, weight, **arguments))


def test_tensor_descriptors():
    case = next(c for c in SHARED if c.name == "1d_tile")
    case = replace(case, in_spatial=(5,), channels=16, filters=16, share=("tile", 2))
    t = tensors(case, torch.float32)
    box = TileConfig(1, 1, 16, 16, 16, descriptor=True)
    assert_results_close(run_passes(case, t, lambda _: box, REGION_TILES["small"]), expected(case, t), 2e-6)


def test_weight_gradients_have_the_same_bits_each_time():
    case = next(c for c in SHARED if c.name == "1d_all")
    t = tensors(case, torch.float32)
    found = [run_passes(case, t, lambda n: tile(1, 1, n), REGION_TILES["split"])["dw"] for _ in range(2)]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "config",
    [
        TileConfig(1, 2, 16, 16, 16),
        TileConfig(1, 1, 16, 16, 16, stream=2),
        TileConfig(1, 1, 16, 16, 16, descriptor=True),
        TileConfig(1, 1, 16, 4, 16, dot=False),
    ],
)
def test_weight_gradient_tiles_that_do_not_own_a_region_are_refused(config):
    problem = Problem(FEW_POSITIONS.geometry, backend="triton")
    with pytest.raises(ArgumentValueError, match=r"of one position, with tl\.dot and no stream or descriptor"):
        LaunchPlan.make("weight_grad", problem, config)
    LaunchPlan.make("forward", problem, config)


def test_the_number_of_rows_needs_64_bits(monkeypatch):
    case = next(c for c in SHARED if c.name == "1d_tile")
    t = tensors(case)
    monkeypatch.setattr(passes_module, "MOST_ROWS", 1)
    assert_results_close(run_passes(case, t, lambda n: tile(1, 1, n), REGION_TILES["split"]), expected(case, t))
