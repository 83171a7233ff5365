"""A row's data, made on the GPU, and its results compared there with the definition, a band of positions at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.machine import Machine
from benchmarks.rows import SLACK, Data, Results, Row
from lc_triton.core.geometry import Geometry
from lc_triton.ops import reference
from lc_triton.search import comparison

BAND_BYTES = 1 << 30  # of a band's weights in float64

LayOut = Callable[[Tensor, Geometry], Tensor]


def make_data(row: Row, machine: Machine) -> Data:
    """Random tensors of a row; outputs are of unit size, and x's dtype holds all numbers of the weights."""
    task = row.task
    geo, dtype, weight_dtype = task.geometry, getattr(torch, task.dtype), getattr(torch, task.weight_dtype)
    machine.seed()
    return Data(
        machine.tensor((row.batch, *geo.in_spatial, geo.in_channels), dtype),
        machine.tensor(geo.weight_shape, dtype, geo.window**-0.5).to(weight_dtype),
        machine.tensor(geo.bias_shape, dtype).to(weight_dtype),
        machine.tensor((row.batch, *geo.out_spatial, geo.out_channels), dtype),
    )


@dataclass(frozen=True)
class Band:
    """Consecutive rows of positions, the input rows that they read, and their layer by itself."""

    outputs: slice
    inputs: slice
    geometry: Geometry


def bands(geo: Geometry, most_bytes: int = BAND_BYTES) -> Iterator[Band]:
    """A layer cut along its first dimension, so that the weights of each part take at most so many bytes in float64."""
    total = geo.out_spatial[0]
    rows = max(1, min(total, most_bytes * total // max(1, 8 * geo.weight_numel)))
    extent = (geo.kernel[0] - 1) * geo.dilation[0] + 1
    for first in range(0, total, rows):
        last = min(total, first + rows)
        low = first * geo.stride[0] - geo.padding[0][0]
        high = (last - 1) * geo.stride[0] + extent - geo.padding[0][0]
        inputs = slice(max(0, low), min(geo.in_spatial[0], high))
        part = Geometry.make(
            (inputs.stop - inputs.start, *geo.in_spatial[1:]),
            geo.in_channels,
            geo.out_channels,
            geo.kernel,
            stride=geo.stride,
            padding=[(max(0, -low), max(0, high - geo.in_spatial[0])), *geo.padding[1:]],
            dilation=geo.dilation,
            groups=geo.groups,
        )
        yield Band(slice(first, last), inputs, part)


def find_mismatch(
    row: Row, data: Data, got: Results, lay_out: LayOut | None = None, most_bytes: int = BAND_BYTES
) -> str | None:
    """What is wrong with a contender's results (y and dx of the chosen samples, dw and db), or None.

    Args:
        row: the layer.
        data: what it was given; g outside the chosen samples counts as zero.
        got: as `Ready.results` gives it.
        lay_out: the canonical weight in a peer's own layout, which may round as peers do; None for our own. The weight
            gradient of a peer is compared where the whole layer is one band.
        most_bytes: of a band's weights in float64.
    """
    task, samples = row.task, data.sample_indices
    geo = task.geometry
    parts = list(bands(geo, most_bytes))
    dx = torch.zeros(len(samples), *geo.in_spatial, geo.in_channels, dtype=torch.float64, device=data.x.device)

    def wrong(name: str, found: Tensor, want: Tensor) -> str | None:
        if lay_out is None:
            return comparison.find_mismatch(task, name, found, want, SLACK)
        rounded = found.to(getattr(torch, task.dtype))
        return comparison.find_mismatch(task, name, rounded, want, SLACK, parts=1.0)

    for part in parts:
        weight, bias = data.weight[part.outputs].double(), data.bias[part.outputs].double()
        want_dw, want_db = torch.zeros_like(weight), torch.zeros_like(bias)
        for i, sample in enumerate(samples):  # one by one: the definition repeats the weights for each sample
            leaves = [data.x[sample : sample + 1, part.inputs].double(), weight, bias]
            leaves = [leaf.detach().requires_grad_() for leaf in leaves]
            y = reference.forward(leaves[0], leaves[1], leaves[2], part.geometry)
            found = wrong("y", got["y"][i : i + 1, part.outputs], y.detach())
            if found is not None:
                return found
            of_x, of_weight, of_bias = torch.autograd.grad(
                y, leaves, data.g[sample : sample + 1, part.outputs].double()
            )
            dx[i, part.inputs] += of_x[0]
            want_dw += of_weight
            want_db += of_bias
        compared = {"db": (got["db"][part.outputs], want_db)}
        if lay_out is None:
            compared["dw"] = got["dw"][part.outputs], want_dw
        elif len(parts) == 1:
            compared["dw"] = got["dw"], lay_out(want_dw, geo)
        for name, (found_part, want) in compared.items():
            found = wrong(name, found_part, want)
            if found is not None:
                return found
    return wrong("dx", got["dx"], dx)
