"""The first training step of a network under Triton's own CUDA driver and launcher, on a `libcuda` without a GPU."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import lc_triton
from tests.ahead.test_precompile import network
from tests.emulator.stand_in import build

STEP = """
import ctypes, json, sys
lib = ctypes.CDLL(sys.argv[1] + "/libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
from tests.emulator.stand_in import CALLBACK
launches = []
count = CALLBACK(lambda *args: launches.append(1))
lib.stand_in_set(count, 90)
import torch
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_capability = lambda device=None: (9, 0)
from triton import knobs
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime.driver import driver
gpu = CudaDriver()
gpu.get_current_device = lambda: 0
gpu.get_current_stream = lambda device: 0
driver.set_active(gpu)
hits = []
knobs.compilation.listener = lambda *args, cache_hit, **kwargs: hits.append(cache_hit)
from lc_triton.ops import run
run.resolve = lambda device_type: "triton"  # CPU tensors stand for CUDA tensors: nothing reads them
from tests.ahead.test_precompile import network
model = network()
model(torch.zeros(32, 3, 8, 8)).sum().backward()
print(json.dumps([hits.count(False), hits.count(True), len(launches)]))
"""


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.subprocess
@pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver is C: may go where all machines have gcc")
def test_a_first_step_compiles_nothing(tmp_path):
    build(tmp_path)
    result = lc_triton.precompile(network(), [(32, 3, 8, 8)], out=tmp_path / "kernels")
    assert result.host_module
    settings = {"TRITON_CACHE_DIR": str(tmp_path / "kernels"), "TRITON_LIBCUDA_PATH": str(tmp_path), "PATH": ""}
    step = [sys.executable, "-c", STEP, str(tmp_path)]
    done = subprocess.run(step, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compiled, found, launches = json.loads(done.stdout.splitlines()[-1])
    assert (compiled, found > 2, launches >= found) == (0, True, True)  # PATH is empty: no C compiler ran either
