"""The passes of a layer whose positions share filters: the positions of a region are rows of one product.

A box of positions is taken at a time: its windows are copied into a buffer that stays in cache, and multiplied by the
filters of its regions. The weight is read as it is, one entry a region.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lc_triton._cpu.bands import band_dimension, slice_positions, write_bands
from lc_triton._cpu.blocks import Block, Layer, Windows, block_bytes, compute_dtype, part_of, parts
from lc_triton._cpu.overlay import overlay
from lc_triton._cpu.products import multiply
from lc_triton._cpu.workspace import Buffer, buffers
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem


@dataclass(frozen=True)
class Segment:
    """A run of positions along a dimension that is `turns` times the same regions, each of `places` positions."""

    start: int
    region: int  # the first one
    turns: int
    regions: int
    places: int

    @property
    def size(self) -> int:
        """How many positions it has."""
        return self.turns * self.regions * self.places


def segments(positions: range, block: int, count: int, most: int) -> list[Segment]:
    """Positions along a dimension, in segments of `most` at most.

    Example:
        >>> [(s.start, s.turns, s.regions, s.places) for s in segments(range(7), 1, 3, 9)]
        [(0, 2, 3, 1), (6, 1, 1, 1)]
        >>> [(s.start, s.turns, s.regions, s.places) for s in segments(range(7), 2, 4, 9)]
        [(0, 1, 3, 2), (6, 1, 1, 1)]
    """
    found, start = [], positions.start
    while start < positions.stop:
        left, region, place = min(positions.stop - start, most), start // block % count, start % block
        blocks = left // block if place == 0 else 0
        if blocks == 0:
            segment = Segment(start, region, 1, 1, min(left, block - place))
        elif region == 0 and blocks >= count:
            segment = Segment(start, 0, blocks // count, count, block)
        else:
            segment = Segment(start, region, 1, min(blocks, count - region), block)
        found.append(segment)
        start += segment.size
    return found


class Box:
    """A segment of each of four dimensions: positions whose windows are one matrix for each region."""

    def __init__(self, geo: Geometry, found: tuple[Segment, ...]) -> None:
        self.blocks, self.segments = geo.regions, found
        self.first = tuple(s.start for s in found)
        self.shape = tuple(s.size for s in found)
        self.regions = tuple(slice(s.region, s.region + s.regions) for s in found)
        self.counts = tuple(s.regions for s in found)
        self.inner = tuple(size for s in found for size in (s.turns, s.places))

    def block(self) -> Block:
        """The box for `Windows.of`."""
        return Block(self.first, self.shape, slice(0, 0))

    def at(self, tensor: Tensor, dim: int, first: tuple[int, ...] = (0, 0, 0, 0)) -> Tensor:
        """The box of a tensor whose dimensions from `dim` on are four of positions, which begin at `first`."""
        for d, (start, size) in enumerate(zip(self.first, self.shape, strict=True)):
            tensor = part_of(tensor, slice(start - first[d], start - first[d] + size), dim + d)
        return tensor

    def rows(self, tensor: Tensor) -> Tensor:
        """A view `(*regions, G, *positions of a region, B, ...)` of a tensor `(*positions, G, B, ...)` of the box."""
        size, stride = tensor.shape, tensor.stride()
        regions = tuple(block * step for (block, _), step in zip(self.blocks, stride, strict=False))
        inner = [
            s for (block, count), step in zip(self.blocks, stride, strict=False) for s in (block * count * step, step)
        ]
        return tensor.as_strided(
            (*self.counts, size[4], *self.inner, *size[5:]),
            (*regions, stride[4], *inner, *stride[5:]),
            int(tensor.storage_offset()),
        )


def _boxes(geo: Geometry, positions: tuple[range, ...], most: int) -> Iterator[Box]:
    """Boxes of `most` positions at most, but of one at least."""
    limits, inner = [1] * 4, 1
    for d in reversed(range(4)):
        limits[d] = max(1, min(len(positions[d]), most // inner))
        inner *= len(positions[d])
    along = [segments(own, *pair, limit) for own, pair, limit in zip(positions, geo.regions, limits, strict=True)]
    for found in itertools.product(*along):
        yield Box(geo, found)


def _most(layer: Layer, batch: int, dtype: torch.dtype) -> int:
    """Positions whose windows are about `block_bytes()`."""
    return max(1, block_bytes() // max(1, batch * layer.groups * layer.geo.window * dtype.itemsize))


def _matrices(source: Tensor, box: Box, columns: int, buffer: Buffer) -> Tensor:
    """`(*positions, G, B, ...)` of a box as `(R * G, rows, columns)`, copied."""
    rows = box.rows(source)
    return buffer.take(*rows.shape).copy_(rows).view(rows.shape[:5].numel(), -1, columns)


def _filters(layer: Layer, weight: Tensor, box: Box, buffer: Buffer) -> Tensor:
    """The filters of a box's regions, `(R * G, D, F // G)`: a view where they lie so, in the buffer's dtype."""
    own = weight.view(*layer.geo.region_counts, layer.geo.window, layer.groups, layer.filters)
    for d, span in enumerate(box.regions):
        own = part_of(own, span, d)
    if layer.groups == 1 and own.dtype == buffer.typed.dtype and own.is_contiguous():
        return own.view(-1, layer.geo.window, layer.filters)
    own = own.transpose(4, 5)  # (*regions, G, D, F // G)
    return buffer.take(*own.shape).copy_(own).view(-1, layer.geo.window, layer.filters)


def _by_position(layer: Layer, tensor: Tensor) -> Tensor:
    """A tensor of results `(B, *out_spatial, F)` as `(*positions, G, B, F // G)`, a view."""
    return tensor.view(len(tensor), *layer.geo.out_spatial, layer.groups, layer.filters).movedim(0, 5)


def _everywhere(geo: Geometry) -> tuple[range, ...]:
    return tuple(map(range, geo.out_spatial))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, z: Tensor | None, problem: Problem) -> None:
    """y and z, of the windows and the filters of each box."""
    layer, dtype = Layer.of(problem), compute_dtype(x.dtype)
    geo, groups, filters = layer.geo, layer.groups, layer.filters
    weight, targets = weight.contiguous(), [_by_position(layer, t) for t in (y, z) if t is not None]
    if bias is not None and bias.ndim > 1:
        bias = _by_position(layer, bias.reshape(1, *geo.out_spatial, -1))
    elif bias is not None:
        bias = bias.view(groups, *[1] * 9, filters)
    with buffers(x, dtype, 3) as (patches, converted, results):
        x = layer.spatial(x)
        for part in parts(len(x), groups * geo.window * dtype.itemsize):
            batch, windows = part.stop - part.start, Windows(layer, part_of(x, part))
            for box in _boxes(geo, _everywhere(geo), _most(layer, batch, dtype)):
                a = _matrices(windows.of(box.block()), box, geo.window, patches)
                out = results.take(len(a), a.shape[1], filters)
                multiply(a, _filters(layer, weight, box, converted), out)
                own = [box.rows(part_of(box.at(target, 0), part, 5)) for target in targets]
                sums = out.view(own[0].shape)
                if bias is not None:
                    sums += bias if bias.ndim == 11 else box.rows(box.at(bias, 0))
                if z is not None:
                    own[1].copy_(sums)
                activated = problem.activation(out)  # of three dimensions: some of torch's take twelve at most
                own[0].copy_(activated.view(own[0].shape))


def weight_grad(x: Tensor, g: Tensor, dw: Tensor, problem: Problem) -> None:
    """dw, summed over the boxes in order: each adds the products of its windows and gradients to its regions."""
    layer, dtype = Layer.of(problem), compute_dtype(x.dtype)
    geo, groups, filters = layer.geo, layer.groups, layer.filters
    total = dw if dw.dtype == dtype else torch.empty_like(dw, dtype=dtype)
    sums = total.zero_().view(*geo.region_counts, geo.window, groups, filters).transpose(4, 5)
    gradients = _by_position(layer, g.contiguous())
    with buffers(x, dtype, 3) as (patches, right, results):
        x = layer.spatial(x)
        for part in parts(len(x), groups * geo.window * dtype.itemsize):
            batch, windows = part.stop - part.start, Windows(layer, part_of(x, part))
            for box in _boxes(geo, _everywhere(geo), _most(layer, batch, dtype)):
                a = _matrices(windows.of(box.block()), box, geo.window, patches)
                b = _matrices(part_of(box.at(gradients, 0), part, 5), box, filters, right)
                out = results.take(len(a), geo.window, filters)
                multiply(a.transpose(1, 2), b, out)
                own = sums[box.regions]
                own += out.view(own.shape)
    if total is not dw:
        dw.copy_(total)


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem) -> None:
    """act(dx + bias): what the windows of a band's boxes hold, added to the sites that they read."""
    layer, dtype = Layer.of(problem), compute_dtype(g.dtype)
    geo, groups = layer.geo, layer.groups
    weight, gradients = weight.contiguous(), _by_position(layer, g.contiguous())
    dim, inner = band_dimension(geo), slice_positions(geo)
    slice_bytes = inner * groups * geo.window * dtype.itemsize
    with buffers(g, dtype, 7) as (left, right, results, all_windows, even, odd, carried):
        for part in parts(len(g), slice_bytes):
            batch, own = part.stop - part.start, part_of(gradients, part, 5)

            def sites_of(band: Block, sizes: tuple[int, ...], own: Tensor = own, batch: int = batch) -> Tensor:
                first = [0] * 4
                first[dim] = band.span.start // inner
                windows = all_windows.take(batch, *band.shape, *geo.kernel, groups, layer.channels)
                by_position = windows.movedim(0, 4).movedim(9, 4)  # (*positions, G, B, *kernel, C // G)
                positions = tuple(range(start, start + n) for start, n in zip(first, band.shape, strict=True))
                for box in _boxes(geo, positions, _most(layer, batch, dtype)):
                    a = _matrices(box.at(own, 0), box, layer.filters, right)
                    out = results.take(len(a), a.shape[1], geo.window)
                    multiply(a, _filters(layer, weight, box, left).transpose(1, 2), out)
                    target = box.rows(box.at(by_position, 0, tuple(first)))
                    target.copy_(out.view(target.shape))
                return overlay(windows, geo, sizes, (even, odd)).flatten(5, 6)

            position_bytes = batch * groups * geo.window * dtype.itemsize
            write_bands(layer, position_bytes, sites_of, carried, bias, part_of(dx, part), problem.activation)
