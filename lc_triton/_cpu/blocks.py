"""A layer cut into boxes of output positions, and the windows of a box as a view of its input.

Filters, results and windows of a box have leading dimensions for its regions: `(*regions, G, ...)`. Where no filters
are shared, each position is a region; where they are, the positions of a region are dimensions before the batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from lc_triton._cpu.workspace import Buffer
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem

# Bytes of a box's windows a thread: within its share of the last-level cache on common servers. Smaller boxes
# would fit a nearer cache, but starting threads then takes longer than that saves.
BLOCK_BYTES = 4 << 20
# The most bytes of a buffer that grows with the batch: larger batches go through it in parts.
MOST_BYTES = 16 << 20

# If runs of a window in memory are shorter, its sites are turned (batch innermost) first, if the batch is longer.
SHORT_RUN = 16
# Numbers of a position at one tap below which a depthwise layer's weights are copied tap by tap first: read in place,
# they are a window apart.
RUN = 8

Ints = tuple[int, ...]
ORIGIN: Ints = (0, 0, 0, 0)
_meta = partial(torch.empty, device="meta")  # tensors without memory
# What is done with the weight gradients of a run of positions, instead of storing them.
OnBlock = Callable[[slice, Tensor], None]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products of a dtype are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
    """Some samples of a tensor; the tensor itself if these are all, which makes no view."""
    return tensor if span.stop - span.start == tensor.shape[0] else tensor[span]


def even_size(size: int, most: int) -> int:
    """The size of parts of about the same size that `size` is cut into: at most `most`, and at least 1."""
    return -(-size // -(-size // max(1, most)))


def segments(size: int, block: int, count: int, most: int) -> list[tuple[int, int, int, int]]:
    """`size` positions along a dimension in segments of at most `most`: (start, turns, regions, places).

    A segment is `turns` times the same regions, each of `places` positions.

    Example:
        >>> segments(7, 2, 4, 9)
        [(0, 1, 3, 2), (6, 1, 1, 1)]
    """
    found, start = [], 0
    while start < size:
        left, region, place = min(size - start, most), start // block % count, start % block
        blocks = left // block if place == 0 else 0
        if blocks == 0:
            split = 1, 1, min(left, block - place)
        elif region == 0 and blocks >= count:
            split = blocks // count, count, block
        else:
            split = 1, min(blocks, count - region), block
        found.append((start, *split))
        start += math.prod(split)
    return found


class Box:
    """A segment of each of four dimensions: positions whose windows are one matrix for each region."""

    def __init__(self, layer: Layer, found: Sequence[tuple[int, int, int, int]]) -> None:
        self.layer, geo = layer, layer.geo
        self.first, self.splits = tuple(start for start, *_ in found), [split for _, *split in found]
        self.shape = tuple(map(math.prod, self.splits))
        self.region = [n // block % count for n, (block, count) in zip(self.first, layer.regions, strict=True)]
        # Of the twelve dimensions of `splits`: the regions, and the positions of a region, where there are several.
        dims = [d for d, n in enumerate(itertools.chain(*self.splits)) if n > 1]
        self.leading, self.inner = [d for d in dims if d % 3 == 1], [d for d in dims if d % 3 != 1]
        self.lead = len(self.leading) + 1  # leading dimensions of views, groups among them
        # The places of `dims` in a gradient of windows, `(*regions, G, *kernel, C // G, *positions of a region, B)`.
        self.order = [[*self.leading, *[None] * 6, *self.inner].index(d) for d in dims]
        # The sites under it: their number in each dimension, those inside the input, and where these lie under it.
        cuts = zip(self.shape, geo.stride, geo.extent, strict=True)
        self.sites = tuple((n - 1) * stride + extent for n, stride, extent in cuts)
        read, inside = [slice(None)], [slice(None)]
        for d, (low, _) in enumerate(geo.padding):
            start = self.first[d] * geo.stride[d] - low
            first = max(start, 0)
            end = max(first, min(start + self.sites[d], geo.in_spatial[d]))
            read.append(slice(first, end))
            inside.append(slice(first - start, end - start))
        self.read, self.inside = tuple(read), tuple(inside)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a tensor has the numbers of its positions, or regions: `(*positions, G, ...)`, without memory."""

    rows: Tensor
    first: Ints | None = ORIGIN  # the position that it begins with; None: it has regions
    turned: bool = False  # whether the batch is the last dimension of windows, not the first


