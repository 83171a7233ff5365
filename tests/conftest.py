import os
import subprocess
from pathlib import Path

import pytest
import torch

# Keras reads it when it is first imported, whichever test, documentation or example that is: one backend a process.
os.environ["KERAS_BACKEND"] = "torch"

# The mark that a test needs which starts a program of this name.
MARK_OF = {"python": "subprocess", "ptxas": "compile"}
_started: list[str] = []
_start = subprocess.Popen.__init__


def _note_start(self, args, *more, **options):
    first = args if isinstance(args, str | bytes | os.PathLike) else args[0]
    _started.append(Path(os.fsdecode(first)).name)
    _start(self, args, *more, **options)


subprocess.Popen.__init__ = _note_start


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


@pytest.fixture(autouse=True)
def _marked(request):
    """A test that starts a process or compiles a kernel says so by its marks, by which people select tests."""
    _started.clear()
    yield
    for program, mark in MARK_OF.items():
        if any(name.startswith(program) for name in _started):
            assert request.node.get_closest_marker(mark), f"starts {program}: mark the test with pytest.mark.{mark}"
