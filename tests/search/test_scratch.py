"""Compilation of the kernels of a search."""

import pytest
import torch

from lc_triton.launch.absent import absent_gpu
from lc_triton.search import scratch
from lc_triton.tiles import model
from lc_triton.tiles.config import PASSES
from tests.search.fakes import H200, task


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("pass_name", PASSES)
def test_compiling_does_not_run_a_kernel(pass_name):
    """A faulty kernel must fail in its own check, not while others are compiled."""
    kernel = task(pass_name, batch=4)
    config = next(c for _, c in model.ranked(kernel, H200) if c.split == 1)
    with absent_gpu() as gpu:
        launch = scratch.bind(kernel, scratch.make(kernel, torch.device("cpu")), config)
        assert not gpu.launches
        launch()
        assert len(gpu.launches) == 1
