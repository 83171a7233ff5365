"""Conversion of shared filters into equal filters at each position, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lc_triton.errors import ArgumentValueError, ConversionError


def spread(weight: Tensor, positions: tuple[int, ...]) -> Tensor:
    """A convolution's weight as that of a locally connected layer; each position has a copy in memory.

    Args:
        weight: `(F, C // groups, *kernel)` of nn.Conv, or `(F, C // groups, *kernel)` of nn.ConvTranspose, whose F are
            its input channels.
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
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not tolerance >= 0:
        raise ArgumentValueError(name="tolerance", value=tolerance, allowed="a number >= 0")
    every = per_position.detach().flatten(0, ndim - 1)
    low, high = every.amin(0), every.amax(0)
    apart = (high - low).max().item()
    if not apart <= tolerance:  # a NaN is no agreement either
        worst = math.inf if math.isnan(apart) else apart
        raise ConversionError(
            name=f"a layer whose {name} differs between positions by up to {worst:.3g}",
            reason=f"a convolution has one for all, and the tolerance is {tolerance}",
        )
    return low + (high - low) / 2


def unspread(weight: Tensor, ndim: int, tolerance: float) -> Tensor:
    """The inverse of `spread`, if all positions have the same filters."""
    one = shared("weight", weight, ndim, tolerance)
    return one.movedim((-1, -2), (0, 1)).contiguous()


def assign(parameter: Tensor, value: Tensor, *, trains: bool) -> None:
    """Set a parameter to a value, and whether it requires a gradient."""
    with torch.no_grad():
        parameter.copy_(value)
    parameter.requires_grad_(trains)
