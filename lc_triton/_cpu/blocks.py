"""A layer cut into boxes of output positions, and the windows of a box as a view of its input.

Filters, results and windows of a box have leading dimensions for its regions: `(*regions, G, ...)`. Where no filters
are shared, each position is a region; where they are, the positions of a region are dimensions before the batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lc_triton._cpu.workspace import Buffer, strides
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem

# Bytes of a box's windows a thread: within its share of the last cache on common servers. Smaller boxes would stay
# nearer, but starting threads then takes longer than that saves.
BLOCK_BYTES = 4 << 20
# Bytes of a buffer that grows with the batch: what would take more goes through in parts of the batch.
MOST_BYTES = 16 << 20

# Numbers of a position at one tap below which a depthwise layer's weights are copied tap by tap first: read in place,
# they are a window apart.
RUN = 8

ORIGIN: tuple[int, ...] = (0, 0, 0, 0)

# What is done with the weight gradients of a run of positions, instead of storing them.
OnBlock = Callable[[slice, Tensor], None]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products of a dtype are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def block_bytes() -> int:
    """Bytes of a box's windows."""
    return min(BLOCK_BYTES * torch.get_num_threads(), MOST_BYTES)


@cache
def multiplied() -> frozenset[torch.dtype]:
    """The 16-bit dtypes that this CPU has matrix products for, summed in float32 and rounded once, as torch says it."""
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions
    has = known.get("avx512_bf16") or known.get("amx_bf16")
    return frozenset([torch.bfloat16] if has and torch.backends.mkldnn.is_available() else [])


def merged_stride(sizes: Sequence[int], strides: Sequence[int]) -> int | None:
    """The stride of dimensions that are one dimension in memory; None where they are not."""
    counted = [(n, stride) for n, stride in zip(sizes, strides, strict=True) if n != 1]
    if any(outer != n * inner for (_, outer), (n, inner) in itertools.pairwise(counted)):
        return None
    return counted[-1][1] if counted else 1


def part_of(tensor: Tensor, span: slice) -> Tensor:
    """Some samples of a tensor; the tensor itself where that is all of it, which takes no time."""
    return tensor if span.stop - span.start == tensor.shape[0] else tensor[span]


