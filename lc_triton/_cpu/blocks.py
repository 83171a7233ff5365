"""A layer cut into blocks of output positions, and the windows of a block as a view of its input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from lc_triton.core.activations import LINEAR
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem

# Bytes of a block's windows a thread: within its share of the last cache on common servers. Smaller blocks would stay
# nearer, but starting threads then takes longer than that saves.
BLOCK_BYTES = 4 << 20
# Bytes of a buffer that grows with the batch: what would take more goes through in parts of the batch.
MOST_BYTES = 16 << 20
# Positions, and numbers at a tap, from which a layer of one channel and one filter goes tap by tap.
LEAST_POSITIONS, LEAST_NUMBERS = 1 << 10, 1 << 14

# What is done with the weight gradients of a run of positions, instead of storing them.
OnBlock = Callable[[slice, Tensor], None]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products of a dtype are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_single(problem: Problem, batch: int) -> bool:
    """Whether a layer goes tap by tap, for it has one channel, one filter and many positions."""
    geo = problem.tuning_geometry
    many = geo.positions >= LEAST_POSITIONS and geo.positions * batch >= LEAST_NUMBERS
    return many and geo.in_channels == geo.out_channels == 1


def block_bytes() -> int:
    """Bytes of a block's windows."""
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


def part_of(tensor: Tensor, span: slice, dim: int = 0) -> Tensor:
    """A part of a tensor along a dimension; the tensor itself where that is all of it, which takes no time."""
    size = span.stop - span.start
    return tensor if size == tensor.shape[dim] else tensor.narrow(dim, span.start, size)


