"""Penalties on how filters differ between positions, each value and each gradient in one pass over the weight.

On a GPU each is a launch, elsewhere a loop over blocks. A weight is seen as `(*grid, D, A, B)`: positions, D = taps *
channels, and filters as a sheet `(A, B)`, of one row where there is none. A pair of neighbours is a pair of filters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lc_triton.core.backend import is_compiling_ahead, resolve
from lc_triton.core.batched_gradients import one_by_one
from lc_triton.keras.penalty import can_block, wide
from lc_triton.ops.dispatch import as_stored

KINDS = ("neighbours", "mean", "smooth")
REDUCTIONS = ("mean", "sum")

# Numbers of a block: the overhead of torch's calls is a tenth of its time, and its data stays in the last-level cache.
BLOCK = 1 << 18
# How many times larger blocks are on other devices, where each call is a launch.
LAUNCHED = 16
# Positions with fewer numbers may be given to the kernels.
MOST_NUMBERS = 2**30

Filters: TypeAlias = "tuple[Any, slice, slice]"
ALL: Filters = (..., slice(None), slice(None))


class Pair(NamedTuple):
    """Neighbours along one dimension: -1 where both filters belong to one position."""

    dim: int
    source: Filters
    target: Filters


@dataclass(frozen=True)
class Penalty:
    """A kind of penalty for the weight of one layer.

    Args:
        kind: one of `KINDS`.
        reduction: one of `REDUCTIONS`.
        grid: positions per dimension.
        sheet: rows and columns of the filters of a position.
        is_sheet: whether filters have neighbours within their position, and at its borders those of the next.
    """

    kind: str
    reduction: str
    grid: tuple[int, ...]
    sheet: tuple[int, int]
    is_sheet: bool = False

    def pairs(self) -> list[list[Pair]]:
        """The pairs of each direction."""
        found = []
        for dim, size in enumerate(self.grid):
            axis = dim - len(self.grid) + 2
            direction: list[Pair] = []
            if self.is_sheet and self.sheet[axis] > 1:
                direction.append(Pair(-1, _along(axis, slice(None, -1)), _along(axis, slice(1, None))))
            if self.is_sheet and size > 1:
                direction.append(Pair(dim, _along(axis, slice(-1, None)), _along(axis, slice(1))))
            elif size > 1:
                direction.append(Pair(dim, ALL, ALL))
            if direction:
                found.append(direction)
        return found

    def weighted(self, w: Tensor) -> list[tuple[Pair, float]]:
        """Each pair and its factor."""
        numbers = w[..., :1, :, :] if self.kind == "neighbours" else w
        found, directions = [], self.pairs()
        for direction in directions:
            count = sum(_sides(numbers, pair)[0].numel() for pair in direction)
            scale = 1 / (count * len(directions)) if self.reduction == "mean" else 1.0
            found += [(pair, scale) for pair in direction]
        return found


def _along(axis: int, part: slice) -> Filters:
    """A part of the sheet's rows (axis 0) or columns."""
    return (..., part, slice(None)) if axis == 0 else (..., slice(None), part)


