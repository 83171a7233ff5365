"""The passes of a depthwise layer, whose groups have one channel each: products of numbers, tap after tap.

A layer of one channel and one filter is one too, such as each sample's kernel in kernel prediction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lc_triton._cpu.bands import slice_positions, write_bands
from lc_triton._cpu.blocks import Block, Layer, OnBlock, Outputs, Windows, compute_dtype, part_of, parts
from lc_triton._cpu.workspace import Buffer, buffers
from lc_triton.core.problem import Problem

# Numbers of a position at one tap below which a block's weights are copied tap by tap first: read in place, they are a
# window apart.
RUN = 8


class _Factors:
    """The weights of a block's positions at each tap, `(*positions, C, F // G)`, in a dtype."""

    def __init__(self, weights: Tensor, block: Block, buffer: Buffer) -> None:
        self.block, self.buffer = block, buffer
        self.weights = weights[block.span].transpose(0, 1)  # (T, positions, C, F // G)
        self.by_tap = math.prod(weights.shape[2:]) < RUN
        if self.by_tap:
            self.weights = buffer.take(*self.weights.shape).copy_(self.weights)

    def at(self, tap: int) -> Tensor:
        """Those of a tap."""
        found = self.weights[tap].unflatten(0, self.block.shape)
        return found if self.by_tap else self.buffer.cast(found)

    @staticmethod
    def numbers(layer: Layer) -> int:
        """Of a position, in the buffer."""
        return layer.geo.taps if layer.groups * layer.filters < RUN else 1


def _taps(layer: Layer, windows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each tap's number and its sites, `(B, *positions, C, 1)`."""
    for tap, (a, b, row, column) in enumerate(itertools.product(*map(range, layer.geo.kernel))):
        yield tap, windows[..., a, b, row, column, :].movedim(5, 0)


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
            for block in layer.blocks(max(batch, _Factors.numbers(layer)) * channels * filters * dtype.itemsize):
                own = _Factors(weights, block, factors)
                out = results.take(batch, *block.shape, channels, filters)
                for tap, at in _taps(layer, windows.of(block)):
                    if tap == 0:
                        torch.mul(sites.cast(at), own.at(tap), out=out)
                    else:
                        out.addcmul_(sites.cast(at), own.at(tap))
                outputs.store(part, block, out.flatten(1, 4))


def weight_grad(x: Tensor, g: Tensor, dw: Tensor, problem: Problem, on_block: OnBlock | None = None) -> None:
    """dw: each tap's sites times the gradients, summed over the batch; or what `on_block` makes of it."""
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
            made = total.movedim(0, 4).flatten(0, 3)
            if on_block is None:
                targets[block.span] = made
            else:
                on_block(block.span, made)


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem) -> None:
    """act(dx + bias): what each tap gives is added to its sites in a band."""
    layer, dtype = Layer.of(problem), compute_dtype(g.dtype)
    geo, channels, filters = layer.geo, layer.groups, layer.filters
    gradients = g.contiguous().view(len(g), -1, channels, filters)
    weights = weight.reshape(-1, geo.taps, channels, filters)
    slice_bytes = slice_positions(geo) * channels * filters * dtype.itemsize
    with buffers(g, dtype, 4) as (totals, left, right, carried):
        for part in parts(len(g), slice_bytes):
            batch, own = part.stop - part.start, part_of(gradients, part)

            def sites_of(band: Block, sizes: tuple[int, ...], own: Tensor = own, batch: int = batch) -> Tensor:
                sites = totals.take(batch, *sizes, channels).zero_()
                gradient = left.cast(own[:, band.span]).unflatten(1, band.shape)
                factors = _Factors(weights, band, right)
                for tap, at in enumerate(itertools.product(*map(range, geo.kernel))):
                    factor = factors.at(tap)
                    cuts = zip(at, geo.dilation, band.shape, geo.stride, strict=True)
                    read = slice(None), *(slice(k * d, k * d + (n - 1) * s + 1, s) for k, d, n, s in cuts)
                    target = sites[read]
                    for f in range(filters):
                        target.addcmul_(gradient[..., f], factor[..., f])
                return sites

            position_bytes = max(batch, _Factors.numbers(layer)) * channels * filters * dtype.itemsize
            write_bands(layer, position_bytes, sites_of, carried, bias, part_of(dx, part), problem.activation)
