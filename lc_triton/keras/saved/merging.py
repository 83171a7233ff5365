"""Layers that make one tensor of several."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

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


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Multiply": torch.mul,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
}


class MergeArguments(Arguments):
    """`Add`, `Multiply`, `Maximum` and `Minimum`."""

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if len(place.shapes) < 2 or len({len(shape) for shape in place.shapes}) > 1:
            raise ValueError(f"it takes two inputs or more of as many axes, and is given shapes {place.shapes}")
        return Merge(_FUNCTIONS[place.class_name])


class ConcatenateArguments(Arguments):
    """`Concatenate`."""

    axis: Axis = -1

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if not place.shapes:
            raise ValueError("it takes inputs, and is given none")
        return Concatenate(positive_axis(self.axis, len(place.shapes[0]) + 1))


CLASSES: dict[str, type[Arguments]] = {
    **dict.fromkeys(_FUNCTIONS, MergeArguments),
    "Concatenate": ConcatenateArguments,
}
