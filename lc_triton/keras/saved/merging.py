"""Layers that make one tensor of several."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor, nn

from lc_triton.keras.saved.arguments import Arguments, Axis, Place, positive_axis


class Merge(nn.Module):
    """All inputs combined two by two, number by number."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        """The combination of the inputs."""
        return reduce(self.function, inputs)

    def extra_repr(self) -> str:
        """The function."""
        return self.function.__name__


class Concatenate(nn.Module):
    """All inputs, one after the other along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *inputs: Tensor) -> Tensor:
        """The inputs in one tensor."""
        return torch.cat(inputs, self.axis)

    def extra_repr(self) -> str:
        """The axis."""
        return f"axis={self.axis}"


class _MergeArguments(Arguments):
    function: ClassVar[Callable[[Tensor, Tensor], Tensor]]

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if len(place.shapes) < 2 or len({len(shape) for shape in place.shapes}) > 1:
            raise ValueError(f"it takes two inputs or more of as many axes, and is given shapes {place.shapes}")
        return Merge(type(self).function)


class AddArguments(_MergeArguments):
    """`Add`."""

    function = torch.add


class MultiplyArguments(_MergeArguments):
    """`Multiply`."""

    function = torch.mul


class MaximumArguments(_MergeArguments):
    """`Maximum`."""

    function = torch.maximum


class MinimumArguments(_MergeArguments):
    """`Minimum`."""

    function = torch.minimum


class ConcatenateArguments(Arguments):
    """`Concatenate`."""

    axis: Axis = -1

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if not place.shapes:
            raise ValueError("it takes inputs, and is given none")
        return Concatenate(positive_axis(self.axis, len(place.shapes[0]) + 1))


CLASSES: dict[str, type[Arguments]] = {
    "Add": AddArguments,
    "Multiply": MultiplyArguments,
    "Maximum": MaximumArguments,
    "Minimum": MinimumArguments,
    "Concatenate": ConcatenateArguments,
}
