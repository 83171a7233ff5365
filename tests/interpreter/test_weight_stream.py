"""Weight gradients with `stream`, interpreted: a program computes several blocks of k for one block of samples."""

from dataclasses import replace

import pytest
import torch

from lc_triton import launch
from lc_triton.core.activations import parse_activation
from lc_triton.core.problem import Problem
from lc_triton.tiles.config import TileConfig
from tests.cases import BY_NAME, Case, assert_close, expected, tensors

NAN = float("nan")

TILES = {
    "1x1": TileConfig(1, 1, 16, 16, 16, stream=2),
    "2x2": TileConfig(2, 2, 16, 16, 32, stream=4),
    "2x4_swapped": TileConfig(2, 4, 16, 16, 16, swap=True, stream=4),
    "all": TileConfig(1, 2, 16, 16, 16, stream=1024),
}


def weight_grad(case, t, config, with_bias=True):
    dw, db = torch.full_like(t.weight, NAN), torch.full_like(t.bias, NAN) if with_bias else None
    launch.weight_grad(t.x, t.g, dw, db, Problem(case.geometry, backend="triton"), config)
    return dw, db


@pytest.mark.slow
@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize(
    "case", ["1d", "1d_causal_dilated", "2d_asymmetric", "2d_dilated_stride_gcd", "2d_groups", "3d"]
)
def test_values(case, name):
    case = BY_NAME[case]
    t = tensors(case)
    want = expected(case, t)
    for got, key in zip(weight_grad(case, t, TILES[name]), ("dw", "db"), strict=True):
        assert_close(got, want[key], 1e-12, key)


def test_without_a_bias():
    case = BY_NAME["1d"]
    t = tensors(case)
    assert_close(weight_grad(case, t, TILES["2x2"], with_bias=False)[0], expected(case, t)["dw"])


@pytest.mark.parametrize("swap", [False, True])
def test_the_gradient_of_the_activation(swap):
    case, act = BY_NAME["1d"], parse_activation("tanh")
    t = tensors(case)
    y = expected(case, t, act)["y"]
    dz = t.g * (1 - y * y)
    want = expected(case, replace(t, g=dz))
    dw, db, got = torch.full_like(t.weight, NAN), torch.full_like(t.bias, NAN), torch.full_like(t.g, NAN)
    config = TileConfig(1, 2, 16, 16, 16, swap=swap, stream=2)
    launch.weight_grad(t.x, t.g, dw, db, Problem(case.geometry, act, "triton"), config, saved=y, dz=got)
    assert_close(got, dz)
    assert_close(dw, want["dw"])
    assert_close(db, want["db"])


def test_boxes():
    case = Case("boxes", (5, 4), 3, 16, 3, stride=(2, 1), padding=1)
    t = tensors(case, torch.float32)
    dw, db = weight_grad(case, t, TileConfig(1, 1, 16, 16, 16, descriptor=True, stream=2))
    assert_close(dw, expected(case, t)["dw"], 2e-6)
    assert_close(db, expected(case, t)["db"], 2e-6)


@pytest.mark.parametrize("batch", [1, 16, 17, 33])
def test_any_batch(batch):
    """The tile is chosen for batches of one block, and loops over the blocks of larger batches."""
    case = replace(BY_NAME["2d_asymmetric"], batch=batch)
    t = tensors(case)
    dw, db = weight_grad(case, t, TILES["2x2"])
    assert_close(dw, expected(case, t)["dw"])
    assert_close(db, expected(case, t)["db"])