class View(NamedTuple):
    """Where a view lies in a tensor."""

    size: Ints
    stride: Ints
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """The view."""
        return tensor.as_strided(self.size, self.stride, tensor.storage_offset() + self.offset)


class Rows(NamedTuple):
    """What a tensor has of a box: `(*regions, G, *positions of a region, ...)`; filters have no positions."""

    box: Box
    tensor: Tensor
    layout: Layout

    @property
    def size(self) -> Ints:
        """The size of `view`."""
        return _view(self.box, self.layout).size

    def view(self, *first: int) -> Tensor:
        """A view that begins with these dimensions."""
        return _view(self.box, self.layout, *first).of(self.tensor)

    def merged(self, dtype: torch.dtype, columns: int = 1) -> Tensor | None:
        """A view `(n, rows, columns)`, whose columns are `columns` dimensions; None if there is none in the dtype."""
        found = _merged(self.box, self.layout, columns)
        return found.of(self.tensor) if found.stride and self.tensor.dtype == dtype else None

    def matrices(self, buffer: Buffer, columns: int = 1) -> Tensor:
        """`merged`, or a copy in the buffer."""
        if (found := self.merged(buffer.dtype, columns)) is None:
            buffer.take(*self.size).copy_(self.view())
            found = buffer.take(*_merged(self.box, self.layout, columns).size)
        return found


@lru_cache(maxsize=1 << 15)
def _view(box: Box, layout: Layout, *first: int) -> View:
    """The view of a box's rows whose first dimensions are these."""
    rows, start = layout.rows, layout.first
    for d, split in enumerate(box.splits):
        at, split = (box.region[d], [1, split[1], 1]) if start is None else (box.first[d] - start[d], split)
        rows = rows.narrow(3 * d, at, math.prod(split)).unflatten(3 * d, split)
    dims = [*box.leading, 12, *(() if start is None else box.inner), *range(13, rows.ndim)]
    order = [dims[d] for d in first]
    order += [d for d in dims if d not in order]
    return View(tuple(rows.shape[d] for d in order), tuple(rows.stride(d) for d in order), int(rows.storage_offset()))


@lru_cache(maxsize=1 << 15)
def _merged(box: Box, layout: Layout, columns: int) -> View:
    """The view as matrices `(n, rows, columns)`; without strides if it cannot be a view."""
    size, stride, offset = _view(box, layout)
    spans = slice(box.lead), slice(box.lead, -columns), slice(-columns, None)
    steps = tuple(step for span in spans if (step := merged_stride(size[span], stride[span])) is not None)
    return View(tuple(math.prod(size[span]) for span in spans), steps if len(steps) == 3 else (), offset)


