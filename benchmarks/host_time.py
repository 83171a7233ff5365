"""The host's time for a call up to the driver, without a GPU, and that of `F.conv2d` in the same process.

Triton's own driver and launcher run in full on a stand-in `libcuda` that does nothing at a launch. CPU tensors take the
place of CUDA tensors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS, WARM = 9, 200
ROOT = Path(__file__).parents[1]


def host_time() -> dict[str, float]:
    """Microseconds of each call, timed in a process of its own, which loads the stand-in in place of CUDA's driver."""
    from tests.emulator.stand_in import build

    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        own = {
            "TRITON_LIBCUDA_PATH": folder,
            "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}",
            "TRITON_CACHE_DIR": f"{folder}/cache",  # of kernels that are compiled to PTX only
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "benchmarks.host_time"]
        done = subprocess.run(command, env=os.environ | own, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _microseconds(call: Callable[[], object], calls: int) -> float:
    """The fastest of some rounds, in this thread's own time: other processes do not count."""
    for _ in range(WARM):
        call()
    found = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        for _ in range(calls):
            call()
        found.append((time.thread_time() - start) / calls * 1e6)
    return min(found)


def _of(name: str, forward: Callable[[], Tensor], leaves: tuple[Tensor, ...]) -> dict[str, float]:
    """A forward without gradients, one with a graph, and forward and backward of all leaves."""
    y = forward()
    g = torch.randn_like(y)
    with torch.no_grad():
        without = _microseconds(forward, 1000)
    return {
        f"{name}_us": without,
        f"{name}_graph_us": _microseconds(forward, 1000),
        f"{name}_step_us": _microseconds(lambda: torch.autograd.grad(forward(), leaves, g), 300),
    }


def _time_here() -> dict[str, float]:
    """The times, in a process whose CUDA driver is the stand-in."""
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime.driver import driver

    import lc_triton
    from lc_triton.ops import run
    from tests.emulator.driver import ptx_as_cubin

    torch.set_num_threads(1)
    vars(run)["resolve"] = lambda device_type: "triton"  # for CPU tensors too
    cuda = CudaDriver()
    cuda.get_current_device = lambda: 0
    cuda.get_current_stream = lambda device: 0
    cuda.get_device_capability = lambda device: (9, 0)
    driver.set_active(cuda)
    x = torch.randn(32, 16, 20, 20, dtype=torch.float16).contiguous(memory_format=torch.channels_last).requires_grad_()
    layer = lc_triton.LocalConv2d(16, 16, 3, input_size=20, activation="relu", dtype=torch.float16)
    assert layer.bias is not None
    leaves = x, layer.weight, layer.bias
    tiny = torch.randn(1, 1, 3, 3, requires_grad=True)
    shared, bias = torch.randn(1, 1, 3, 3, requires_grad=True), torch.randn(1, requires_grad=True)
    with ptx_as_cubin():
        return {
            **_of("local_conv", lambda: lc_triton.local_conv(*leaves, activation="relu"), leaves),
            **_of("layer", lambda: layer(x), leaves),
            **_of("conv2d", lambda: F.conv2d(tiny, shared, bias), (tiny, shared, bias)),
        }


if __name__ == "__main__":
    print(json.dumps(_time_here()))
