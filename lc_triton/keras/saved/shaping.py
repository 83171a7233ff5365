"""Layers that move numbers without changing them, or drop some in training."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch.nn.functional as F
from pydantic import Field, StrictInt
from torch import Tensor, nn

from lc_triton.keras.saved.arguments import LARGEST, Arguments, DataFormat, Place, Rate

Size = Annotated[StrictInt, Field(ge=-1, le=LARGEST)]


class Flatten(nn.Module):
    """Each sample in one row, its channels last in either data format."""

    def __init__(self, *, channels_first: bool) -> None:
        super().__init__()
        self.channels_first = channels_first

    def forward(self, x: Tensor) -> Tensor:
        """The batch x as `(batch, numbers)`."""
        if self.channels_first and x.ndim > 2:
            x = x.movedim(1, -1)
        return x.reshape(x.shape[0], -1)


class Reshape(nn.Module):
    """Each sample in another shape, in the same order."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """The batch x in the new shape."""
        return x.reshape(x.shape[0], *self.shape)

    def extra_repr(self) -> str:
        """The shape."""
        return str(self.shape)


class Permute(nn.Module):
    """Each sample with its axes in another order, counted from 1."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """The batch x, permuted."""
        return x.permute(0, *self.dims)

    def extra_repr(self) -> str:
        """The order."""
        return str(self.dims)


class ZeroPadding(nn.Module):
    """Zeros around the spatial axes."""

    def __init__(self, pairs: tuple[tuple[int, int], ...], *, channels_first: bool) -> None:
        super().__init__()
        self.pairs = pairs
        sides = [side for pair in reversed(pairs) for side in pair]
        self.sides = sides if channels_first else [0, 0, *sides]

    def forward(self, x: Tensor) -> Tensor:
        """The padded batch x."""
        return F.pad(x, self.sides)

    def extra_repr(self) -> str:
        """The pairs."""
        return str(self.pairs)


class ChannelDropout(nn.Module):
    """Whole channels become zero in training."""

    def __init__(self, rate: float, ndim: int, *, channels_first: bool) -> None:
        super().__init__()
        self.drop = {1: nn.Dropout1d, 2: nn.Dropout2d}[ndim](rate)
        self.channels_first = channels_first

    def forward(self, x: Tensor) -> Tensor:
        """The batch x with channels dropped."""
        y: Tensor = self.drop(x) if self.channels_first else self.drop(x.movedim(-1, 1)).movedim(1, -1)
        return y


class FlattenArguments(Arguments):
    """`Flatten`."""

    data_format: DataFormat = "channels_last"

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return Flatten(channels_first=self.data_format == "channels_first")


class ReshapeArguments(Arguments):
    """`Reshape`."""

    target_shape: tuple[Size, ...]

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        known = math.prod(size for size in self.target_shape if size != -1)
        numbers, open_sizes = math.prod(place.shape), self.target_shape.count(-1)
        if open_sizes > 1 or (numbers != known if not open_sizes else not known or numbers % known):
            raise ValueError(f"an input of shape {place.shape} does not fit into target_shape={self.target_shape}")
        return Reshape(self.target_shape)


class PermuteArguments(Arguments):
    """`Permute`."""

    dims: tuple[Annotated[StrictInt, Field(ge=1, le=64)], ...]

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if sorted(self.dims) != list(range(1, len(place.shape) + 1)):
            raise ValueError(f"dims={self.dims} is no order of the {len(place.shape)} axes of its input")
        return Permute(self.dims)


class ZeroPaddingArguments(Arguments):
    """`ZeroPadding1D` and `ZeroPadding2D`."""

    padding: Any
    data_format: DataFormat = "channels_last"

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        place.spatial(self.data_format)
        return ZeroPadding(self._pairs(place.ndim), channels_first=self.data_format == "channels_first")

    def _pairs(self, ndim: int) -> tuple[tuple[int, int], ...]:
        """One (low, high) pair an axis, from an int, an int an axis, or, in 1-D, the pair alone."""
        given = self.padding
        if isinstance(given, list) and ndim == 1 and len(given) == 2 and not isinstance(given[0], list):
            given = [given]
        given = given if isinstance(given, list) else [given] * ndim
        pairs = [side if isinstance(side, list) else [side, side] for side in given]
        sides = [number for pair in pairs for number in pair]
        if (
            len(pairs) != ndim
            or any(len(pair) != 2 for pair in pairs)
            or any(type(n) is not int or not 0 <= n <= LARGEST for n in sides)
        ):
            raise ValueError(f"its padding {str(self.padding)[:80]} is not one pair of sizes for {ndim} axes")
        return tuple((low, high) for low, high in pairs)


class DropoutArguments(Arguments):
    """`Dropout`; one with a noise_shape drops numbers together and is no torch layer."""

    rate: Rate

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return nn.Dropout(float(self.rate))


class SpatialDropoutArguments(Arguments):
    """`SpatialDropout1D` and `SpatialDropout2D`."""

    rate: Rate
    data_format: DataFormat = "channels_last"

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        place.spatial(self.data_format)
        return ChannelDropout(float(self.rate), place.ndim, channels_first=self.data_format == "channels_first")


CLASSES: dict[str, type[Arguments]] = {
    "Flatten": FlattenArguments,
    "Reshape": ReshapeArguments,
    "Permute": PermuteArguments,
    "ZeroPadding1D": ZeroPaddingArguments,
    "ZeroPadding2D": ZeroPaddingArguments,
    "Dropout": DropoutArguments,
    "SpatialDropout1D": SpatialDropoutArguments,
    "SpatialDropout2D": SpatialDropoutArguments,
}
