"""A layer cut into blocks of output positions, and the windows of a block as a view of its input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from lc_triton.core.activations import LINEAR
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem

# Bytes of a block's windows a thread, or so many times a core's L2: within its share of the last cache on common
# servers. Smaller blocks would stay nearer, but then starting threads, and what one core has in its cache and another
# reads, takes longer than it saves: a quarter of deepface_l4's forward with 512 KB of L2 and blocks of 512 KB, another
# with 2 MB and 2 MB.
BLOCK_BYTES, BLOCK_CACHES = 2 << 20, 4
# The same for input gradients, so that sites are added to less often (a third of all_tnn_l1's).
INPUT_GRAD_BYTES = 4 << 20
# Bytes a thread that are copied at once where the batch, innermost in the source, becomes outermost: each line of the
# cache is read once for every few samples, three times as fast from L2 as from behind it.
TURN_BYTES = 256 << 10
# Bytes of a buffer that grows with the batch: what would take more goes through in parts of the batch.
MOST_BYTES = 16 << 20


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products of a dtype are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@cache
def _l2_bytes() -> int:
    """Bytes of a core's second cache, as Linux says it; 0 where nobody does."""
    try:
        return int(Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 0


def block_bytes() -> int:
    """Bytes of a block's windows."""
    return min(max(BLOCK_BYTES, BLOCK_CACHES * _l2_bytes()) * torch.get_num_threads(), MOST_BYTES)


def input_grad_bytes() -> int:
    """The same of an input gradient's block."""
    return min(INPUT_GRAD_BYTES * torch.get_num_threads(), MOST_BYTES)


@cache
def multiplied() -> frozenset[torch.dtype]:
    """The 16-bit dtypes that this CPU has matrix products for, summed in float32 and rounded once, as torch says it."""
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions
    has = known.get("avx512_bf16") or known.get("amx_bf16")
    return frozenset([torch.bfloat16] if has and torch.backends.mkldnn.is_available() else [])


def part_of(tensor: Tensor, span: slice, dim: int = 0) -> Tensor:
    """A part of a tensor along a dimension; the tensor itself where that is all of it, which takes no time."""
    size = span.stop - span.start
    return tensor if size == tensor.shape[dim] else tensor.narrow(dim, span.start, size)


def parts(batch: int, sample_bytes: int) -> list[slice]:
    """The batch in parts of about the same size whose buffers take at most `MOST_BYTES`."""
    return _even(batch, max(1, MOST_BYTES // sample_bytes))


@dataclass(frozen=True)
class Block:
    """Columns `columns` of output rows `rows` of the plane (o0, o1), which is number `plane`."""

    o0: int
    o1: int
    plane: int
    rows: slice
    columns: slice
    span: slice  # of its positions in row-major order, if it has whole rows or a part of one
    shape: tuple[int, int]  # rows, columns
    by_rows: bool  # whether its rows are taken one by one, each a run of positions, or all positions are one run

    @property
    def first(self) -> tuple[int, int, int, int]:
        """Its first position."""
        return self.o0, self.o1, self.rows.start, self.columns.start

    @property
    def positions(self) -> int:
        """How many positions it has."""
        return self.shape[0] * self.shape[1]


@lru_cache(maxsize=256)
def _blocks(out_spatial: tuple[int, ...], rows: int, columns: int, *, by_rows: bool) -> tuple[Block, ...]:
    o0, o1, height, width = out_spatial
    blocks = []
    for a, b, down, across in itertools.product(range(o0), range(o1), _even(height, rows), _even(width, columns)):
        shape, plane = (down.stop - down.start, across.stop - across.start), a * o1 + b
        start = (plane * height + down.start) * width + across.start
        blocks.append(Block(a, b, plane, down, across, slice(start, start + math.prod(shape)), shape, by_rows))
    return tuple(blocks)


def _even(size: int, most: int) -> list[slice]:
    """`range(size)` in parts of about the same size, `most` at most."""
    count = -(-size // most)
    part = -(-size // count)
    return [slice(start, min(start + part, size)) for start in range(0, size, part)]


@dataclass(frozen=True)
class Strip:
    """Rows of sites of a plane, the columns of positions to take at once, and for each row who reads it.

    Readers are (row of positions, row of taps) pairs, both counted over all planes.
    """

    plane: tuple[int, int]
    rows: range
    columns: list[slice]
    readers: list[list[tuple[int, int]]]


@dataclass(frozen=True)
class Layer:
    """A geometry in four dimensions, with what the faces ask of it again and again."""

    geo: Geometry
    deciding: Geometry  # what blocks are chosen for: another where the layer is a part of one

    @classmethod
    def of(cls, problem: Problem) -> Layer:
        """The layer of a problem, made once."""
        layer: Layer | None = problem.launches.get("layer")
        if layer is None:
            layer = problem.launches["layer"] = cls(problem.geometry.as_4d(), problem.tuning_geometry.as_4d())
        return layer

    def spatial(self, x: Tensor) -> Tensor:
        """x as `(B, I0, I1, IH, IW, C)`, contiguous."""
        return x.contiguous().view(x.shape[0], *self.geo.in_spatial, self.geo.in_channels)

    @cached_property
    def groups(self) -> int:
        """G."""
        return self.geo.groups

    @cached_property
    def channels(self) -> int:
        """Channels of a group, C // G."""
        return self.geo.in_channels // self.geo.groups

    @cached_property
    def filters(self) -> int:
        """Filters of a group, F // G."""
        return self.geo.out_channels // self.geo.groups

    @cached_property
    def padded(self) -> tuple[int, ...]:
        """The padded input's spatial size."""
        return self.geo.padded().in_spatial

    @cached_property
    def pads(self) -> bool:
        """Whether there is any padding."""
        return any(map(any, self.geo.padding))

    @cached_property
    def flat(self) -> bool:
        """Whether a window is one run in memory."""
        return self.groups == 1 and self.geo.kernel[:3] == (1, 1, 1) and self.geo.dilation[3] == 1

    def strides_of(self, strides: Sequence[int]) -> tuple[int, ...]:
        """The strides of the windows `(rows, columns, G, B, K0, K1, KH, KW, C // G)` of sites `(B, ..., C)`."""
        geo, (batch, *steps, channel) = self.geo, strides
        taps = (d * step for d, step in zip(geo.dilation, steps, strict=True))
        return (geo.stride[2] * steps[2], geo.stride[3] * steps[3], self.channels * channel, batch, *taps, channel)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """The strides of the windows of an input without padding."""
        sizes = (*self.geo.in_spatial, self.geo.in_channels)
        return self.strides_of([math.prod(sizes[d:]) for d in range(len(sizes) + 1)])

    @cached_property
    def _steps(self) -> list[int]:
        """How far apart in an input without padding the windows of neighbours lie, a dimension."""
        spatial, channels = self.geo.in_spatial, self.geo.in_channels
        return [s * channels * math.prod(spatial[d + 1 :]) for d, s in enumerate(self.geo.stride)]

    def offset_of(self, block: Block, x: Tensor) -> int:
        """Where in the storage of an input without padding a block's first window begins."""
        steps = self._steps
        row, column = block.first[2:]
        return int(x.storage_offset()) + block.o0 * steps[0] + block.o1 * steps[1] + row * steps[2] + column * steps[3]

    @cached_property
    def apart(self) -> int:
        """How many columns apart two positions' windows no longer overlap."""
        return -(-self.geo.extent[3] // self.geo.stride[3])

    def blocks(self, position_bytes: int, least: int = 0) -> tuple[Block, ...]:
        """All positions in blocks of about `block_bytes()`, or `least`: whole rows or a part of one, never nothing."""
        most = max(1, max(block_bytes(), least) // max(1, position_bytes))
        return _blocks(self.geo.out_spatial, max(1, most // self.geo.out_spatial[3]), most, by_rows=False)

    def bands(self, window_bytes: int, through_bytes: int) -> tuple[Block, ...]:
        """All positions in blocks of several rows, for windows whose rows of sites are copied once for all of these.

        Args:
            window_bytes: of a position's window.
            through_bytes: of what else of a position goes through a buffer.
        """
        columns = MOST_BYTES // max(
            window_bytes + window_bytes // 2, through_bytes
        )  # rows for half of the taps, or more
        threads = torch.get_num_threads()
        columns = max(1, min(columns - columns % threads if columns > threads else columns, self.geo.out_spatial[3]))
        (taps, step), row_bytes = (self.geo.kernel[2], self.geo.stride[2]), window_bytes // self.geo.kernel[2]
        rows = (MOST_BYTES // (columns * row_bytes) - taps) // step + 1
        rows = max(1, min(rows, MOST_BYTES // (columns * through_bytes)))
        return _blocks(self.geo.out_spatial, rows, columns, by_rows=True)

    def runs(self, block: Block, whole: Tensor) -> Sequence[Tensor]:
        """Of a tensor `(P, ...)`, what is of each of a block's runs."""
        if not block.by_rows:
            return (part_of(whole, block.span),)
        plane = whole.view(-1, *self.geo.out_spatial[2:], *whole.shape[1:]).select(0, block.plane)
        return part_of(part_of(plane, block.rows), block.columns, 1).unbind(0)

    def strips(self, position_bytes: int) -> Iterator[Strip]:
        """All rows of sites, some at a time: of a row of positions each, as many bytes as an input gradient's block."""
        i0, i1, height, _ = self.geo.in_spatial
        width = self.geo.out_spatial[3]
        most = max(1, input_grad_bytes() // max(1, position_bytes))
        across = _even(width, most)
        high = max(1, min(height, most // width))
        for a, b, row in itertools.product(range(i0), range(i1), range(0, height, high)):
            rows = range(row, min(row + high, height))
            yield Strip((a, b), rows, across, [self._row_readers(a, b, c) for c in rows])

    def _row_readers(self, *row: int) -> list[tuple[int, int]]:
        met = [self._readers[d][i] for d, i in enumerate(row)]
        (_, p1, p2, _), (_, k1, k2, _) = self.geo.out_spatial, self.geo.kernel
        return [
            ((a * p1 + b) * p2 + c, (ka * k1 + kb) * k2 + kc) for (a, ka), (b, kb), (c, kc) in itertools.product(*met)
        ]

    @cached_property
    def _readers(self) -> list[list[list[tuple[int, int]]]]:
        """For each of the first three dimensions and each of its sites: the (position, tap) pairs that read it."""
        geo = self.geo
        return [
            [
                [
                    (at // geo.stride[d], tap)
                    for tap in range(geo.kernel[d])
                    if (at := site + geo.padding[d][0] - tap * geo.dilation[d]) >= 0
                    and at % geo.stride[d] == 0
                    and at // geo.stride[d] < geo.out_spatial[d]
                ]
                for site in range(geo.in_spatial[d])
            ]
            for d in range(3)
        ]


class Windows:
    """The windows of a block's positions, as a view.

    Where there is padding, the sites under the block and the zeros around them are copied to a small buffer first: a
    padded copy of all of x never exists.

    Args:
        layer: the layer.
        x: `(B, I0, I1, IH, IW, C)`, contiguous.
        turned: whether the windows are to have the batch innermost in memory: sites are then copied as with padding.
    """

    def __init__(self, layer: Layer, x: Tensor, *, turned: bool = False) -> None:
        self.layer = layer
        self.x = x
        self.turned = turned
        self.copied = turned or layer.pads
        self.band = x.new_empty(0) if self.copied else x

    def of(self, block: Block) -> Tensor:
        """The windows of a block, `(rows, columns, G, B, K0, K1, KH, KW, C // G)`."""
        layer, x = self.layer, self.x
        if self.copied:
            x, offset = self._copy(block)
            strides = layer.strides_of(x.stride())
        else:
            strides, offset = layer.strides, layer.offset_of(block, x)
        size = (*block.shape, layer.groups, x.shape[0], *layer.geo.kernel, layer.channels)
        return x.as_strided(size, strides, offset)

    def columns(self, block: Block) -> Tensor:
        """What the windows of each column of a block read, `(columns, G, B, rows of sites, KW, C // G)`.

        With one tap in the first two dimensions and no dilation in the third, each window is so many rows of those.
        """
        geo, windows = self.layer.geo, self.of(block)
        rows = (block.shape[0] - 1) * geo.stride[2] + geo.kernel[2]
        return windows.as_strided(
            (*windows.shape[1:4], rows, *windows.shape[7:]), [windows.stride(d) for d in (1, 2, 3, 6, 7, 8)]
        )

    def matrices(self, block: Block) -> Tensor:
        """The windows of a block of a row as matrices `(columns, B, D)`, of a layer whose windows are `flat`."""
        layer, x = self.layer, self.x
        if self.copied:
            x, offset = self._copy(block)
        else:
            offset = layer.offset_of(block, x)
        size = (block.shape[1], x.shape[0], layer.geo.window)
        return x.as_strided(size, (layer.geo.stride[3] * layer.channels, x.stride(0), 1), offset)

    def _copy(self, block: Block) -> tuple[Tensor, int]:
        """The sites under a block, zeros where they lie in the padding, and where they begin in their storage."""
        geo = self.layer.geo
        start = [o * s - low for o, s, (low, _) in zip(block.first, geo.stride, geo.padding, strict=True)]
        last = [0, 0, block.shape[0] - 1, block.shape[1] - 1]
        sizes = [n * s + e for n, s, e in zip(last, geo.stride, geo.extent, strict=True)]
        shape = (self.x.shape[0], *sizes, geo.in_channels)
        if self.band.numel() < math.prod(shape):
            self.band = self.x.new_empty(math.prod(shape))
        band = self.band[: math.prod(shape)]
        band = band.view(*shape[1:], shape[0]).movedim(-1, 0) if self.turned else band.view(shape)
        ends = [min(i + n, size) for i, n, size in zip(start, sizes, geo.in_spatial, strict=True)]
        source = [slice(max(i, 0), max(i, 0, end)) for i, end in zip(start, ends, strict=True)]
        own = [slice(s.start - i, s.stop - i) for s, i in zip(source, start, strict=True)]
        target = band[:, own[0], own[1], own[2], own[3]]
        if target.numel() < band.numel():
            band.zero_()
        target.copy_(self.x[:, source[0], source[1], source[2], source[3]])
        return band, 0


def store(target: Tensor, source: Tensor) -> None:
    """target.copy_(source), of shape `(B, ...)`: piece after piece where the batch is innermost in the source."""
    most = TURN_BYTES * torch.get_num_threads()
    if source.nbytes <= most or source.ndim == 2 or source.stride(0) > source.stride(-1):
        target.copy_(source)
    elif source[:, 0].nbytes > most:
        for row in range(source.shape[1]):
            store(target[:, row], source[:, row])
    else:
        for rows in _even(source.shape[1], most // source[:, 0].nbytes):
            target[:, rows].copy_(source[:, rows])


class Outputs:
    """Where a forward's blocks go: y = act(z), and z where it is wanted.

    Args:
        y, z: `(B, *out_spatial, F)`, contiguous.
        problem: the layer and its activation.
        bias: `(*out_spatial, F)` or `(F,)`, if it is still to be added: behind the sums, which costs no pass of its
            own, and a sum that started from it would round each of its steps at the bias's size.
    """

    def __init__(self, y: Tensor, z: Tensor | None, problem: Problem, bias: Tensor | None) -> None:
        geo = Layer.of(problem).geo
        last = geo.groups, geo.out_channels // geo.groups
        sizes = math.prod(geo.out_spatial[:2]), *geo.out_spatial[2:], *last
        self.y = y.view(-1, *sizes)
        self.z = None if z is None else z.view(-1, *sizes)
        self.bias = None if bias is None else bias.reshape(last if bias.ndim == 1 else (1, *sizes))
        self.activation = problem.activation

    def store(self, part: slice, block: Block, out: Tensor) -> None:
        """Write a block's sums `(B, rows, columns, G, F // G)`, any strides; they may change."""
        y, bias = self._at(part_of(self.y, part), block), self.bias
        if bias is not None:
            bias = bias if bias.ndim == 2 else self._at(bias, block)
            if self.z is None and self.activation is LINEAR:
                torch.add(out, bias, out=y)
                return
            out += bias
        if self.z is not None:
            self._at(part_of(self.z, part), block).copy_(out)
        y.copy_(self.activation(out))

    @staticmethod
    def _at(whole: Tensor, block: Block) -> Tensor:
        return part_of(part_of(whole.select(1, block.plane), block.rows, 1), block.columns, 2)


def store_strip(
    layer: Layer, lines: Tensor, strip: Strip, part: slice, bias: Tensor | None, dx: Tensor, problem: Problem
) -> None:
    """Write act(lines + bias) into rows of sites of dx, without the lines' padding; lines are `(R, B, IW, ...)`."""
    geo = layer.geo
    low, size = geo.padding[3][0], geo.in_spatial[3]
    inner = lines[:, :, low : low + size].flatten(3) if lines.ndim > 4 else lines[:, :, low : low + size]
    (a, b), rows = strip.plane, slice(strip.rows.start, strip.rows.stop)
    if bias is not None:
        inner = inner + (bias if bias.ndim == 1 else bias.view(*geo.in_spatial, -1)[a, b, rows].unsqueeze(1))
    store(dx.view(len(dx), *geo.in_spatial, -1)[part, a, b, rows], problem.activation(inner).transpose(0, 1))