def even_parts(size: int, most: int) -> list[slice]:
    """`range(size)` in parts of about the same size, `most` at most."""
    count = -(-size // most)
    part = -(-size // count)
    return [slice(start, min(start + part, size)) for start in range(0, size, part)]


def parts(batch: int, sample_bytes: int) -> list[slice]:
    """The batch in parts of about the same size whose buffers take at most `MOST_BYTES`."""
    return even_parts(batch, max(1, MOST_BYTES // sample_bytes))


@dataclass(frozen=True)
class Block:
    """A box of positions that are one run in row-major order."""

    first: tuple[int, ...]  # in four dimensions
    shape: tuple[int, ...]
    span: slice  # in row-major order

    @property
    def positions(self) -> int:
        """How many positions it has."""
        return math.prod(self.shape)


@lru_cache(maxsize=256)
def _blocks(out_spatial: tuple[int, ...], most: int) -> tuple[Block, ...]:
    """All positions in blocks of `most` at most, but of one at least."""
    dim, inner = 3, 1
    while dim > 0 and inner * out_spatial[dim] <= most:
        inner *= out_spatial[dim]
        dim -= 1
    blocks, start = [], 0
    for outer in itertools.product(*map(range, out_spatial[:dim])):
        for cut in even_parts(out_spatial[dim], max(1, most // inner)):
            count = cut.stop - cut.start
            first = (*outer, cut.start, *(0 for _ in out_spatial[dim + 1 :]))
            shape = (*(1 for _ in outer), count, *out_spatial[dim + 1 :])
            blocks.append(Block(first, shape, slice(start, start := start + count * inner)))
    return tuple(blocks)


class Layer:
    """A geometry in four dimensions, and what follows from it."""

    def __init__(self, geo: Geometry, tuning: Geometry) -> None:
        self.geo, self.groups = geo, geo.groups
        self.tuning_filters = tuning.out_channels // tuning.groups  # of the layer that this one may be a part of
        self.channels, self.filters = geo.in_channels // geo.groups, geo.out_channels // geo.groups  # of a group
        self.padded, self.pads = geo.padded().in_spatial, any(map(any, geo.padding))
        one_run = geo.kernel[:3] == (1, 1, 1) and (geo.dilation[3] == 1 or geo.kernel[3] == 1)
        self.flat = one_run and geo.groups == 1  # whether a window is one run in memory

    @classmethod
    def of(cls, problem: Problem) -> Layer:
        """The layer of a problem, made once."""
        layer: Layer | None = problem.launches.get("layer")
        if layer is None:
            layer = problem.launches["layer"] = cls(problem.geometry.as_4d(), problem.tuning_geometry)
        return layer

    def spatial(self, x: Tensor) -> Tensor:
        """x as `(B, I0, I1, IH, IW, C)`, contiguous."""
        return x.contiguous().view(x.shape[0], *self.geo.in_spatial, self.geo.in_channels)

    def blocks(self, position_bytes: int) -> tuple[Block, ...]:
        """All positions in blocks of about `block_bytes()`."""
        return _blocks(self.geo.out_spatial, max(1, block_bytes() // max(1, position_bytes)))


class Windows:
    """The windows of a block's positions, as a view.

    Where there is padding, the sites under the block and the zeros around them are copied to a small buffer first: a
    padded copy of all of x never exists.

    Args:
        layer: the layer.
        x: `(B, I0, I1, IH, IW, C)`, contiguous.
        innermost: whether the windows have the batch innermost in memory: sites are then copied as with padding.
    """

    def __init__(self, layer: Layer, x: Tensor, *, innermost: bool = False) -> None:
        self.layer = layer
        self.x = x
        self.innermost = innermost
        self.copied = innermost or layer.pads
        self.copy = x.new_empty(0) if self.copied else x

    def of(self, block: Block) -> Tensor:
        """The windows of a block, `(*positions, G, B, *kernel, C // G)`."""
        geo, layer, x, offset = self.layer.geo, self.layer, self.x, 0
        if self.copied:
            x = self._copy(block)
        batch, *steps, channel = x.stride()
        moves = [s * step for s, step in zip(geo.stride, steps, strict=True)]
        if not self.copied:
            offset = int(x.storage_offset()) + sum(o * move for o, move in zip(block.first, moves, strict=True))
        taps = (d * step for d, step in zip(geo.dilation, steps, strict=True))
        size = (*block.shape, layer.groups, x.shape[0], *geo.kernel, layer.channels)
        return x.as_strided(size, (*moves, layer.channels * channel, batch, *taps, channel), offset)

    def _copy(self, block: Block) -> Tensor:
        """The sites under a block, zeros where they lie in the padding."""
        geo = self.layer.geo
        start = [o * s - low for o, s, (low, _) in zip(block.first, geo.stride, geo.padding, strict=True)]
        sizes = [(n - 1) * s + e for n, s, e in zip(block.shape, geo.stride, geo.extent, strict=True)]
        shape = (self.x.shape[0], *sizes, geo.in_channels)
        if self.copy.numel() < math.prod(shape):
            self.copy = self.x.new_empty(math.prod(shape))
        sites = self.copy[: math.prod(shape)]
        sites = sites.view(*shape[1:], shape[0]).movedim(-1, 0) if self.innermost else sites.view(shape)
        ends = [min(i + n, size) for i, n, size in zip(start, sizes, geo.in_spatial, strict=True)]
        source = [slice(max(i, 0), max(i, 0, end)) for i, end in zip(start, ends, strict=True)]
        own = [slice(s.start - i, s.stop - i) for s, i in zip(source, start, strict=True)]
        target = sites[:, own[0], own[1], own[2], own[3]]
        if target.numel() < sites.numel():
            sites.zero_()
        target.copy_(self.x[:, source[0], source[1], source[2], source[3]])
        return sites


class Outputs:
    """Where a forward's blocks go: y = act(z), and z where it is wanted.

    Args:
        y, z: `(B, *out_spatial, F)`, contiguous.
        problem: the layer and its activation.
        bias: `(*out_spatial, F)` or `(F,)`, if it is still to be added: behind the sums, which costs no pass of its
            own, and a sum that started from it would round each of its steps at the bias's size.
    """

    def __init__(self, y: Tensor, z: Tensor | None, problem: Problem, bias: Tensor | None) -> None:
        layer = Layer.of(problem)
        last = layer.groups, layer.filters
        sizes = (-1, layer.geo.positions, *last)
        self.y = y.view(sizes)
        self.z = None if z is None else z.view(sizes)
        self.bias = None if bias is None else bias.reshape(last if bias.ndim == 1 else (1, *sizes[1:]))
        self.activation = problem.activation

    def store(self, part: slice, block: Block, out: Tensor) -> None:
        """Write a block's sums `(B, positions, G, F // G)`, any strides; they may change."""
        y, bias = part_of(part_of(self.y, part), block.span, 1), self.bias
        if bias is not None:
            bias = bias if bias.ndim == 2 else part_of(bias, block.span, 1)
            if self.z is None and self.activation is LINEAR:
                torch.add(out, bias, out=y)
                return
            out += bias
        if self.z is not None:
            part_of(part_of(self.z, part), block.span, 1).copy_(out)
        y.copy_(self.activation(out))
