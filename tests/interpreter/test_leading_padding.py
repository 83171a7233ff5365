"""Padding of a leading dimension whose sizes are all 1: windows lie on it, and kernels must load zeros."""

import pytest
import torch

import lc_triton
from lc_triton import launch
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.launch import low_rank
from lc_triton.tiles.config import TileConfig
from tests.cases import assert_close

ARGUMENTS = {"input_size": (1, 4, 4), "stride": (3, 1, 1), "padding": (1, 0, 0), "dtype": torch.float64}


def layer_of(kind):
    if kind == "low rank":
        return lc_triton.LowRankLocalConv3d(2, 4, (1, 3, 3), rank=2, **ARGUMENTS)
    layer = lc_triton.LocalConv3d(2, 4, (1, 3, 3), share="all" if kind == "shared" else None, **ARGUMENTS)
    return lc_triton.quantize_weights(layer, "int4") if kind == "int4" else layer


@pytest.mark.parametrize("kind", ["layer", "shared", "int4", "low rank"])
def test_windows_on_leading_padding_read_zeros(kind, monkeypatch):
    monkeypatch.setattr(low_rank, "pays", lambda *_: True)
    torch.manual_seed(0)
    layer, x = layer_of(kind), torch.randn(2, 2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]
    found = []
    for backend in ("triton", "cpu"):
        with lc_triton.backend(backend):
            y = layer(x)
            found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for got, want in zip(*found, strict=True):
        assert_close(got, want)
    assert not found[0][1].any()


@pytest.mark.parametrize(
    "config", [TileConfig(1, 2, 16, 16, 16), TileConfig(1, 1, 4, 2, 16, dot=False)], ids=["dot", "without dot"]
)
def test_tiles_of_the_passes(config):
    geo = Geometry.make((1, 4, 4), 2, 4, (1, 3, 3), stride=(3, 1, 1), padding=(1, 0, 0))
    problem = Problem(geo, backend="triton")
    x, g, w = (torch.randn(shape) for shape in ((2, *geo.in_spatial, 2), (2, *geo.out_spatial, 4), geo.weight_shape))
    y, dx, dw = (torch.full_like(like, float("nan")) for like in (g, x, w))
    launch.forward(x, w, None, y, None, problem, config)
    launch.input_grad(g, w, None, dx, problem, config)
    launch.weight_grad(x, g, dw, None, problem, config)
    assert [bool(result.any()) for result in (y, dx, dw)] == [False] * 3