def even_size(size: int, most: int) -> int:
    """The size of `range(size)`'s parts of about the same size, `most` at most but 1 at least."""
    return -(-size // -(-size // max(1, most)))


def parts(batch: int, sample_bytes: int) -> list[slice]:
    """The batch in parts of about the same size whose buffers take at most `MOST_BYTES`."""
    size = even_size(batch, MOST_BYTES // sample_bytes)
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


class Segment(NamedTuple):
    """A run of positions along a dimension that is `turns` times the same regions, each of `places` positions."""

    start: int
    region: int  # the first one
    turns: int
    regions: int
    places: int


def segments(size: int, block: int, count: int, most: int) -> list[Segment]:
    """So many positions along a dimension, in segments of `most` at most.

    Example:
        >>> [(s.start, s.turns, s.regions, s.places) for s in segments(7, 1, 3, 9)]
        [(0, 2, 3, 1), (6, 1, 1, 1)]
        >>> [(s.start, s.turns, s.regions, s.places) for s in segments(7, 2, 4, 9)]
        [(0, 1, 3, 2), (6, 1, 1, 1)]
    """
    found, start = [], 0
    while start < size:
        left, region, place = min(size - start, most), start // block % count, start % block
        blocks = left // block if place == 0 else 0
        if blocks == 0:
            segment = Segment(start, region, 1, 1, min(left, block - place))
        elif region == 0 and blocks >= count:
            segment = Segment(start, 0, blocks // count, count, block)
        else:
            segment = Segment(start, region, 1, min(blocks, count - region), block)
        found.append(segment)
        start += segment.turns * segment.regions * segment.places
    return found


class Box:
    """A segment of each of four dimensions: positions whose windows are one matrix for each region."""

    def __init__(self, layer: Layer, found: Sequence[Segment]) -> None:
        self.layer = layer
        self.first, self.shape = tuple(s.start for s in found), tuple(s.turns * s.regions * s.places for s in found)
        self.region = tuple(s.region for s in found)  # the first one
        of_blocks = [(d, s, *pair) for d, (s, pair) in enumerate(zip(found, layer.regions, strict=True))]
        # (dimension, how many, positions from one to the next), where there are several.
        self.leading = [(d, s.regions, block) for d, s, block, _ in of_blocks if s.regions > 1]
        self.lead = len(self.leading) + 1  # leading dimensions of views, groups among them
        turns = [((d, s.turns, block * count), (d, s.places, 1)) for d, s, block, count in of_blocks]
        self.inner = [found for pair in turns for found in pair if found[1] > 1]
        # These dimensions of a view in the order of positions.
        every = [(*own, n) for n, own in enumerate(self.leading)]
        every += [(*own, self.lead + n) for n, own in enumerate(self.inner)]
        self.order = [n for _, _, _, n in sorted(every, key=lambda own: (own[0], -own[2]))]

    def rows(self, tensor: Tensor, layout: Layout, first: tuple[int, ...] = ORIGIN) -> Tensor:
        """A view `(*regions, G, *positions of a region, *layout.size)` of what begins with the position `first`."""
        size, stride, offset = _numbers(self, layout, first)
        return tensor.as_strided(size, stride, tensor.storage_offset() + offset)

    def filters(self, weight: Tensor) -> Tensor:
        """A view `(*regions, G, *kernel, C // G, F // G)` of a contiguous weight."""
        size, stride, offset = _numbers(self, self.layer.weights, None)
        return weight.as_strided(size, stride, weight.storage_offset() + offset)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a tensor has the numbers of a position and group."""

    steps: tuple[int, ...]  # from one position, or region, to the next in each of four dimensions
    group: int  # from one group to the next
    size: tuple[int, ...]  # of the dimensions beside those
    stride: tuple[int, ...]


@lru_cache(maxsize=8192)
def _numbers(box: Box, layout: Layout, first: tuple[int, ...] | None) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Size, stride and offset of a view of the rows of a box from `first` on, or of its filters."""
    at = box.region if first is None else [own - start for own, start in zip(box.first, first, strict=True)]
    leading = [(d, n, 1 if first is None else step) for d, n, step in box.leading]
    inner = [] if first is None else box.inner
    size = *(n for _, n, _ in leading), box.layer.groups, *(n for _, n, _ in inner), *layout.size
    of_leading, of_inner = ([step * layout.steps[d] for d, _, step in places] for places in (leading, inner))
    offset = sum(start * step for start, step in zip(at, layout.steps, strict=True))
    return size, (*of_leading, layout.group, *of_inner, *layout.stride), offset


class Layer:
    """A geometry in four dimensions, and what follows from it."""

    def __init__(self, geo: Geometry, tuning: Geometry) -> None:
        self.geo, self.groups = geo, geo.groups
        self.tuning_numbers = tuning.positions * tuning.out_channels
        self.tuning_filters = tuning.out_channels // tuning.groups  # of the layer that this one may be a part of
        self.channels, self.filters = geo.in_channels // geo.groups, geo.out_channels // geo.groups  # of a group
        self.taps = list(itertools.product(*map(range, geo.kernel)))
        self.pads = any(map(any, geo.padding))
        self.regions = geo.regions or tuple((1, n) for n in geo.out_spatial)
        cuts = zip(geo.out_spatial, geo.stride, geo.extent, strict=True)
        self.apart = all(n == 1 or stride >= extent for n, stride, extent in cuts)  # whether no site is read twice
        # Whether products are of numbers: groups have one channel each, or there is one channel and one filter.
        several = tuning.groups > 1 or tuning.out_channels == 1
        self.by_number = not geo.regions and several and tuning.in_channels == tuning.groups
        # Of the weight: `(*kernel, C // G, F // G)` a region and group.
        last, size = geo.out_channels, (*geo.kernel, self.channels)
        regions = tuple(geo.window * last * step for step in strides(geo.region_counts))
        stride = (*(last * step for step in strides(size)), 1)
        self.weights = Layout(regions, self.filters, (*size, self.filters), stride)
        # The stride of a window that is one dimension in memory.
        steps = strides((*geo.padded().in_spatial, geo.in_channels))
        taps = [step * d for step, d in zip(steps, geo.dilation, strict=False)]
        self.tap_stride = None if geo.groups > 1 else merged_stride(size, (*taps, 1))

    @classmethod
    def of(cls, problem: Problem) -> Layer:
        """The layer of a problem, made once."""
        layer: Layer | None = problem.launches.get("layer")
        if layer is None:
            layer = problem.launches["layer"] = cls(problem.geometry.as_4d(), problem.tuning_geometry)
        return layer

    def sample_bytes(self, dtype: torch.dtype) -> int:
        """Of one sample's part in the largest buffer, at one position."""
        return dtype.itemsize * self.groups * (self.filters if self.by_number else self.geo.window)

    def copies_filters(self, dtype: torch.dtype, weight_dtype: torch.dtype) -> bool:
        """Whether the filters of a box go through a buffer of a dtype."""
        return weight_dtype != dtype or (self.groups * self.filters < RUN if self.by_number else self.groups > 1)

    def position_bytes(self, batch: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> int:
        """Of a position's part in the largest buffer."""
        window = self.geo.window if self.copies_filters(dtype, weight_dtype) else 0
        if self.by_number:
            return self.sample_bytes(dtype) * max(batch, window)
        return dtype.itemsize * self.groups * max(batch * self.geo.window, self.filters * max(batch, window))

    def boxes(self, position_bytes: int) -> tuple[Box, ...]:
        """All positions in boxes of about `block_bytes()`."""
        return _boxes(self, block_bytes() // position_bytes)


@lru_cache(maxsize=256)
def results(layer: Layer, batch: int) -> Layout:
    """Of results `(B, *out_spatial, F)`, contiguous: `(B, F // G)` a position and group."""
    last = layer.groups * layer.filters
    steps = tuple(last * step for step in strides(layer.geo.out_spatial))
    return Layout(steps, layer.filters, (batch, layer.filters), (layer.geo.positions * last, 1))


@lru_cache(maxsize=1024)
def _windows(layer: Layer, batch: int, strides: tuple[int, ...]) -> Layout:
    """Of windows of sites `(B, I0, I1, IH, IW, C)`: `(B, *kernel, C // G)` a position and group."""
    geo, (sample, *steps, channel) = layer.geo, strides
    moves = tuple(s * step for s, step in zip(geo.stride, steps, strict=True))
    taps = (d * step for d, step in zip(geo.dilation, steps, strict=True))
    return Layout(moves, layer.channels * channel, (batch, *geo.kernel, layer.channels), (sample, *taps, channel))


@lru_cache(maxsize=512)
def _boxes(layer: Layer, most: int) -> tuple[Box, ...]:
    """All positions in boxes of `most` at most, but of one at least."""
    along, shape = [], layer.geo.out_spatial
    for d, size in enumerate(shape):
        along.append(segments(size, *layer.regions[d], even_size(size, most // math.prod(shape[d + 1 :]))))
    return tuple(Box(layer, found) for found in itertools.product(*along))


def windows(x: Tensor, box: Box, buffer: Buffer) -> Tensor:
    """The windows of a box, `(*regions, G, *positions of a region, B, *kernel, C // G)`: a view.

    Where there is padding, or numbers are multiplied in another dtype, it is of a copy: of the sites under the box and
    the zeros around them. Such a copy of all of x never exists.

    Args:
        x: `(B, I0, I1, IH, IW, C)`, with the batch outermost or innermost in memory; so are the copies.
        box: some positions.
        buffer: for the copies.
    """
    (batch, *_, channels), first = x.shape, ORIGIN
    if box.layer.pads or (box.layer.by_number and x.dtype != buffer.typed.dtype):
        (sizes, read, own), first, source = under(box), box.first, x
        if x.stride(0) == 1 < batch:
            x = buffer.take(*sizes, channels, batch).movedim(-1, 0)
        else:
            x = buffer.take(batch, *sizes, channels)
        inside = x[own]
        if inside.numel() < x.numel():
            x.zero_()
        inside.copy_(source[read])
    return box.rows(x, _windows(box.layer, batch, x.stride()), first)


@lru_cache(maxsize=4096)
def under(box: Box) -> tuple[list[int], tuple[slice, ...], tuple[slice, ...]]:
    """The sites under a box: how many in each dimension, those that are in `(B, *sites, C)`, and where they go."""
    sizes, source, target, geo = [], [slice(None)], [slice(None)], box.layer.geo
    for d, (low, _) in enumerate(geo.padding):
        start = box.first[d] * geo.stride[d] - low
        sizes.append((box.shape[d] - 1) * geo.stride[d] + geo.extent[d])
        first = max(start, 0)
        end = max(first, min(start + sizes[d], geo.in_spatial[d]))
        source.append(slice(first, end))
        target.append(slice(first - start, end - start))
    return sizes, tuple(source), tuple(target)