def _sides(tensor: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
    """The first and the second of all pairs in a tensor `(*grid, ..., A, B)`, views."""
    dim, source, target = pair
    if dim < 0:
        return tensor[source], tensor[target]
    size = tensor.shape[dim] - 1
    return tensor.narrow(dim, 0, size)[source], tensor.narrow(dim, 1, size)[target]


def penalty(weight: Tensor, kind: Penalty) -> Tensor:
    """A penalty of a weight `(*positions, ..., F)`, a scalar in its dtype, or in float32 where that has 16 bits."""
    w = weight.reshape(*kind.grid, -1, *kind.sheet)
    if not _is_plain(w) or forward_ad._current_level >= 0 or not w.numel():
        return _plain(w, kind)
    value: Tensor = _Penalty.apply(w, kind)  # type: ignore[no-untyped-call]
    return value


def _is_plain(w: Tensor) -> bool:
    """Whether w is memory that nothing records, or no memory at all, for which kernels are compiled."""
    return can_block(w) or (w.is_meta and is_compiling_ahead())


def _has_kernels(w: Tensor, kind: Penalty) -> bool:
    """Whether kernels compute a penalty; they count the numbers of a position in 32 bits."""
    return not kind.is_sheet and w.shape[-3:].numel() < MOST_NUMBERS and resolve(w.device.type) == "triton"


def _shape_for_kernels(w: Tensor, kind: Penalty) -> Any:
    """The weight and the factors of its pairs, as the kernels read them."""
    from lc_triton.launch.position_penalty import WeightShape

    before = 3 - len(kind.grid)
    if kind.kind == "mean":
        factors = dict.fromkeys(range(3), _scale(w, kind))
    else:
        factors = {before + pair.dim: scale for pair, scale in kind.weighted(w)}
    z, h, w_ = (1,) * before + kind.grid
    of_z, of_h, of_w = (factors.get(dim, 0.0) for dim in range(3))
    return WeightShape((z, h, w_), w.shape[-3], math.prod(kind.sheet), (of_z, of_h, of_w))


def _plain(w: Tensor, kind: Penalty) -> Tensor:
    """The penalty in torch's own operations, which autograd, transforms and compilers know."""
    w = w.to(wide(w.dtype))
    if kind.kind == "mean":
        squares = (w - w.mean(tuple(range(len(kind.grid))))).square()
        return squares.mean() if kind.reduction == "mean" else squares.sum()
    total = w[:0].sum()  # 0 with a graph, where there are no pairs
    unit = w * _inverse(w.square().sum(-3, keepdim=True)) if kind.kind == "neighbours" else w
    for pair, scale in kind.weighted(w):
        a, b = _sides(unit, pair)
        each = (1 - (a * b).sum(-3)) / 2 if kind.kind == "neighbours" else (a - b).square()
        total = total + each.sum() * scale
    return total


def _inverse(squares: Tensor) -> Tensor:
    """1 / norm, and 0 for a filter of zeros, which has no direction: its cosines are 0 and have no gradient."""
    nonzero = squares > 0
    return torch.where(nonzero, torch.where(nonzero, squares, 1).rsqrt(), 0)


class _Penalty(torch.autograd.Function):
    """The penalty of w `(*grid, D, A, B)` and its gradient, by kernels or block by block."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, kind: Penalty) -> Tensor:
        ctx.kind, ctx.shape = kind, None
        if _has_kernels(w, kind):
            from lc_triton.launch import position_penalty as launch

            ctx.shape = _shape_for_kernels(w, kind)
            value, of_kernel = launch.VALUES[kind.kind](as_stored(w).contiguous(), ctx.shape)
            kept: Sequence[Tensor] = () if of_kernel is None else (of_kernel,)
        else:
            value, kept = FORWARD[kind.kind](w, kind)
        ctx.save_for_backward(w, *kept)
        return value.to(wide(w.dtype))

    @staticmethod
    @one_by_one
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (w, *kept), kind = ctx.saved_tensors, ctx.kind
        if torch.is_grad_enabled() or not _is_plain(w):  # a double backward, or inside a transform
            with torch.enable_grad():
                leaf = w if w.requires_grad else w.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(_plain(leaf, kind), leaf, g, create_graph=True)
            return gradient, None
        if ctx.shape is not None:
            from lc_triton.launch import position_penalty as launch

            stored, of_kernel = as_stored(w).contiguous(), kept[0] if kept else None
            return launch.GRADIENTS[kind.kind](stored, of_kernel, as_stored(g), ctx.shape), None
        return BACKWARD[kind.kind](w, kept, g, kind), None


class Block(NamedTuple):
    """Rows of the first dimension of a grid, of some taps, and the row before them, which pairs along it read."""

    first: int
    start: int
    stop: int
    taps: slice

    def of(self, tensor: Tensor) -> Tensor:
        """What the block reads of a tensor like the weight."""
        return tensor[self.first : self.stop, ..., self.taps, :, :]

    def sides(self, read: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
        """The first and the second of all pairs whose second lies in the block, as views of what it reads."""
        return _sides(read if pair.dim == 0 else read[self.start - self.first :], pair)

    def rows(self, of_pairs: Tensor, pair: Pair) -> Tensor:
        """The entries of these pairs in a tensor that has one for each pair."""
        return of_pairs[self.first : self.stop - 1] if pair.dim == 0 else of_pairs[self.start : self.stop]


def _blocks(w: Tensor) -> Iterator[Block]:
    """Blocks of taps, one after the other, and of rows: the row before a block is still in the cache."""
    most = BLOCK if w.device.type == "cpu" else BLOCK * LAUNCHED
    row, filters = math.prod(w.shape[1:-3]), math.prod(w.shape[-2:])
    count = max(1, min(w.shape[-3], most // (row * filters)))
    rows = max(1, most // (row * count * filters))
    for tap in range(0, w.shape[-3], count):
        for start in range(0, len(w), rows):
            yield Block(max(0, start - 1), start, min(start + rows, len(w)), slice(tap, tap + count))


def _summed(w: Tensor, gradient: Tensor) -> Iterator[tuple[Block, Tensor, Tensor]]:
    """Each block, what it reads of w, and its part of the gradient, whose first row has the sums of the block before.

    For numbers of 16 bits both are in float32: the last row too, which the next block completes.
    """
    dtype = wide(w.dtype)
    last = w.new_empty(0, dtype=dtype)
    for block in _blocks(w):
        read, out = block.of(w), block.of(gradient)
        if w.dtype == dtype:
            yield block, read, out
            continue
        sums = torch.empty_like(out, dtype=dtype)
        if block.first < block.start:
            sums[0] = last
        yield block, read.to(dtype), sums
        out.copy_(sums)
        last = sums[-1]


def _cosines(w: Tensor, kind: Penalty) -> tuple[Tensor, Sequence[Tensor]]:
    dtype, pairs = wide(w.dtype), kind.weighted(w)
    squares = torch.zeros_like(w[..., :1, :, :], dtype=dtype)
    products = [torch.zeros_like(_sides(squares, pair)[0]) for pair, _ in pairs]
    buffer = squares.new_empty(0)
    for block in _blocks(w):
        read = block.of(w).to(dtype)
        own = read[block.start - block.first :]
        squares[block.start : block.stop] += _into(buffer, torch.mul, own, own).sum(-3, keepdim=True)
        for (pair, _), product in zip(pairs, products, strict=True):
            a, b = block.sides(read, pair)
            rows = block.rows(product, pair)
            rows += _into(buffer, torch.mul, a, b).sum(-3, keepdim=True)
    inverse = _inverse(squares)
    total = torch.zeros((), dtype=torch.float64, device=w.device)
    for (pair, scale), product in zip(pairs, products, strict=True):
        a, b = _sides(inverse, pair)
        product.mul_(a).mul_(b)
        total += (1 - product).sum(dtype=torch.float64) * (scale / 2)
    return total, (inverse, *products)


def _cosine_gradient(w: Tensor, kept: Sequence[Tensor], g: Tensor, kind: Penalty) -> Tensor:
    """Multiples of each filter minus multiples of its neighbours: `d cos / d a = (b / |b| - cos a / |a|) / |a|`."""
    inverse, *cosines = kept
    own, of_pairs = torch.zeros_like(inverse), []
    for (pair, scale), cosine in zip(kind.weighted(w), cosines, strict=True):
        (a, b), (own_a, own_b) = _sides(inverse, pair), _sides(own, pair)
        cosine = cosine * (g * (scale / 2))
        own_a += cosine * a.square()
        own_b += cosine * b.square()
        of_pairs.append((pair, a * b * (g * (scale / 2))))
    gradient = torch.empty_like(w)
    for block, read, sums in _summed(w, gradient):
        fresh = block.start - block.first
        torch.mul(read[fresh:], own[block.start : block.stop], out=sums[fresh:])
        for pair, factors in of_pairs:
            (a, b), (to_a, to_b) = block.sides(read, pair), block.sides(sums, pair)
            rows = block.rows(factors, pair)
            to_a.addcmul_(b, rows, value=-1)
            to_b.addcmul_(a, rows, value=-1)
    return gradient


def _differences(w: Tensor, kind: Penalty) -> tuple[Tensor, Sequence[Tensor]]:
    total = torch.zeros((), dtype=torch.float64, device=w.device)
    pairs, buffer = kind.weighted(w), w.new_empty(0, dtype=wide(w.dtype))
    for block in _blocks(w):
        read = block.of(w).to(buffer.dtype)
        for pair, scale in pairs:
            apart = _into(buffer, torch.sub, *block.sides(read, pair)).view(-1)
            total += torch.dot(apart, apart) * scale
    return total, ()


def _difference_gradient(w: Tensor, kept: Sequence[Tensor], g: Tensor, kind: Penalty) -> Tensor:
    """Differences, not multiples of filters: the gradient of equal neighbours is 0, not what rounding leaves."""
    pairs = [(pair, 2 * g * scale) for pair, scale in kind.weighted(w)]
    gradient, buffer = torch.empty_like(w), w.new_empty(0, dtype=wide(w.dtype))
    for block, read, sums in _summed(w, gradient):
        sums[block.start - block.first :].zero_()
        for pair, factor in pairs:
            (a, b), (to_a, to_b) = block.sides(read, pair), block.sides(sums, pair)
            apart = _into(buffer, torch.sub, a, b)
            to_a.addcmul_(apart, factor)
            to_b.addcmul_(apart, factor, value=-1)
    return gradient


def _variance(w: Tensor, kind: Penalty) -> tuple[Tensor, Sequence[Tensor]]:
    """The squares around each block's mean, and what its distance to the mean of the blocks before adds.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    total = torch.zeros((), dtype=torch.float64, device=w.device)
    w = w.flatten(0, -4)
    mean, buffer = torch.zeros_like(w[0], dtype=wide(w.dtype)), w.new_empty(0, dtype=wide(w.dtype))
    for block in _blocks(w):
        before, size = block.start, block.stop - block.start
        own = w[before : block.stop, block.taps].to(mean.dtype)
        of_block = own.mean(0)
        apart = _into(buffer, torch.sub, own, of_block).view(-1)
        total += torch.dot(apart, apart)
        moved = of_block.sub_(mean[block.taps])
        mean[block.taps].add_(moved, alpha=size / block.stop)
        total += moved.square_().sum() * (before * size / block.stop)
    return total * _scale(w, kind), (mean,)


def _variance_gradient(w: Tensor, kept: Sequence[Tensor], g: Tensor, kind: Penalty) -> Tensor:
    (mean,) = kept
    gradient, factor = torch.empty_like(w), 2 * g * _scale(w, kind)
    for block in _blocks(w):
        rows = slice(block.start, block.stop)
        own, out = w[rows, ..., block.taps, :, :], gradient[rows, ..., block.taps, :, :]
        if w.dtype == mean.dtype:
            torch.sub(own, mean[block.taps], out=out).mul_(factor)
        else:
            out.copy_((own.to(mean.dtype) - mean[block.taps]) * factor)
    return gradient


def _scale(w: Tensor, kind: Penalty) -> float:
    return 1 / w.numel() if kind.reduction == "mean" else 1.0


def _into(buffer: Tensor, function: Any, a: Tensor, b: Tensor) -> Tensor:
    """function(a, b) in the memory of a buffer, which grows at its first use alone."""
    shape = torch.broadcast_shapes(a.shape, b.shape)
    if buffer.numel() < (size := math.prod(shape)):
        buffer.resize_(size)
    found: Tensor = function(a, b, out=buffer[:size].view(shape))
    return found


FORWARD: dict[str, Callable[[Tensor, Penalty], tuple[Tensor, Sequence[Tensor]]]] = {
    "neighbours": _cosines,
    "mean": _variance,
    "smooth": _differences,
}
BACKWARD: dict[str, Callable[[Tensor, Sequence[Tensor], Tensor, Penalty], Tensor]] = {
    "neighbours": _cosine_gradient,
    "mean": _variance_gradient,
    "smooth": _difference_gradient,
}
