"""Normalization of groups of channels, and to length 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import StrictBool, StrictInt
from torch import Tensor, nn

from lc_triton.keras.saved.arguments import Arguments, Axes, Axis, Number, Place, positive_axis
from lc_triton.keras.saved.merging import unit
from lc_triton.keras.saved.slots import Slot, layer_normalization_slots
from lc_triton.keras.saved.training import Trained


class GroupNormalization(Trained):
    """Normalization of each sample over all sites and the channels of each group."""

    def __init__(
        self, channels: int, groups: int, axis: int, *, eps: float, scale: bool, center: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.groups, self.axis, self.eps = groups, axis, eps
        self.weight = nn.Parameter(torch.ones(channels, dtype=dtype)) if scale else None
        self.bias = nn.Parameter(torch.zeros(channels, dtype=dtype)) if center else None

    def slots(self) -> list[Slot]:
        """See the base."""
        return layer_normalization_slots(self)

    def forward(self, x: Tensor) -> Tensor:
        """The normalized batch x."""
        x = x.movedim(self.axis, 1)
        # The gradients of F.group_norm end the process for some inputs that need none themselves (torch 2.13).
        grouped = x.reshape(x.shape[0], self.groups, -1)
        y = F.layer_norm(grouped, grouped.shape[2:], None, None, self.eps).reshape(x.shape)
        channels = (-1, *(1 for _ in x.shape[2:]))
        y = y if self.weight is None else y * self.weight.reshape(channels)
        y = y if self.bias is None else y + self.bias.reshape(channels)
        return self.observed(y.movedim(1, self.axis))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.groups} groups, axis={self.axis}, eps={self.eps}"


class UnitNormalization(nn.Module):
    """Numbers over their norm along axes."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """The batch x, of norm 1."""
        return unit(x, self.axes)

    def extra_repr(self) -> str:
        """The axes."""
        return f"axes={self.axes}"


class GroupNormalizationArguments(Arguments):
    """`GroupNormalization`."""

    groups: StrictInt = 32
    axis: Axis = -1
    epsilon: Number = 1e-3
    center: StrictBool = True
    scale: StrictBool = True

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        axis = positive_axis(self.axis, len(place.shape) + 1)
        channels = place.shape[axis - 1]
        groups = channels if self.groups == -1 else self.groups
        if groups < 1 or channels % groups:
            raise ValueError(f"{channels} channels cannot be split into {groups} groups")
        return GroupNormalization(
            channels,
            groups,
            axis,
            eps=float(self.epsilon),
            scale=self.scale,
            center=self.center,
            dtype=self.variable_dtype,
        )


class UnitNormalizationArguments(Arguments):
    """`UnitNormalization`."""

    axis: Axes = (-1,)

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return UnitNormalization(tuple(sorted({positive_axis(a, len(place.shape) + 1) for a in self.axis})))


CLASSES: dict[str, type[Arguments]] = {
    "GroupNormalization": GroupNormalizationArguments,
    "UnitNormalization": UnitNormalizationArguments,
}
