"""Conversion of shared filters into equal filters at each position, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lc_triton.core.geometry import Geometry
from lc_triton.errors import ArgumentValueError, ConversionError


def spread(weight: Tensor, positions: tuple[int, ...]) -> Tensor:
    """A convolution's weight as that of a locally connected layer; each position has a copy in memory.

    Args:
        weight: `(F, C // groups, *kernel)`, of nn.Conv, or of nn.ConvTranspose, whose input channels are the F here.
        positions: per dimension.

    Returns:
        `(*positions, *kernel, C // groups, F)`.
    """
    one = weight.movedim((0, 1), (-1, -2))
    return one.expand(*positions, *one.shape).contiguous()


def shared(name: str, per_position: Tensor, ndim: int, tolerance: float) -> Tensor:
    """The value that all positions have, as the middle of their values.

    Args:
        name: of the parameter, for the error.
        per_position: `(*positions, ...)`.
        ndim: dimensions of positions.
        tolerance: by which the largest and the smallest value of any entry may differ.

    Raises:
        ConversionError: they differ by more.
        ArgumentValueError: `tolerance` is no number of at least 0.
    """
    _check_tolerance(tolerance)
    every = per_position.detach().flatten(0, ndim - 1)
    return _middle(name, every.amin(0), every.amax(0), tolerance, "a convolution has one for all")


def _check_tolerance(tolerance: object) -> None:
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not tolerance >= 0:
        raise ArgumentValueError(name="tolerance", value=tolerance, allowed="a number >= 0")


def _middle(name: str, low: Tensor, high: Tensor, tolerance: float, reason: str) -> Tensor:
    """The middle of the least and the largest value of each entry, if they are near enough."""
    if low is high:
        return low
    apart = (high - low).max().item()
    if not apart <= tolerance:  # a NaN is no agreement either
        worst = math.inf if math.isnan(apart) else apart
        raise ConversionError(
            name=f"a layer whose {name} differs between positions by up to {worst:.3g}",
            reason=f"{reason}, and the tolerance is {tolerance}",
        )
    return low + (high - low) / 2


def regroup(weight: Tensor, source: Geometry, target: Geometry, tolerance: float) -> Tensor:
    """The weight of a layer for other regions of positions, if those that are to share filters have equal ones.

    Nothing of the size of unshared filters is made, unless the target is unshared.

    Args:
        weight: `(*regions, *kernel, C // groups, F)` of the source.
        source: geometry of the weight.
        target: the same layer with other regions.
        tolerance: as in `shared`.

    Raises:
        ConversionError, ArgumentValueError: as `shared`.
    """
    _check_tolerance(tolerance)
    low = high = weight.detach()
    for dim in range(source.ndim):
        pairs = set(zip(_region_of_each(source, dim), _region_of_each(target, dim), strict=True))
        own = [sorted(s for s, t in pairs if t == region) for region in range(target.region_counts[dim])]
        if any(len(regions) > 1 for regions in own):
            low = torch.stack([low[(slice(None),) * dim + (regions,)].amin(dim) for regions in own], dim)
            high = torch.stack([high[(slice(None),) * dim + (regions,)].amax(dim) for regions in own], dim)
        else:
            index = torch.tensor([region for (region,) in own], device=weight.device)
            same, low = low is high, low.index_select(dim, index)
            high = low if same else high.index_select(dim, index)
    return _middle("weight", low, high, tolerance, "one region has one for all its positions")


def _region_of_each(geometry: Geometry, dim: int) -> list[int]:
    """The region of each position along a dimension."""
    size = geometry.out_spatial[dim]
    block, count = geometry.regions[dim] if geometry.regions else (1, size)
    return [position // block % count for position in range(size)]


def unspread(weight: Tensor, ndim: int, tolerance: float) -> Tensor:
    """The inverse of `spread`, if all positions have the same filters."""
    one = shared("weight", weight, ndim, tolerance)
    return one.movedim((-1, -2), (0, 1)).contiguous()


def assign(parameter: Tensor, value: Tensor, *, trains: bool) -> None:
    """Set a parameter to a value, and whether it requires a gradient."""
    with torch.no_grad():
        parameter.copy_(value)
    parameter.requires_grad_(trains)