class Layer:
    """A geometry in four dimensions, and what follows from it."""

    def __init__(self, geo: Geometry, tuning: Geometry) -> None:
        self.geo, self.groups = geo, geo.groups
        self.turned_numbers = tuning.sites * tuning.in_channels  # so that ranks cut the batch alike
        self.tuning_numbers = tuning.positions * tuning.out_channels
        self.tuning_filters = tuning.out_channels // tuning.groups  # `tuning` is a whole layer, geo may be a part
        self.channels, self.filters = geo.in_channels // geo.groups, geo.out_channels // geo.groups  # of a group
        self.taps = list(itertools.product(*map(range, geo.kernel)))
        self.pads = any(map(any, geo.padding))
        self.regions = geo.regions or tuple((1, n) for n in geo.out_spatial)
        # Whether products are of numbers: groups have one channel each, or there is one channel and one filter.
        several = tuning.groups > 1 or tuning.out_channels == 1
        self.by_number = not geo.regions and several and tuning.in_channels == tuning.groups
        # Whether windows lie in x, and no two of them have a site in common.
        cuts = zip(geo.out_spatial, geo.stride, geo.extent, strict=True)
        self.apart = not self.pads and all(n == 1 or stride >= extent for n, stride, extent in cuts)
        self.weights = weights(self, geo.region_counts)
        # The stride of a window that is one dimension in memory.
        window = sites(self, 1, geo.padded().in_spatial).rows[0, 0, 0, 0, 0, 0]
        self.tap_stride = None if geo.groups > 1 else merged_stride(window.shape, window.stride())
        # Samples from which on the sites under a box are turned first, so that the batch is innermost.
        copied = self.tap_stride is None and not (self.by_number or geo.regions)
        run = self.channels * (geo.kernel[3] if geo.groups == 1 else 1)
        self.turned_from = run + 1 if copied and run < SHORT_RUN else math.inf
        self.is_matrix = tuning.positions == 1 and not (self.tap_stride is None or self.pads)

    @classmethod
    def of(cls, problem: Problem) -> Layer:
        """The layer of a problem, made once."""
        layer: Layer | None = problem.launches.get("layer")
        if layer is None:
            layer = problem.launches["layer"] = cls(problem.geometry.as_4d(), problem.tuning_geometry)
        return layer

    def is_native(self, *dtypes: torch.dtype) -> bool:
        """Whether products of these dtypes are left to the CPU's own instructions for 16 bits."""
        return dtypes[0] in multiplied() and len(set(dtypes)) == 1 and not (self.by_number or self.geo.regions)

    def copies_filters(self, dtype: torch.dtype, weight_dtype: torch.dtype) -> bool:
        """Whether the filters of a box go through a buffer of a dtype."""
        return weight_dtype != dtype or (self.groups * self.filters < RUN if self.by_number else self.groups > 1)

    def cut(
        self, batch: int, dtype: torch.dtype, weight_dtype: torch.dtype, sample_bytes: int = 0, position_bytes: int = 0
    ) -> tuple[list[slice], tuple[Box, ...]]:
        """The batch in parts, and all positions in boxes; the bytes are of a sample or position in a further buffer."""
        most = min(BLOCK_BYTES * torch.get_num_threads(), MOST_BYTES)
        return _cut(self, batch, dtype, weight_dtype, sample_bytes, position_bytes, most, MOST_BYTES)


