"""The sites that a table names, copied to windows, and the adjoint: what windows hold, added to their sites.

The adjoint walks an inverse table that is made once, so that no sum depends on the order in which programs arrive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lc_triton.core.batched_gradients import one_by_one
from lc_triton.core.dtypes import HALF
from lc_triton.core.tracing import is_exporting, is_observed

NONE = -1  # in a table, where a position has fewer neighbours than others


@dataclass(frozen=True)
class Table:
    """Which site each window's tap reads, both ways.

    Args:
        sites: S, of the input.
        site: of each tap `(P * T,)`, 0 for none.
        absent: taps that read none `(P * T,)`; None where all read one.
        inverse: for some powers of two n, sites `(m,)` and the taps that read them `(m, n)`. A site that k taps read is
            in as many of these as k has binary ones, each tap once.
    """

    sites: int
    site: Tensor
    absent: Tensor | None
    inverse: tuple[tuple[Tensor, Tensor], ...]


def inverse_of(neighbours: Tensor, sites: int) -> list[tuple[Tensor, Tensor]]:
    """The inverse of a table `(P, T)`, as `Table` has it."""
    flat = neighbours.flatten()
    order = torch.argsort(flat, stable=True)[int((flat < 0).sum()) :]
    counts = torch.bincount(flat[flat >= 0], minlength=sites)
    first, found = counts.cumsum(0) - counts, []
    for bit in range(int(counts.max()).bit_length()):
        size = 1 << bit
        which = ((counts & size) > 0).nonzero().view(-1)
        begin = first[which] + (counts[which] & (size - 1))
        found.append((which, order[begin[:, None] + torch.arange(size, device=flat.device)]))
    return [(which, taps) for which, taps in found if len(which)]


def gather(x: Tensor, table: Table) -> Tensor:
    """The windows of x `(B, S, C)`, `(B, P * T, C)`, differentiable any number of times."""
    if _uses_plain_operators():
        return _gathered(x, table)
    windows: Tensor = _Gather.apply(x, table)  # type: ignore[no-untyped-call]
    return windows


def spread(windows: Tensor, table: Table) -> Tensor:
    """The adjoint: `(B, P * T, C)` added to sites `(B, S, C)`."""
    if _uses_plain_operators():
        return _spread(windows, table)
    x: Tensor = _Spread.apply(windows, table)  # type: ignore[no-untyped-call]
    return x


def _uses_plain_operators() -> bool:
    """Whether something differentiates or records torch's own operators; compilers take the functions below."""
    if torch.compiler.is_compiling():
        return is_exporting()
    return is_observed() or forward_ad._current_level >= 0


def _gathered(x: Tensor, table: Table) -> Tensor:
    windows = x.index_select(1, table.site)
    return windows if table.absent is None else windows.masked_fill(table.absent.unsqueeze(-1), 0)


def _spread(windows: Tensor, table: Table) -> Tensor:
    dtype = torch.float32 if windows.dtype in HALF else windows.dtype
    x = torch.zeros((windows.shape[0], table.sites, windows.shape[2]), dtype=dtype, device=windows.device)
    for sites, taps in table.inverse:
        # Sites of one step are different, so that each number gets one addition.
        x = x.index_add(1, sites, _taken(windows, taps).sum(2, dtype=dtype))
    return x.to(windows.dtype)


def _taken(windows: Tensor, taps: Tensor) -> Tensor:
    """`(B, m, n, C)`."""
    taken: Tensor = windows.index_select(1, taps.flatten()).unflatten(1, taps.shape)
    return taken


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Table) -> Tensor:
        ctx.table = table
        return _gathered(x, table)

    @staticmethod
    @one_by_one
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return spread(grad, ctx.table), None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, windows: Tensor, table: Table) -> Tensor:
        ctx.table = table
        return _spread(windows, table)

    @staticmethod
    @one_by_one
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return gather(grad, ctx.table), None


def table_of(neighbours: Tensor, sites: int, inverse: Sequence[tuple[Tensor, Tensor]]) -> Table:
    """The table of neighbours `(P, T)` with its inverse."""
    flat = neighbours.flatten()
    absent = flat < 0
    return Table(sites, flat.clamp(min=0), absent if bool(absent.any()) else None, tuple(inverse))
