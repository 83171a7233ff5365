"""Layers that make one tensor of several."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from pydantic import StrictBool
from torch import Tensor, nn

from lc_triton.keras.saved.arguments import Arguments, Axes, Axis, Place, positive_axis
from lc_triton.keras.saved.masks import Mask


class Merge(nn.Module):
    """All inputs combined two by two, number by number."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        """The combination of the inputs; one with fewer axes gets them after the batch, as in Keras."""
        ndim = max(x.ndim for x in inputs)
        return reduce(self.function, (_widened(x, ndim) for x in inputs))

    def output_mask(self, inputs: tuple[Tensor, ...], masks: tuple[Mask, ...]) -> Mask:
        """What all masks leave: an input without one leaves all."""
        return _all(masks)

    def extra_repr(self) -> str:
        """The function."""
        return self.function.__name__


class Average(Merge):
    """The mean of all inputs, number by number."""

    def __init__(self) -> None:
        super().__init__(torch.add)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The mean of the inputs."""
        return super().forward(*inputs) / len(inputs)


class Dot(nn.Module):
    """The products of two inputs, summed over one axis of each, sample by sample."""

    def __init__(self, axes: tuple[int, int], *, normalize: bool) -> None:
        super().__init__()
        self.axes, self.normalize = axes, normalize

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The sums, `(batch, *other axes of a, *other axes of b)`; `(batch, 1)` where there are none."""
        left, right = (x.movedim(axis, -1) for x, axis in zip((a, b), self.axes, strict=True))
        if self.normalize:
            left, right = unit(left, (-1,)), unit(right, (-1,))
        y = torch.bmm(_rows(left), _rows(right).mT)
        shape = (*left.shape[1:-1], *right.shape[1:-1])
        return y.reshape(a.shape[0], *(shape or (1,)))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"axes={self.axes}, normalize={self.normalize}"


def unit(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The numbers of x over their norm along axes, as TensorFlow's `l2_normalize`."""
    return x * x.square().sum(axes, keepdim=True).clamp(min=1e-12).rsqrt()


def _widened(x: Tensor, ndim: int) -> Tensor:
    return x.reshape(x.shape[0], *(1 for _ in range(ndim - x.ndim)), *x.shape[1:])


def _all(masks: tuple[Mask, ...]) -> Mask:
    found = [mask for mask in masks if mask is not None]
    return reduce(torch.logical_and, found) if found else None


def _rows(x: Tensor) -> Tensor:
    return x.flatten(1, -2) if x.ndim > 2 else x[:, None]


class Concatenate(nn.Module):
    """All inputs, one after the other along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *inputs: Tensor) -> Tensor:
        """The inputs in one tensor."""
        return torch.cat(inputs, self.axis)

    def output_mask(self, inputs: tuple[Tensor, ...], masks: tuple[Mask, ...]) -> Mask:
        """The masks one after the other if steps are, else what all of them leave."""
        if self.axis != 1 or all(mask is None for mask in masks):
            return _all(masks)
        return torch.cat(
            [
                torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
                for x, mask in zip(inputs, masks, strict=True)
            ],
            1,
        )

    def extra_repr(self) -> str:
        """The axis."""
        return f"axis={self.axis}"


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Multiply": torch.mul,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
    "Subtract": torch.sub,
}


class MergeArguments(Arguments):
    """`Add`, `Subtract`, `Multiply`, `Average`, `Maximum` and `Minimum`."""

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if len(place.shapes) < 2 or (place.class_name == "Subtract" and len(place.shapes) > 2):
            count = "two inputs" if place.class_name == "Subtract" else "two inputs or more"
            raise ValueError(f"it takes {count}, and is given {len(place.shapes)}")
        return Average() if place.class_name == "Average" else Merge(_FUNCTIONS[place.class_name])


class DotArguments(Arguments):
    """`Dot`."""

    axes: Axes
    normalize: StrictBool = False

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if len(place.shapes) != 2 or len(self.axes) not in (1, 2):
            raise ValueError(f"it takes two inputs and one or two axes, and is given {len(place.shapes)}, {self.axes}")
        both = self.axes if len(self.axes) == 2 else self.axes * 2
        first, second = (
            positive_axis(axis, len(shape) + 1, "axes") for axis, shape in zip(both, place.shapes, strict=True)
        )
        return Dot((first, second), normalize=self.normalize)


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
    "Average": MergeArguments,
    "Dot": DotArguments,
    "Concatenate": ConcatenateArguments,
}