@lru_cache(maxsize=4096)
def _cut(
    layer: Layer, batch: int, dtype: torch.dtype, weight_dtype: torch.dtype, sample: int, position: int, *most: int
) -> tuple[list[slice], tuple[Box, ...]]:
    """Parts whose buffers take `most[1]` bytes at most, and boxes whose buffers take about `most[0]`."""
    number, window = dtype.itemsize * layer.groups, layer.geo.window
    row = layer.filters if layer.by_number else window
    size = even_size(batch, most[1] // max(sample, number * row))
    copied = window if layer.copies_filters(dtype, weight_dtype) else 0
    position = max(position, number * max(size * row, layer.filters * max(size, copied)))
    shape = layer.geo.out_spatial
    sizes = [even_size(n, most[0] // position // math.prod(shape[d + 1 :])) for d, n in enumerate(shape)]
    parts = [slice(start, min(start + size, batch)) for start in range(0, batch, size)]
    return parts, _boxes(layer, *sizes)


@lru_cache(maxsize=512)
def _boxes(layer: Layer, *sizes: int) -> tuple[Box, ...]:
    """All positions in boxes of so many at most in each dimension: the same for many batches, and made once."""
    cuts = zip(layer.geo.out_spatial, layer.regions, sizes, strict=True)
    return tuple(Box(layer, found) for found in itertools.product(*(segments(n, *at, size) for n, at, size in cuts)))


@lru_cache(maxsize=4096)
def results(layer: Layer, batch: int, *, alike: bool = False) -> Layout:
    """The layout of results `(B, *out_spatial, F)`, or `(F,)` alike everywhere: `(B, F // G)` a position and group."""
    spatial = layer.geo.out_spatial
    rows = _meta(*(() if alike else (batch, *spatial)), layer.groups, layer.filters).expand(batch, *spatial, -1, -1)
    return Layout(rows.permute(1, 2, 3, 4, 5, 0, 6))


@lru_cache(maxsize=4096)
def weights(layer: Layer, shape: Ints, first: Ints | None = None) -> Layout:
    """The layout of filters of regions, or of positions from `first` on, each `(G, *kernel, C // G, F // G)`."""
    rows = _meta(*shape, *layer.geo.kernel, layer.channels, layer.groups, layer.filters)
    return Layout(rows.movedim(-2, 4), first)


@lru_cache(maxsize=4096)
def sites(layer: Layer, batch: int, shape: Ints) -> Layout:
    """The layout of sites `(B, *shape, C)` under all positions: `(B, *kernel, C // G)` a position and group."""
    return _of_sites(layer, _meta(batch, *shape, layer.geo.in_channels))


def _of_sites(layer: Layer, x: Tensor, first: Ints = ORIGIN, *, turned: bool = False) -> Layout:
    """`sites` with the strides of x, for the positions from `first` on; if turned, the batch comes after the window."""
    geo, x = layer.geo, x.unflatten(-1, (layer.groups, layer.channels))
    for d, (extent, stride, dilation) in enumerate(zip(geo.extent, geo.stride, geo.dilation, strict=True), 1):
        x = x.unfold(d, extent, stride)[..., ::dilation]
    window = 7, 8, 9, 10, 6
    return Layout(x.permute(1, 2, 3, 4, 5, *((*window, 0) if turned else (0, *window))), first, turned)


def windows(x: Tensor, box: Box, buffer: Buffer, *, turned: bool) -> Rows:
    """The windows of a box, `(*regions, G, *positions of a region, B, *kernel, C // G)`.

    Where there is padding, or numbers are multiplied in another dtype, they are of a copy: of the sites under the box
    and the zeros around them. Such a copy of all of x never exists. Turned windows are of a copy too: the batch is
    innermost in its memory, and the last dimension of the windows. Where there is no copy, x is contiguous.
    """
    layer = box.layer
    if not (turned or layer.pads or (layer.by_number and x.dtype != buffer.dtype)):
        return Rows(box, x, sites(layer, x.shape[0], layer.geo.in_spatial))
    numel, read, inside, layout = _copied(box, x.shape, x.stride(), turned=turned)
    copy = buffer.take(numel)
    target = inside.of(copy)
    if target.numel() < numel:
        copy.zero_()
    target.copy_(read.of(x))
    return Rows(box, copy, layout)


@lru_cache(maxsize=4096)
def _copied(box: Box, shape: Ints, strides: Ints, *, turned: bool) -> tuple[int, View, View, Layout]:
    """A copy of the sites under a box: its size, the views of the sites in x and in the copy, and its windows.

    Turned sites keep the order that they have in x: torch copies them faster.
    """
    geo = box.layer.geo
    x = torch.empty_strided(shape, strides, device="meta").view(shape[0], *geo.in_spatial, geo.in_channels)
    sizes = shape[0], *box.sites, geo.in_channels
    order = [*sorted(range(1, 6), key=x.stride, reverse=True), 0] if turned else list(range(6))
    copy = _meta(*(sizes[d] for d in order)).permute([order.index(d) for d in range(6)])
    read, inside = (View(t.shape, t.stride(), int(t.storage_offset())) for t in (x[box.read], copy[box.inside]))
    return copy.numel(), read, inside, _of_sites(box.layer, copy, box.first, turned=turned)
