"""A weight gradient with the fused activation derivative is chosen only if its shared memory fits the device."""

import pytest
import torch

from lc_triton.core.activations import Activation
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.launch.build import build
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import by_name
from lc_triton.tiles.limits import has_room_for_activation_grad, shared_bytes
from lc_triton.tiles.model import fuses_activation_grad
from lc_triton.tiles.task import Task

H100 = by_name("h100")
LAYER = Geometry.make((150, 150), 3, 64, 7, stride=3)
# 196,608 bytes of shared memory without the saved tensor.
LARGE = TileConfig(1, 2, 64, 128, 64, num_warps=8, num_stages=2)


def task(dtype, precision="ieee"):
    return Task("weight_grad", LAYER, 512, dtype, dtype, precision)


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "precision", "fits"), [("float32", "tf32", False), ("bfloat16", "ieee", True)])
def test_the_saved_tensor_needs_shared_memory(dtype, precision, fits):
    problem = Problem(LAYER, Activation("relu"), "triton", precision)
    dtypes = {"dtype": getattr(torch, dtype), "weight_dtype": getattr(torch, dtype)}
    compiled = build("weight_grad", problem, LARGE, 90, **dtypes)
    assert shared_bytes(task(dtype, precision), LARGE) <= H100.shared_bytes
    assert (compiled.metadata.shared <= H100.shared_bytes) is fits
    assert has_room_for_activation_grad(task(dtype, precision), H100, LARGE) is fits


def test_the_fused_derivative_is_not_chosen_without_room():
    assert not fuses_activation_grad(task("float32", "tf32"), H100, LARGE)
