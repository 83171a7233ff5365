"""The overhead of a call besides its arithmetic: importing, the first call, and the host's time for a call."""

from __future__ import annotations

import statistics
import subprocess
import sys
import timeit
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import PEERS
from lc_triton.core.geometry import Geometry

PROCESSES = 5
ROUNDS, CALLS = 60, 500
TINY = "LocalConv2d(4, 4, 3, input_size=8)"  # so small that only the host's time counts

_IMPORT = """
import time, torch
start = time.perf_counter()
import lc_triton
print(time.perf_counter() - start)
"""
_FIRST = f"""
import time, torch
start = time.perf_counter()
import lc_triton
layer = lc_triton.{TINY}
layer(torch.randn(2, 4, 8, 8)).sum().backward()
print(time.perf_counter() - start)
"""


def overhead() -> dict[str, float]:
    """Seconds of fresh processes, microseconds of calls in this one."""
    import lc_triton

    torch.set_num_threads(1)
    # One position and one channel: next to no arithmetic.
    x, geo, peer = torch.randn(1, 1, 3, 3), Geometry.make((3, 3), 1, 1, 3), PEERS["F.unfold + bmm"]
    layer, conv2d = lc_triton.LocalConv2d(1, 1, 3, input_size=3), torch.nn.Conv2d(1, 1, 3)
    weight, bias, shared, shared_bias = layer.weight, layer.bias, conv2d.weight, conv2d.bias
    theirs = [peer.weight(weight.detach(), geo).requires_grad_(), torch.zeros(geo.out_channels, *geo.out_spatial)]

    def ours() -> Tensor:
        return lc_triton.local_conv(x, weight, bias)

    def convolution() -> Tensor:
        return F.conv2d(x, shared, shared_bias)

    fresh = {"import_s": _processes(_IMPORT), "first_step_s": _processes(_FIRST)}
    with torch.no_grad():
        forwards = _in_turns(forward=ours, conv2d_forward=convolution)
        layers = _in_turns(layer=lambda: layer(x), conv2d_layer=lambda: conv2d(x))
    graphs = _in_turns(graph=ours, conv2d_graph=convolution)
    steps = _in_turns(
        step=lambda: ours().sum().backward(),
        conv2d_step=lambda: convolution().sum().backward(),
        unfold_bmm_step=lambda: peer.forward(x, *theirs, geo).sum().backward(),
    )
    return {**fresh, **forwards, **layers, **graphs, **steps, **(_launches() if find_spec("triton") else {})}


def _launches() -> dict[str, float]:
    """The host's part of a forward's launch up to the driver, which is not there: bound, and by Triton's look-ups."""
    from lc_triton import launch
    from lc_triton.core.problem import Problem
    from lc_triton.launch.absent import absent_gpu
    from lc_triton.launch.build import call_args
    from lc_triton.launch.plan import KERNELS, plan_for

    geo = Geometry.make((20, 20), 16, 16, 3)
    problem = Problem(geo, backend="triton")
    shapes = (32, *geo.in_spatial, 16), geo.weight_shape, geo.bias_shape, (32, *geo.out_spatial, 16)
    x, weight, bias, y = (torch.empty(shape, dtype=torch.float16) for shape in shapes)
    with absent_gpu(keep=False):
        bound = launch.bind_forward(x, weight, bias, y, None, problem)
        plan = plan_for("forward", problem, x, weight, None)
        args = call_args("forward", problem, plan.config, dtype=torch.float16, batch=32)
        options = {"num_warps": plan.config.num_warps, "num_stages": plan.config.num_stages}
        return _in_turns(
            lookup=lambda: plan_for("forward", problem, x, weight, None),
            launch=lambda: bound(x, weight, bias, y, None),
            triton_launch=lambda: KERNELS["forward"][(1,)](*args, **options),
        )


def _processes(code: str) -> float:
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout]
    for _ in range(PROCESSES):
        runs.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    return statistics.median(float(run) for run in runs[1:])


def _in_turns(**calls: Callable[[], object]) -> dict[str, float]:
    """Microseconds of each call, the median of `ROUNDS` in which all take their turn: a machine's clock may drift."""
    rounds = [{name: timeit.timeit(call, number=CALLS) for name, call in calls.items()} for _ in range(ROUNDS + 1)]
    return {f"{name}_us": 1e6 * statistics.median(r[name] for r in rounds[1:]) / CALLS for name in calls}
