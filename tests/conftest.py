import os

import pytest
import torch

# Keras reads it when it is first imported, whichever test, documentation or example that is: one backend a process.
os.environ["KERAS_BACKEND"] = "torch"


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")  # may go when the machine that runs the tests has one
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
