"""Layers that move, repeat or leave out numbers without changing them."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch.nn.functional as F
from pydantic import Field, StrictInt
from torch import Tensor, nn

from lc_triton.keras.saved.arguments import LARGEST, Arguments, Count, DataFormat, Place

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


class Cropping(nn.Module):
    """The spatial axes without their ends."""

    def __init__(self, pairs: tuple[tuple[int, int], ...], *, channels_first: bool) -> None:
        super().__init__()
        self.pairs, self.first = pairs, 2 if channels_first else 1

    def forward(self, x: Tensor) -> Tensor:
        """The cropped batch x."""
        for axis, (low, high) in enumerate(self.pairs, self.first):
            x = x.narrow(axis, low, x.shape[axis] - low - high)
        return x

    def extra_repr(self) -> str:
        """The pairs."""
        return str(self.pairs)


class RepeatVector(nn.Module):
    """Each sample's vector at a number of steps."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        """The batch x `(batch, channels)` as `(batch, n, channels)`."""
        return x[:, None].expand(-1, self.n, -1)

    def extra_repr(self) -> str:
        """The number of steps."""
        return str(self.n)


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


class RepeatVectorArguments(Arguments):
    """`RepeatVector`."""

    n: Count

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if len(place.shape) != 1:
            raise ValueError(f"it takes inputs with one axis beside the batch, and is given shape {place.shape}")
        return RepeatVector(self.n)


class IdentityArguments(Arguments):
    """`Identity`."""

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return nn.Identity()


class ZeroPaddingArguments(Arguments):
    """`ZeroPadding1D`, `ZeroPadding2D` and `ZeroPadding3D`."""

    padding: Any
    data_format: DataFormat = "channels_last"

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        place.spatial(self.data_format)
        pairs = _pairs("padding", self.padding, place.ndim)
        return ZeroPadding(pairs, channels_first=self.data_format == "channels_first")


class CroppingArguments(Arguments):
    """`Cropping1D`, `Cropping2D` and `Cropping3D`."""

    cropping: Any
    data_format: DataFormat = "channels_last"

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        sizes, _ = place.spatial(self.data_format)
        pairs = _pairs("cropping", self.cropping, place.ndim)
        if any(low + high >= size for (low, high), size in zip(pairs, sizes, strict=True)):
            raise ValueError(f"cropping={pairs} leaves nothing of an input of sizes {sizes}")
        return Cropping(pairs, channels_first=self.data_format == "channels_first")


def _pairs(name: str, given: Any, ndim: int) -> tuple[tuple[int, int], ...]:
    """One (low, high) pair an axis, from an int, an int an axis, or, in 1-D, the pair alone."""
    value = given
    if isinstance(value, list) and ndim == 1 and len(value) == 2 and not isinstance(value[0], list):
        value = [value]
    value = value if isinstance(value, list) else [value] * ndim
    pairs = [side if isinstance(side, list) else [side, side] for side in value]
    sides = [number for pair in pairs for number in pair]
    if (
        len(pairs) != ndim
        or any(len(pair) != 2 for pair in pairs)
        or any(type(n) is not int or not 0 <= n <= LARGEST for n in sides)
    ):
        raise ValueError(f"its {name} {str(given)[:80]} is not one pair of sizes for {ndim} axes")
    return tuple((low, high) for low, high in pairs)


CLASSES: dict[str, type[Arguments]] = {
    "Flatten": FlattenArguments,
    "Reshape": ReshapeArguments,
    "Permute": PermuteArguments,
    "RepeatVector": RepeatVectorArguments,
    "Identity": IdentityArguments,
    **{f"ZeroPadding{ndim}D": ZeroPaddingArguments for ndim in (1, 2, 3)},
    **{f"Cropping{ndim}D": CroppingArguments for ndim in (1, 2, 3)},
}
