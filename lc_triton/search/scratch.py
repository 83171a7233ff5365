"""The tensors that kernels are tried on: separate buffers, so that no tensor of the caller is read or written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lc_triton import launch
from lc_triton.core.problem import Problem
from lc_triton.search import updating
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.task import Task

Tensors = dict[str, Tensor]

INPUTS = {"forward": ("x", "weight", "bias"), "input_grad": ("g", "weight"), "weight_grad": ("x", "g")}
OUTPUTS = {"forward": ("y",), "input_grad": ("dx",), "weight_grad": ("dw", "db")}


def make(task: Task, device: torch.device) -> Tensors:
    """Random inputs, the same each time, and outputs; torch's global generator does not change."""
    if task.update is not None:
        return updating.make(task, device)
    generator = torch.Generator(device).manual_seed(0)
    tensors: Tensors = {}
    for name, (shape, dtype) in layout(task).items():
        if name in OUTPUTS[task.pass_name]:
            tensors[name] = torch.empty(shape, dtype=dtype, device=device)
        else:
            drawn = torch.randn(shape, dtype=torch.float32, device=device, generator=generator)
            # Outputs of unit size, whatever the window: nothing overflows float16.
            drawn *= task.geometry.window**-0.5 if name == "weight" else 1.0
            tensors[name] = drawn.to(dtype)
    return tensors


def nbytes(task: Task) -> int:
    """Bytes of the tensors that `make` returns."""
    return sum(shape.numel() * dtype.itemsize for shape, dtype in layout(task).values())


def bind(task: Task, tensors: Tensors, config: TileConfig) -> Callable[[], None]:
    """One launch, whose kernel is compiled now and run when the result is called."""
    if task.update is not None:
        return updating.bind(task, tensors, config)
    problem = Problem(task.geometry, backend="triton", precision=task.precision)
    t = tensors
    args: tuple[Tensor | None, ...]
    if task.pass_name == "forward":
        args = t["x"], t["weight"], t["bias"], t["y"], None
        return partial(launch.bind_forward(*args, problem, config), *args)
    if task.pass_name == "input_grad":
        args = t["g"], t["weight"], None, t["dx"]
        return partial(launch.bind_input_grad(*args, problem, config), *args)
    args = t["x"], t["g"], None, t["dw"], t["db"], None
    return partial(launch.bind_weight_grad(*args, problem, config), *args)


def run(task: Task, tensors: Tensors, config: TileConfig) -> None:
    """One launch."""
    bind(task, tensors, config)()


def layout(task: Task) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of each tensor of a pass; parameters have the weight's dtype."""
    if task.update is not None:
        return updating.layout(task)
    geo = task.geometry
    inner = (task.batch, *geo.in_spatial, geo.in_channels)
    outer = (task.batch, *geo.out_spatial, geo.out_channels)
    data, parameter = getattr(torch, task.dtype), getattr(torch, task.weight_dtype)
    known = {
        "x": (inner, data),
        "dx": (inner, data),
        "g": (outer, data),
        "y": (outer, data),
        "weight": (geo.weight_shape, parameter),
        "dw": (geo.weight_shape, parameter),
        "bias": (geo.bias_shape, parameter),
        "db": (geo.bias_shape, parameter),
    }
    return {
        name: (torch.Size(known[name][0]), known[name][1])
        for name in (*INPUTS[task.pass_name], *OUTPUTS[task.pass_name])
    }
