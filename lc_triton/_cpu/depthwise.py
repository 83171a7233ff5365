"""The faces of a depthwise layer, whose groups have one channel each: products of numbers, tap after tap."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from lc_triton._cpu.blocks import Layer, Outputs, Windows, compute_dtype, parts, store_strip
from lc_triton._cpu.workspace import buffers
from lc_triton.core.problem import Problem


def _taps(layer: Layer, windows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each tap's number and its sites, `(B, rows, columns, C, 1)`."""
    for tap, (a, b, row, column) in enumerate(itertools.product(*map(range, layer.geo.kernel))):
        yield tap, windows[..., a, b, row, column, :].permute(3, 0, 1, 2, 4)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, z: Tensor | None, problem: Problem) -> None:
    """y and z: each tap's sites times its filters, summed in a block of outputs."""
    layer, dtype = Layer.of(problem), compute_dtype(x.dtype)
    channels, filters = layer.groups, layer.filters
    weights = weight.reshape(-1, layer.geo.taps, channels, filters)
    outputs = Outputs(y, z, problem, bias)
    with buffers(x, dtype, 3) as (results, sites, factors):
        x = layer.spatial(x)
        for part in parts(len(x), channels * filters * dtype.itemsize):
            windows, batch = Windows(layer, x[part]), part.stop - part.start
            for block in layer.blocks(batch * channels * filters * dtype.itemsize):
                out = results.take(batch, *block.shape, channels, filters)
                for tap, at in _taps(layer, windows.of(block)):
                    factor = factors.cast(weights[block.span, tap].unflatten(0, block.shape))
                    if tap == 0:
                        torch.mul(sites.cast(at), factor, out=out)
                    else:
                        out.addcmul_(sites.cast(at), factor)
                outputs.store(part, block, out)


def weight_grad(x: Tensor, g: Tensor, dw: Tensor, problem: Problem) -> None:
    """dw: each tap's sites times the gradients, summed over the batch."""
    layer, dtype = Layer.of(problem), compute_dtype(x.dtype)
    channels, filters = layer.groups, layer.filters
    gradients = g.contiguous().view(len(g), -1, channels, filters)
    targets = dw.view(-1, layer.geo.taps, channels, filters)
    with buffers(x, dtype, 4) as (products, totals, sites, factors):
        x = layer.spatial(x)
        cut = parts(len(x), channels * filters * dtype.itemsize)
        windows = [Windows(layer, x[part]) for part in cut]
        for block in layer.blocks(max(cut[0].stop, layer.geo.taps) * channels * filters * dtype.itemsize):
            total = totals.take(layer.geo.taps, *block.shape, channels, filters)
            for part, own in zip(cut, windows, strict=True):
                factor = factors.cast(gradients[part, block.span].unflatten(1, block.shape))
                product = products.take(*factor.shape)
                for tap, at in _taps(layer, own.of(block)):
                    torch.mul(sites.cast(at), factor, out=product)
                    if part is cut[0]:
                        torch.sum(product, 0, out=total[tap])
                    else:
                        total[tap] += product.sum(0)
            targets[block.span] = total.movedim(0, 2).flatten(0, 1)


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem) -> None:
    """act(dx + bias), row of sites after row: what each tap that meets it gives."""
    layer, dtype = Layer.of(problem), compute_dtype(g.dtype)
    geo, channels, filters = layer.geo, layer.groups, layer.filters
    rows, width, reach = geo.positions // geo.out_spatial[3], geo.out_spatial[3], geo.kernel[3]
    gradients = g.contiguous().view(len(g), rows, width, channels, filters)
    weights = weight.reshape(rows, width, -1, reach, channels, filters)
    with buffers(g, dtype, 3) as (lines, left, right):
        for part in parts(len(g), layer.padded[3] * channels * dtype.itemsize):
            batch = part.stop - part.start
            for strip in layer.strips(batch * channels * filters * dtype.itemsize):
                line = lines.take(len(strip.rows), batch, layer.padded[3], channels).zero_()
                for sites, readers in zip(line, strip.readers, strict=True):
                    for row, taps in readers:
                        gradient, factor = left.cast(gradients[part, row]), right.cast(weights[row, :, taps])
                        for tap in range(reach):
                            start = tap * geo.dilation[3]
                            own = sites[:, start : start + (width - 1) * geo.stride[3] + 1 : geo.stride[3]]
                            for f in range(filters):
                                own.addcmul_(gradient[..., f], factor[:, tap, :, f])
                store_strip(layer, line, strip, part, bias, dx, problem)
