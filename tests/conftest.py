import os

import pytest
import torch

from lc_triton._cpu import small

# Keras reads it when it is first imported, whichever test, documentation or example that is: one backend a process.
os.environ["KERAS_BACKEND"] = "torch"


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")  # may go when the machine that runs the tests has one
    for item in items:
        if item.get_closest_marker("gpu"):  # not its keywords: the folder of a checkout may have that name
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=["in_blocks", "at_once"])
def either_size(request, monkeypatch):
    """All here holds for a layer that is cut into blocks, and for one so small that it is not."""
    for most in ("MOST_NUMBERS", "MOST_FLAT_NUMBERS"):
        monkeypatch.setattr(small, most, {"in_blocks": 0, "at_once": 1 << 30}[request.param])
