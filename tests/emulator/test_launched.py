"""First and cached launches through Triton's own driver and C launcher, on a libcuda that calls the emulator."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator.launched import LAYERS
from tests.emulator.stand_in import build

pytestmark = [
    pytest.mark.compile,
    pytest.mark.subprocess,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="Triton's launcher is compiled by a C compiler"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """The folder of the library."""
    folder = tmp_path_factory.mktemp("stand_in")
    build(folder)
    return folder


@pytest.fixture
def environment(stand_in):
    """Of a process whose libcuda is the stand-in."""
    path = f"{stand_in}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    return os.environ | {"TRITON_LIBCUDA_PATH": str(stand_in), "LD_LIBRARY_PATH": path, "PYTHONPATH": str(ROOT)}


def launched(environment, *args):
    """The number of calls, after a check that none of them failed."""
    command = [sys.executable, "-m", "tests.emulator.launched", *args]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (count,) = re.findall(r"^(\d+) calls, 0 wrong$", done.stdout, re.M)
    return int(count)


@pytest.mark.slow
def test_a_layer(environment):
    assert launched(environment, "--layers", "odd", "--dtypes", "bf16") > 25


@pytest.mark.nightly
@pytest.mark.parametrize("arch", ["80", "90"])
@pytest.mark.parametrize("layer", [case.name for case in LAYERS])
def test_all_layers(environment, arch, layer):
    types = ["bf16", "fp32", "fp64", "bf16/fp32"]
    assert launched(environment, "--layers", layer, "--arch", arch, "--dtypes", *types) > 100


@pytest.mark.nightly
def test_descriptors(environment):
    assert launched(environment, "--layers", "boxes", "small", "--descriptors", "--dtypes", "bf16", "fp32") > 100
