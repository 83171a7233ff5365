"""The first checks of the kernels on a GPU: known hazards, then a small layer of every kind in every dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import lc_triton
from benchmarks.gpu.machine import Machine
from lc_triton.core.activations import LINEAR, Activation, parse_activation
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.errors import MiscompiledError, first_line
from lc_triton.ops import reference
from lc_triton.search import scratch
from lc_triton.tiles import model
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.task import Task

Check = Callable[[Machine], dict[str, Any]]

REPEATS = 8  # runs whose bits must agree: a race shows now and then
SCANNED = 8  # tiles of the model's best
# The relative error of a whole tensor, by the dtype of its products.
BARS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
TF32_BAR = 2e-3
HALF, BF16, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


def verdict(machine: Machine, pairs: dict[str, tuple[Tensor, Tensor]], bar: float) -> dict[str, Any]:
    """The errors of named tensors, and whether all are below a bar; None where there are no numbers."""
    errors = {name: machine.error(got, want) for name, (got, want) in pairs.items()}
    known = [error for error in errors.values() if error is not None]
    return {"ok": all(error < bar for error in known) if known else None, "errors": errors, "bar": bar}


# ---- hazards: known miscompilations, checked with tiles that provoke them


def registers_in_flight(pass_name: str, machine: Machine) -> dict[str, Any]:
    """Tiles whose first operand passes through registers while an asynchronous product may still read them.

    Source: Triton issue 9433. Where float32 weights stand beside bfloat16 x, and A and B are swapped, the weights are
    rounded in registers; in the weight gradient, g is, where it is taken through the activation on the way.
    """
    geo = Geometry.make((6, 6), 64, 64, 3)
    batch, bar = 32, BARS[BF16]
    machine.seed()
    x = machine.tensor((batch, *geo.in_spatial, geo.in_channels), BF16)
    g = machine.tensor((batch, *geo.out_spatial, geo.out_channels), BF16)
    weight = machine.tensor(geo.weight_shape, SINGLE, geo.window**-0.5)
    if pass_name == "weight_grad":
        return _swapped_weight_grad(machine, geo, x, g, bar)
    task = Task("forward" if pass_name == "forward" else "input_grad", geo, batch, "bfloat16", "float32")
    config = TileConfig(1, 1, 64, 32, 64, swap=True, num_warps=4, num_stages=3)
    bias = machine.tensor(geo.bias_shape, SINGLE)
    out = torch.empty_like(g if task.pass_name == "forward" else x)
    tensors = {"x": x, "g": g, "weight": weight, "bias": bias, "y": out, "dx": out}
    launch = scratch.bind(task, tensors, config)
    runs = _repeated(launch, out)
    rounded = weight.to(BF16).double()
    if task.pass_name == "forward":
        want = reference.forward(x.double(), rounded, bias.double(), geo)
    else:
        leaf = torch.zeros_like(x, dtype=DOUBLE).requires_grad_()
        (want,) = torch.autograd.grad(reference.forward(leaf, rounded, None, geo), leaf, g.double())
    return repeated_verdict(machine, runs, {task.pass_name: (runs[0], want)}, bar)


def _swapped_weight_grad(machine: Machine, geo: Geometry, x: Tensor, g: Tensor, bar: float) -> dict[str, Any]:
    from lc_triton import launch

    act = parse_activation("relu")
    assert isinstance(act, Activation)
    y = machine.tensor(g.shape, BF16).relu()
    problem = Problem(geo, act, backend="triton")
    config = TileConfig(1, 1, 64, 32, 32, swap=True, num_warps=4, num_stages=3)
    dw = torch.empty(geo.weight_shape, dtype=SINGLE, device=x.device)
    db = torch.empty(geo.bias_shape, dtype=SINGLE, device=x.device)
    dz = torch.empty_like(g)
    call = launch.bind_weight_grad(x, g, y, dw, db, dz, problem, config)
    runs = _repeated(lambda: call(x, g, y, dw, db, dz), dw)
    leaf = torch.zeros(geo.weight_shape, dtype=DOUBLE, device=x.device).requires_grad_()
    through = (g * (y > 0)).double()
    (want,) = torch.autograd.grad(reference.forward(x.double(), leaf, None, geo), leaf, through)
    return repeated_verdict(machine, runs, {"dw": (runs[0], want), "dz": (dz, through)}, bar)


def _repeated(launch: Callable[[], None], out: Tensor) -> list[Tensor]:
    """The results of some launches, each into memory that holds no number."""
    runs = []
    for _ in range(REPEATS):
        out.fill_(math.nan)
        launch()
        runs.append(out.clone())
    return runs


def repeated_verdict(
    machine: Machine, runs: list[Tensor], pairs: dict[str, tuple[Tensor, Tensor]], bar: float
) -> dict[str, Any]:
    """As `verdict`; besides, some runs of the same kernel on the same numbers must agree to the bit."""
    found = verdict(machine, pairs, bar)
    found["bits"] = machine.check(lambda: None if all(torch.equal(runs[0], run) for run in runs[1:]) else "runs differ")
    return found if found["bits"] is None else found | {"ok": False}


def narrowed_indices(machine: Machine) -> dict[str, Any]:
    """Weight gradients whose indices LLVM may narrow to 16 bits: docs/dev/nvptx-16-bit-index.md.

    24 channels are no power of two. Each of the model's best tiles is scanned as every launch is, and compared.
    """
    geo = Geometry.make((12, 12), 24, 24, 3)
    task = Task("weight_grad", geo, 64, "bfloat16", "float32")
    machine.seed()
    tensors = {
        name: machine.tensor(shape, dtype)
        if name in ("x", "g")
        else torch.empty(shape, dtype=dtype, device=machine.device)
        for name, (shape, dtype) in scratch.layout(task).items()
    }
    leaf = torch.zeros(geo.weight_shape, dtype=DOUBLE, device=machine.device).requires_grad_()
    z = reference.forward(tensors["x"].double(), leaf, None, geo)
    (want,) = torch.autograd.grad(z, leaf, tensors["g"].double())
    found: dict[str, Any] = {"tiles": {}, "ok": None}
    for _, config in model.ranked(task, machine.gpu)[:SCANNED]:
        tensors["dw"].fill_(math.nan)
        try:
            scratch.run(task, tensors, config)
        except MiscompiledError as error:
            found["tiles"][str(config)] = f"refused: {first_line(error)}"
            continue
        one = verdict(machine, {"dw": (tensors["dw"], want)}, BARS[BF16])
        found["tiles"][str(config)] = one["errors"]["dw"]
        found["ok"] = one["ok"] if found["ok"] in (None, True) else False
    return found


# ---- one small layer of every kind


@dataclass(frozen=True)
class Layer:
    """A small layer with everything that its call is given."""

    spatial: tuple[int, ...]
    channels: int
    filters: int
    kernel: int
    batch: int
    activation: str | None = None
    arguments: tuple[tuple[str, int], ...] = ()


LAYERS = {
    "plain": Layer((12, 12), 16, 16, 3, 64),
    "thin, strided": Layer((15, 14), 3, 8, 3, 33, "relu", (("stride", 2), ("padding", 1))),
    "split weight gradient": Layer((4, 4), 4, 16, 3, 1024),
    "batch 1, split forward": Layer((6, 6), 64, 64, 3, 1),
    "batch 2, no dot": Layer((6, 6), 64, 64, 3, 2),
    "groups": Layer((8, 8), 32, 32, 3, 32, None, (("groups", 8),)),
    "depthwise": Layer((8, 8), 32, 32, 3, 32, "silu", (("groups", 32),)),
    "1-D, dilated": Layer((64,), 8, 16, 3, 64, "tanh", (("dilation", 3), ("padding", 2))),
    "3-D": Layer((6, 5, 6), 4, 8, 2, 32),
}

Wrap = Callable[[Machine, Callable[[], dict[str, Tensor]]], dict[str, Tensor]]


def check_layer(
    layer: Layer,
    dtype: torch.dtype,
    machine: Machine,
    *,
    weight_dtype: torch.dtype | None = None,
    wrap: Wrap = lambda machine, call: call(),
    precision: str = "ieee",
) -> dict[str, Any]:
    """y, dx, dw and db of a layer beside the definition in float64.

    Args:
        layer: what.
        dtype: of x.
        machine: where.
        weight_dtype: of weight and bias, where it is another.
        wrap: how the call is made.
        precision: of float32 products.
    """
    more: dict[str, Any] = dict(layer.arguments)
    geo = Geometry.make(layer.spatial, layer.channels, layer.filters, layer.kernel, **more)
    act = parse_activation(layer.activation) if layer.activation else LINEAR
    assert isinstance(act, Activation)
    machine.seed()
    x = machine.tensor((layer.batch, *geo.in_spatial, geo.in_channels), dtype).requires_grad_()
    weight = machine.tensor(geo.weight_shape, weight_dtype or dtype, geo.window**-0.5).requires_grad_()
    bias = machine.tensor(geo.bias_shape, weight_dtype or dtype).requires_grad_()
    g = machine.tensor((layer.batch, *geo.out_spatial, geo.out_channels), dtype)

    leaves = [t.detach().double().requires_grad_() for t in (x, weight.detach().to(dtype), bias)]
    want_y = reference.forward(leaves[0], leaves[1], leaves[2], geo, act)
    want = dict(zip(("dx", "dw", "db"), torch.autograd.grad(want_y, leaves, g.double()), strict=True))
    want["y"] = want_y.detach()

    def step() -> dict[str, Tensor]:
        y = lc_triton.local_conv(x, weight, bias, activation=layer.activation, data_format="channels_last", **more)
        grads = torch.autograd.grad(y, (x, weight, bias), g)
        return {"y": y.detach(), **dict(zip(("dx", "dw", "db"), grads, strict=True))}

    setting = torch.backends.cuda.matmul
    before, setting.fp32_precision = setting.fp32_precision, precision
    try:
        got = wrap(machine, step)
    finally:
        setting.fp32_precision = before
    bar = TF32_BAR if precision == "tf32" else BARS[dtype]
    return verdict(machine, {name: (got[name], want[name]) for name in want}, bar)


def hazards() -> Iterator[tuple[str, Check]]:
    """The checks that come first."""
    for pass_name in PASSES:
        yield f"registers in flight, {pass_name}", partial(registers_in_flight, pass_name)
    yield "narrowed indices, weight_grad", narrowed_indices


def layers() -> Iterator[tuple[str, Check]]:
    """Every kind of layer in the dtypes in order of use, then streams, graphs and precisions."""
    for dtype in (BF16, SINGLE, HALF, DOUBLE):
        for name, layer in LAYERS.items():
            yield f"{name}, {str(dtype).removeprefix('torch.')}", partial(check_layer, layer, dtype)
    wide = Layer((12, 12), 16, 32, 3, 64, "gelu")
    yield "autocast's types", partial(check_layer, wide, BF16, weight_dtype=SINGLE)
    yield "another stream", partial(check_layer, LAYERS["plain"], BF16, wrap=lambda m, call: m.on_stream(call))
    yield "captured graph", partial(check_layer, LAYERS["plain"], BF16, wrap=lambda m, call: m.graphed(call))
    yield "tf32", partial(check_layer, Layer((12, 12), 16, 64, 3, 128), SINGLE, precision="tf32")
