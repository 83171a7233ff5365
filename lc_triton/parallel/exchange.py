"""Transfers between ranks: linear functions in pairs, each the derivative of the other, for gradients of any order.

Along an axis a tensor is *whole* (every rank has all of it, and all of its gradient), *split* (each rank has what it
owns) or *read* (each rank has what its part of a layer reads, which overlaps with what its neighbours read).

    gather      split to whole            keep    whole to split; nothing is sent
    fetch       split to read             give    read to split, summed; as fetch, it sends what is read by others
    take        whole to read; no sends   merge   read to whole, summed
    share       whole to whole, of which each rank's use is a part       total   the sum over ranks
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lc_triton.core.ranges import overlap

# torch 2.13 renamed it and warns of the old name; the old one may go when 2.12 does.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class Axis:
    """An axis over the ranks of a group.

    Args:
        dim: which of a tensor's, counted from the last, -1.
        owned: what each rank owns, as `torch.chunk` splits it.
        read: what each rank reads.
        rank: this one.
        group: whose ranks.
    """

    dim: int
    owned: tuple[range, ...]
    read: tuple[range, ...]
    rank: int
    group: dist.ProcessGroup
    # What each rank reads of what this one owns, what each rank owns of what this one reads, and whether any rank reads
    # what another owns: computed eagerly, since a lazy attribute is a side effect under torch.compile.
    lent: tuple[range, ...] = field(init=False)
    borrowed: tuple[range, ...] = field(init=False)
    moves: bool = field(init=False)

    def __post_init__(self) -> None:
        ranks = range(len(self.owned))
        lent = tuple(overlap(self.own, read) for read in self.read)
        borrowed = tuple(overlap(owned, self.own_read) for owned in self.owned)
        moves = any(overlap(self.owned[i], self.read[j]) for i in ranks for j in ranks if i != j)
        for name, value in (("lent", lent), ("borrowed", borrowed), ("moves", moves)):
            object.__setattr__(self, name, value)

    @property
    def own(self) -> range:
        """The range that this rank owns."""
        return self.owned[self.rank]

    @property
    def own_read(self) -> range:
        """The range that this rank reads."""
        return self.read[self.rank]

    def part_of(self, tensor: Tensor, part: range, first: int = 0) -> Tensor:
        """A part of the axis of a tensor that begins at `first`."""
        return tensor.narrow(self.dim, part.start - first if part else 0, len(part))


class _Move(torch.autograd.Function):
    """One of the transfers, by its name."""

    @staticmethod
    def forward(tensor: Tensor, name: str, axis: Axis) -> Tensor:
        return _MOVES[name][0](tensor, axis)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.name, ctx.axis = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return move(_MOVES[ctx.name][1], grad, ctx.axis), None, None


def move(name: str, tensor: Tensor, axis: Axis) -> Tensor:
    """Run one of the transfers; all ranks of the axis must call it.

    Args:
        name: of it.
        tensor: what this rank has.
        axis: along which.
    """
    function: Any = _Move
    out: Tensor = function.apply(tensor, name, axis)
    return out


def _gather(part: Tensor, axis: Axis) -> Tensor:
    # Only the last part that has rows may have fewer than the others, so the zeros that fill it up come after all rows.
    full, size = len(axis.owned[0]), axis.owned[-1].stop
    rows = part.movedim(axis.dim, 0)
    sent = rows
    if len(rows) < full:
        sent = rows.new_zeros((full, *rows.shape[1:]))
        sent[: len(rows)] = rows
    whole = rows.new_empty((full * len(axis.owned), *rows.shape[1:]))
    _all_gather(whole, sent.contiguous(), group=axis.group)
    return whole[:size].movedim(0, axis.dim).contiguous()


def _keep(whole: Tensor, axis: Axis) -> Tensor:
    return axis.part_of(whole, axis.own).clone(memory_format=torch.contiguous_format)


def _fetch(part: Tensor, axis: Axis) -> Tensor:
    sent = [axis.part_of(part, lent, axis.own.start) for lent in axis.lent]
    return torch.cat(_exchange(sent, axis.borrowed, axis), axis.dim)


def _give(part: Tensor, axis: Axis) -> Tensor:
    sent = [axis.part_of(part, borrowed, axis.own_read.start) for borrowed in axis.borrowed]
    shape = list(part.shape)
    shape[axis.dim] = len(axis.own)
    total = part.new_zeros(shape)
    for lent, received in zip(axis.lent, _exchange(sent, axis.lent, axis), strict=True):
        axis.part_of(total, lent, axis.own.start).add_(received)
    return total


def _take(whole: Tensor, axis: Axis) -> Tensor:
    return axis.part_of(whole, axis.own_read).clone(memory_format=torch.contiguous_format)


def _merge(part: Tensor, axis: Axis) -> Tensor:
    return _gather(_give(part, axis), axis)


def _share(whole: Tensor, axis: Axis) -> Tensor:
    return whole.clone()


def _total(part: Tensor, axis: Axis) -> Tensor:
    total = part.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=axis.group)
    return total


_MOVES: dict[str, tuple[Callable[[Tensor, Axis], Tensor], str]] = {
    "gather": (_gather, "keep"),
    "keep": (_keep, "gather"),
    "fetch": (_fetch, "give"),
    "give": (_give, "fetch"),
    "take": (_take, "merge"),
    "merge": (_merge, "take"),
    "share": (_share, "total"),
    "total": (_total, "share"),
}


def _exchange(sent: list[Tensor], expected: Sequence[range], axis: Axis) -> list[Tensor]:
    """Send a part to each rank and receive one from each; this rank's own part is not sent."""
    own = sent[axis.rank]
    others = [rank != axis.rank for rank in range(len(sent))]
    if not axis.moves:
        return [part.narrow(axis.dim, 0, 0) if other else own for part, other in zip(sent, others, strict=True)]
    parts = [part.movedim(axis.dim, 0) for part in sent]
    packed = torch.cat([part if other else part[:0] for part, other in zip(parts, others, strict=True)])
    counts = [len(part) * other for part, other in zip(expected, others, strict=True)]
    out = packed.new_empty((sum(counts), *packed.shape[1:]))
    sizes = [len(part) * other for part, other in zip(parts, others, strict=True)]
    dist.all_to_all_single(out, packed, counts, sizes, group=axis.group)
    received = [part.movedim(0, axis.dim) for part in out.split(counts)]
    received[axis.rank] = own
    return received
