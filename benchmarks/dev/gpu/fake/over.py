"""Host time of a call up to the driver, which is the stand-in beside this file, and of F.conv2d in the same process.

    gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -I TRITON/backends/nvidia/include -o benchmarks/dev/gpu/fake/libcuda.so.1 benchmarks/dev/gpu/fake/fake.c
    python benchmarks/dev/gpu/fake/over.py

CPU tensors stand for CUDA tensors: the backend is "triton", and Triton's own driver and launcher run in full.
"""

import os
import sys
import time

sys.path[:0] = [os.path.dirname(__file__), "."]
import fakegpu
import torch
import torch.nn.functional as F
import triton

import lc_triton
from lc_triton.ops import run

torch.set_num_threads(1)
run.resolve = lambda device_type: "triton"  # for CPU tensors too


def microseconds(call, calls=1000, rounds=9):
    """The fastest of some rounds, as this process's own time: another process does not count."""
    for _ in range(200):
        call()
    found = []
    for _ in range(rounds):
        start = time.thread_time()
        for _ in range(calls):
            call()
        found.append((time.thread_time() - start) / calls * 1e6)
    return min(found)


def lines(name, forward, leaves):
    """Forward without gradients, with a graph, and forward and backward of all leaves."""
    y = forward()
    g = torch.randn_like(y)
    with torch.no_grad():
        yield f"{name}, no_grad", microseconds(forward)
    yield f"{name}, graph", microseconds(forward)
    yield f"{name}, step x,w,b", microseconds(lambda: torch.autograd.grad(forward(), leaves, g), 300)


def local_conv():
    x = torch.randn(32, 16, 20, 20, dtype=torch.float16).contiguous(memory_format=torch.channels_last).requires_grad_()
    layer = lc_triton.LocalConv2d(16, 16, 3, input_size=20, activation="relu", dtype=torch.float16)
    leaves = (x, layer.weight, layer.bias)
    yield from lines("local_conv", lambda: lc_triton.local_conv(*leaves, activation="relu"), leaves)
    yield from lines("layer", lambda: layer(x), leaves)


def conv2d():
    x, weight, bias = (torch.randn(size, requires_grad=True) for size in ((1, 1, 3, 3), (1, 1, 3, 3), (1,)))
    yield from lines("F.conv2d", lambda: F.conv2d(x, weight, bias), (x, weight, bias))


if __name__ == "__main__":
    print("triton", triton.__version__, "torch", torch.__version__)
    for name, took in (*local_conv(), *conv2d()):
        print(f"{name:32s} {took:8.2f} us", flush=True)
    print("launches", fakegpu.launches())
