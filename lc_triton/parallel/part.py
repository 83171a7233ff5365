"""What one rank computes of a layer that ranks share, by the positions or by the filters."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from lc_triton._backend import autocast_enabled
from lc_triton._geometry import Geometry
from lc_triton._plan import Plan, run
from lc_triton.parallel.exchange import Axis
from lc_triton.parallel.ranges import by_filters, by_rows, slab


@dataclass(frozen=True)
class Part:
    """One rank's part.

    Args:
        input, output: the axes of input and output, channels last, that the ranks share.
        plan: of the part as a layer of its own, channels last; None for a rank that has nothing.
        blank: rows of zeros that take the place of an input that the part does not read.
        whole: the plan of the layer.
    """

    input: Axis
    output: Axis
    plan: Plan | None
    blank: int
    whole: Plan

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The part's output, channels last, of what it reads of the input."""
        if self.plan is None:
            return _nothing(x, weight, bias, self.whole)
        if self.blank:
            shape = list(x.shape)
            shape[self.input.dim] = self.blank
            x = torch.cat([x, x.new_zeros(shape)], self.input.dim)
        return run(x, weight, bias, self.plan)


def of_positions(plan: Plan, rank: int, group: dist.ProcessGroup) -> Part:
    """A rank's part of the rows, the output's first dimension."""
    geo = plan.geometry
    shares, dim = by_rows(geo, group.size()), -geo.ndim - 1
    rows = shares.computed[rank]
    own = slab(geo, rows) if rows else None
    return Part(
        input=Axis(dim, shares.owned, shares.read, rank, group),
        output=Axis(dim, shares.computed, shares.computed, rank, group),
        plan=None if own is None else _plan_of(own, plan, geo),
        blank=0 if own is None or shares.read[rank] else own.in_spatial[0],
        whole=plan,
    )


def of_filters(plan: Plan, rank: int, group: dist.ProcessGroup) -> Part:
    """A rank's part of the filters, the output's channels."""
    geo = plan.geometry
    shares = by_filters(geo, group.size())
    filters, channels = len(shares.computed[rank]), len(shares.read[rank])
    own = None
    if filters:
        groups = channels * geo.groups // geo.in_channels
        own = replace(geo, in_channels=channels, out_channels=filters, groups=groups)
    return Part(
        input=Axis(-1, shares.owned, shares.read, rank, group),
        output=Axis(-1, shares.computed, shares.computed, rank, group),
        # Tiles of many groups are no tiles of one.
        plan=None if own is None else _plan_of(own, plan, geo if geo.groups == 1 else None),
        blank=0,
        whole=plan,
    )


def _plan_of(part: Geometry, plan: Plan, whole: Geometry | None) -> Plan:
    """The plan of a part whose input is batched, padded where padding is not zeros, and has its channels last."""
    return Plan(part, part, plan.activation, None, False, "zeros", (), whole=whole)


def _nothing(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """No output, which hangs on the same tensors as that of other ranks: all run the same moves in the backward."""
    dtype, device = x.dtype, x.device.type
    if autocast_enabled(device) and torch.float64 not in (x.dtype, weight.dtype):
        dtype = torch.get_autocast_dtype(device)
    geo = plan.geometry
    spatial, filters = geo.out_spatial, geo.out_channels
    empty = (0, *spatial[1:], filters) if weight.shape[0] == 0 else (*spatial, 0)
    number = x.sum() * weight.sum() if bias is None else x.sum() * weight.sum() + bias.sum()
    return plan.activation(number.to(dtype) * x.new_empty((x.shape[0], *empty), dtype=dtype))
