"""The part of a shared layer that one rank computes, by positions or by filters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from lc_triton.core.geometry import Geometry
from lc_triton.core.ranges import by_filters, by_rows, slab, splits_regions
from lc_triton.ops.plan import Plan
from lc_triton.ops.run import run
from lc_triton.parallel.exchange import Axis


@dataclass(frozen=True)
class Part:
    """One rank's part.

    Args:
        input, output: the axes of input and output, channels last, that the ranks share.
        plan: of the part as a layer of its own, channels last. That of a rank without rows or filters is of one
            position or one filter: see `_run_empty`.
        blank: rows of zeros that take the place of an input that the part does not read.
        whole: the plan of the layer.
        first_region: where every rank has the filters of all rows, the region of the part's first row; else None.
    """

    input: Axis
    output: Axis
    plan: Plan
    blank: int
    whole: Plan
    first_region: int | None = None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output of the part, channels last, from the input that it reads."""
        if self.first_region is not None:
            weight = self._regions_of(weight, self.first_region)
        if not self.output.own:
            return self._run_empty(x, weight, bias)
        if self.blank:
            shape = list(x.shape)
            shape[self.input.dim] = self.blank
            x = torch.cat([x, x.new_zeros(shape)], self.input.dim)
        return run(x, weight, bias, self.plan)

    def _regions_of(self, weight: Tensor, first: int) -> Tensor:
        """The filters of this rank's regions, of all filters, beginning with those of its first row."""
        if first:
            weight = weight.roll(-first, 0)
        return weight[tuple(slice(size) for size in self.plan.weight_shape[: self.plan.geometry.ndim])]

    def _run_empty(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """An empty output, by the same checks and autograd Functions as on ranks that have a part.

        The layer of one position or one filter is run on zeros and nothing of its output is kept. Ranks whose graphs
        differed would run different collectives in a backward, and wait for each other.
        """
        spatial, channels = self.plan.input_sizes
        x = _zeros_like(x, (len(x), *spatial, channels))
        if not weight.numel():
            weight = _zeros_like(weight, self.plan.weight_shape)
        if bias is not None and not bias.numel():
            bias = _zeros_like(bias, self.plan.bias_shapes[int(bias.ndim == 1)])
        spatial, filters = self.whole.output_sizes
        shape = [len(x), *spatial, filters]
        shape[self.output.dim] = 0
        return run(x, weight, bias, self.plan).narrow(self.output.dim, 0, 0).reshape(shape)


def _zeros_like(empty: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros of a shape, as a linear function of an empty tensor.

    The gradient of the empty tensor is contiguous. With any other strides autograd would copy a DTensor's gradient,
    which in torch 2.11 sends from this rank alone.
    """
    zeros = empty.new_zeros((math.prod(shape), 1))
    return torch.cat([empty.reshape(0, 1), zeros]).reshape(shape)


def of_positions(plan: Plan, rank: int, group: dist.ProcessGroup) -> Part:
    """A rank's part of the rows, the output's first dimension."""
    geo = plan.geometry
    shares, dim = by_rows(geo, group.size()), -geo.ndim - 1
    rows = shares.computed[rank]
    own = slab(geo, rows) if rows else _one_position(geo)
    return Part(
        input=Axis(dim, shares.owned, shares.read, rank, group),
        output=Axis(dim, shares.computed, shares.computed, rank, group),
        # The input is padded before its rows are taken.
        plan=Plan(own, own, plan.activation, None, False, "zeros", (), full_geometry=geo if rows else None),
        blank=0 if not rows or shares.read[rank] else own.in_spatial[0],
        whole=plan,
        first_region=None if splits_regions(geo, group.size()) else rows.start % geo.region_counts[0],
    )


def of_filters(plan: Plan, rank: int, group: dist.ProcessGroup) -> Part:
    """A rank's part of the filters, the output's channels."""
    source, geo = plan.source, plan.geometry
    shares = by_filters(geo, group.size())
    filters, channels = len(shares.computed[rank]), len(shares.read[rank])
    if filters:
        groups = channels * geo.groups // geo.in_channels
    else:
        filters, channels, groups = 1, geo.in_channels // geo.groups, 1
        if not plan.pad:  # else a rank without filters pads too: padding adds nodes to the graph
            source = geo = _one_position(geo)
    source, own = (replace(g, in_channels=channels, out_channels=filters, groups=groups) for g in (source, geo))
    # Tiles are chosen for the whole layer, unless it has groups: a tile for many groups does not fit few.
    whole = plan.geometry if plan.geometry.groups == 1 and shares.computed[rank] else None
    return Part(
        input=Axis(-1, shares.owned, shares.read, rank, group),
        output=Axis(-1, shares.computed, shares.computed, rank, group),
        # The channels are padded here: a rank may own none of them, which torch does not pad.
        plan=Plan(source, own, plan.activation, None, False, plan.padding_mode, plan.pad, full_geometry=whole),
        blank=0,
        whole=plan,
    )


def _one_position(geometry: Geometry) -> Geometry:
    """One window of a layer as a layer of its own."""
    return replace(geometry, in_spatial=geometry.extent, padding=((0, 0),) * geometry.ndim)
