"""Penalties on how filters differ between positions, each value and each gradient in one pass over the weight.

A weight is seen as `(P, D, A, B)`: P positions, D = taps * channels, and filters as a sheet `(A, B)`, of one row where
there is none. A pair of neighbours is a pair of filters, of positions that lie `offset` apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lc_triton.core.batched_gradients import one_by_one
from lc_triton.keras.penalty import can_block, wide

KINDS = ("neighbours", "mean", "smooth")
REDUCTIONS = ("mean", "sum")

# Numbers of a block of positions: with its neighbours and a buffer it stays in a core's cache.
BLOCK = 1 << 17

Filters: TypeAlias = "tuple[Any, slice, slice]"
Pair: TypeAlias = "tuple[int, Filters, Filters, int]"
ALL: Filters = (..., slice(None), slice(None))


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
        """For each direction its pairs: (offset, filters of the first, filters of the second, dimension crossed).

        The dimension is -1 where both filters belong to one position.
        """
        found = []
        for dim, size in enumerate(self.grid):
            axis, offset = dim - len(self.grid) + 2, math.prod(self.grid[dim + 1 :])
            direction: list[Pair] = []
            if self.is_sheet and self.sheet[axis] > 1:
                direction.append((0, _along(axis, slice(None, -1)), _along(axis, slice(1, None)), -1))
            if self.is_sheet and size > 1:
                direction.append((offset, _along(axis, slice(-1, None)), _along(axis, slice(1)), dim))
            elif size > 1:
                direction.append((offset, ALL, ALL, dim))
            if direction:
                found.append(direction)
        return found

    def weighted(self, w: Tensor) -> Iterator[tuple[Pair, Tensor]]:
        """Each pair and its factors `(P - offset,)`: 0 where a step of `offset` leaves the grid."""
        directions = self.pairs()
        for direction in directions:
            masks = [self._inside(pair, w) for pair in direction]
            count = sum(self._numbers(pair, w, mask) for pair, mask in zip(direction, masks, strict=True))
            scale = 1 / (count * len(directions)) if self.reduction == "mean" else 1.0
            for pair, mask in zip(direction, masks, strict=True):
                yield pair, mask.to(wide(w.dtype)) * scale

    def _inside(self, pair: Pair, w: Tensor) -> Tensor:
        offset, _, _, dim = pair
        first = torch.arange(w.shape[0] - offset, device=w.device)
        if dim < 0:
            return torch.ones_like(first, dtype=torch.bool)
        return first // offset % self.grid[dim] < self.grid[dim] - 1

    def _numbers(self, pair: Pair, w: Tensor, mask: Tensor) -> int:
        """Pairs of filters, or of numbers where numbers are compared."""
        _, source, _, dim = pair
        positions = math.prod(self.grid) if dim < 0 else math.prod(self.grid) // self.grid[dim] * (self.grid[dim] - 1)
        rows, columns = (len(range(n)[part]) for n, part in zip(w.shape[2:], source[1:], strict=True))
        return positions * rows * columns * (w.shape[1] if self.kind == "smooth" else 1)


def _along(axis: int, part: slice) -> Filters:
    """A part of the sheet's rows (axis 0) or columns."""
    return (..., part, slice(None)) if axis == 0 else (..., slice(None), part)


def penalty(weight: Tensor, kind: Penalty) -> Tensor:
    """A penalty of a weight `(*positions, ..., F)`, a scalar in its dtype, or in float32 where that has 16 bits."""
    w = weight.reshape(math.prod(kind.grid), -1, *kind.sheet)
    if not can_block(w) or forward_ad._current_level >= 0 or not w.numel():
        return _plain(w, kind)
    value: Tensor = _Penalty.apply(w, kind)  # type: ignore[no-untyped-call]
    return value


def _plain(w: Tensor, kind: Penalty) -> Tensor:
    """The penalty in torch's own operations, which autograd, transforms and compilers know."""
    w = w.to(wide(w.dtype))
    if kind.kind == "mean":
        squares = (w - w.mean(0)).square()
        return squares.mean() if kind.reduction == "mean" else squares.sum()
    total = w[:0].sum()  # 0 with a graph, where there are no pairs
    unit = w * _inverse(w.square().sum(1)).unsqueeze(1) if kind.kind == "neighbours" else w
    for (offset, source, target, _), factors in kind.weighted(w):
        a, b = unit[: len(unit) - offset][source], unit[offset:][target]
        each = (1 - (a * b).sum(1)) / 2 if kind.kind == "neighbours" else (a - b).square().sum(1)
        total = total + (each.sum((1, 2)) * factors).sum()
    return total


