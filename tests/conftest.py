import os
import subprocess
from pathlib import Path

import pytest
import torch

# Keras reads the variable when a test, the documentation or an example imports it first: one backend a process.
os.environ["KERAS_BACKEND"] = "torch"

# The mark that a test needs if it starts a program of this name.
MARK_OF = {"python": "subprocess", "ptxas": "compile"}
_started: list[str] = []
_popen_init = subprocess.Popen.__init__


def _record_start(self, args, *more, **options):
    first = args if isinstance(args, str | bytes | os.PathLike) else args[0]
    _started.append(Path(os.fsdecode(first)).name)
    _popen_init(self, args, *more, **options)


subprocess.Popen.__init__ = _record_start


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")  # may go when the machine that runs the tests has one
    for item in items:
        if item.get_closest_marker("gpu"):  # not `item.keywords`, which has the name of the folder: it may be "gpu"
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _check_marks(request):
    """Check that a test that starts a process or compiles a kernel has its mark, so that it can be deselected."""
    _started.clear()
    yield
    for program, mark in MARK_OF.items():
        if any(name.startswith(program) for name in _started):
            assert request.node.get_closest_marker(mark), f"starts {program}: mark the test with pytest.mark.{mark}"