def _inverse(squares: Tensor) -> Tensor:
    """1 / norm, and 0 for a filter of zeros, which has no direction: its cosines are 0 and have no gradient."""
    nonzero = squares > 0
    return torch.where(nonzero, torch.where(nonzero, squares, 1).rsqrt(), 0)


class _Penalty(torch.autograd.Function):
    """The penalty of w `(P, D, A, B)` and its gradient, block by block."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, kind: Penalty) -> Tensor:
        value, kept = FORWARD[kind.kind](w, kind)
        ctx.save_for_backward(w, *kept)
        ctx.kind = kind
        return value.to(wide(w.dtype))

    @staticmethod
    @one_by_one
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (w, *kept), kind = ctx.saved_tensors, ctx.kind
        if torch.is_grad_enabled() or not can_block(w):  # a double backward, or inside a transform
            with torch.enable_grad():
                again = w if w.requires_grad else w.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(_plain(again, kind), again, g, create_graph=True)
            return gradient, None
        return BACKWARD[kind.kind](w, kept, g, kind), None


def _blocks(w: Tensor) -> Iterator[tuple[int, int]]:
    """First and last position of each block."""
    step = max(1, BLOCK // math.prod(w.shape[1:]))
    for first in range(0, w.shape[0], step):
        yield first, min(first + step, w.shape[0])


def _part(w: Tensor, first: int, last: int) -> Tensor:
    """Positions of w, in float32 where it has 16 bits."""
    return w[first:last].to(wide(w.dtype))


def _compared(w: Tensor, first: int, last: int, pair: Pair) -> tuple[Tensor, Tensor, int]:
    """The two filters of the pairs whose first lies in a block, and where these end."""
    offset, source, target, _ = pair
    last = min(last, w.shape[0] - offset)
    return _part(w, first, last)[source], _part(w, first + offset, last + offset)[target], last


def _cosines(w: Tensor, kind: Penalty) -> tuple[Tensor, Sequence[Tensor]]:
    dtype, pairs = wide(w.dtype), list(kind.weighted(w))
    squares = torch.empty((w.shape[0], *w.shape[2:]), dtype=dtype, device=w.device)
    products = [torch.empty_like(squares[: w.shape[0] - pair[0]][pair[1]]) for pair, _ in pairs]
    buffer = torch.empty(0, dtype=dtype, device=w.device)
    for first, last in _blocks(w):
        own = _part(w, first, last)
        torch.sum(_into(buffer, torch.mul, own, own), 1, out=squares[first:last])
        for (pair, _), product in zip(pairs, products, strict=True):
            a, b, end = _compared(w, first, last, pair)
            if end > first:
                torch.sum(_into(buffer, torch.mul, a, b), 1, out=product[first:end])
    inverse = _inverse(squares)
    total = torch.zeros((), dtype=torch.float64, device=w.device)
    for ((offset, source, target, _), factors), product in zip(pairs, products, strict=True):
        product *= inverse[: len(product)][source]
        product *= inverse[offset:][target]
        total += ((1 - product).sum((1, 2), dtype=torch.float64) * factors).sum() / 2
    return total, (inverse, *products)


def _cosine_gradient(w: Tensor, kept: Sequence[Tensor], g: Tensor, kind: Penalty) -> Tensor:
    """Each filter times a number, less its neighbours times numbers: `d cos / d a = (b / |b| - cos a / |a|) / |a|`."""
    inverse, *cosines = kept
    own, of_pairs = torch.zeros_like(inverse), []
    for ((offset, source, target, _), factors), cosine in zip(kind.weighted(w), cosines, strict=True):
        scale = (factors * (g / 2)).view(-1, 1, 1)
        a, b = inverse[: len(cosine)][source], inverse[offset:][target]
        own[: len(cosine)][source] += scale * cosine * a.square()
        own[offset:][target] += scale * cosine * b.square()
        of_pairs.append((offset, source, target, (scale * a * b).unsqueeze(1)))
    own = own.unsqueeze(1)
    gradient = torch.empty_like(w)
    for first, last in _blocks(w):
        out = gradient[first:last] if w.dtype == own.dtype else torch.empty_like(gradient[first:last], dtype=own.dtype)
        torch.mul(_part(w, first, last), own[first:last], out=out)
        for offset, source, target, factors in of_pairs:
            end, begin = min(last, len(factors)), max(first, offset)
            if end > first:
                b = _part(w, first + offset, end + offset)[target]
                out[: end - first][source].addcmul_(b, factors[first:end], value=-1)
            if last > begin:
                a = _part(w, begin - offset, last - offset)[source]
                out[begin - first :][target].addcmul_(a, factors[begin - offset : last - offset], value=-1)
        if w.dtype != own.dtype:
            gradient[first:last] = out
    return gradient


def _differences(w: Tensor, kind: Penalty) -> tuple[Tensor, Sequence[Tensor]]:
    total = torch.zeros((), dtype=torch.float64, device=w.device)
    pairs, buffer = list(kind.weighted(w)), torch.empty(0, dtype=wide(w.dtype), device=w.device)
    for first, last in _blocks(w):
        for pair, factors in pairs:
            a, b, end = _compared(w, first, last, pair)
            if end > first:
                apart = _into(buffer, torch.sub, a, b)
                total += (apart.mul_(apart).sum((1, 2, 3)) * factors[first:end]).sum()
    return total, ()


def _difference_gradient(w: Tensor, kept: Sequence[Tensor], g: Tensor, kind: Penalty) -> Tensor:
    """Differences, not multiples of filters: the gradient of equal neighbours is 0, not what rounding leaves."""
    dtype = wide(w.dtype)
    pairs = [(pair, (2 * g * factors).view(-1, 1, 1, 1)) for pair, factors in kind.weighted(w)]
    gradient, buffer = torch.empty_like(w), torch.empty(0, dtype=dtype, device=w.device)
    for first, last in _blocks(w):
        out = gradient[first:last] if w.dtype == dtype else torch.empty_like(gradient[first:last], dtype=dtype)
        out.zero_()
        for pair, factors in pairs:
            offset, source, target, _ = pair
            a, b, end = _compared(w, first, last, pair)
            if end > first:
                out[: end - first][source].addcmul_(_into(buffer, torch.sub, a, b), factors[first:end])
            begin = max(first, offset)
            if last > begin:
                a, b, _ = _compared(w, begin - offset, last - offset, pair)
                apart = _into(buffer, torch.sub, b, a)
                out[begin - first :][target].addcmul_(apart, factors[begin - offset : last - offset])
        if w.dtype != dtype:
            gradient[first:last] = out
    return gradient


def _variance(w: Tensor, kind: Penalty) -> tuple[Tensor, Sequence[Tensor]]:
    """The squares around each block's mean, and what its distance to the mean of the blocks before adds.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    total = torch.zeros((), dtype=torch.float64, device=w.device)
    mean, buffer = torch.zeros_like(w[0], dtype=wide(w.dtype)), torch.empty(0, dtype=wide(w.dtype), device=w.device)
    for first, last in _blocks(w):
        own, size = _part(w, first, last), last - first
        of_block = own.mean(0) if size > 1 else own[0]
        if size > 1:
            apart = _into(buffer, torch.sub, own, of_block)
            total += apart.mul_(apart).sum()
        moved = of_block - mean
        mean.add_(moved, alpha=size / last)
        total += moved.square_().sum() * (first * size / last)
    return total * _scale(w, kind), (mean,)


def _variance_gradient(w: Tensor, kept: Sequence[Tensor], g: Tensor, kind: Penalty) -> Tensor:
    (mean,) = kept
    gradient, factor = torch.empty_like(w), 2 * g * _scale(w, kind)
    for first, last in _blocks(w):
        out = gradient[first:last]
        if w.dtype == mean.dtype:
            torch.sub(w[first:last], mean, out=out).mul_(factor)
        else:
            out.copy_((_part(w, first, last) - mean) * factor)
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
