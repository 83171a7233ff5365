"""Images and sequences in other sizes: repeated, interpolated or cropped to the middle."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import StrictBool
from torch import Tensor, nn

from lc_triton.keras.saved import interpolating
from lc_triton.keras.saved.arguments import Arguments, Count, Counts, DataFormat, Place, spread

Interpolation = Literal["nearest", "bilinear", "bicubic", "area", "lanczos3", "lanczos5", "gaussian", "mitchellcubic"]


class UpSampling(nn.Module):
    """Sites repeated, or interpolated, a number of times along each spatial axis."""

    def __init__(self, size: tuple[int, ...], interpolation: Interpolation, *, channels_first: bool) -> None:
        super().__init__()
        self.size, self.interpolation, self.channels_first = size, interpolation, channels_first

    def forward(self, x: Tensor) -> Tensor:
        """The larger batch x."""
        first = 2 if self.channels_first else 1
        if self.interpolation == "nearest":
            for axis, times in enumerate(self.size, first):
                x = x.repeat_interleave(times, axis) if times > 1 else x
            return x
        sizes = [n * times for n, times in zip(x.shape[first : first + 2], self.size, strict=True)]
        return interpolated(x, sizes, self.interpolation, channels_first=self.channels_first)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.size}, {self.interpolation!r}, channels_first={self.channels_first}"


class Resizing(nn.Module):
    """Images, with channels last, in another size.

    With `crop`, the middle of the new shape is cut out first. With `keep`, images that are large enough are only cut.
    """

    def __init__(self, size: tuple[int, int], interpolation: Interpolation, *, crop: bool, keep: bool) -> None:
        super().__init__()
        self.size, self.interpolation, self.crop, self.keep = size, interpolation, crop, keep

    def forward(self, x: Tensor) -> Tensor:
        """The batch x of images in the new size."""
        (height, width), (rows, columns) = self.size, x.shape[1:3]
        if self.keep and rows >= height and columns >= width:
            return _middle(x, height, width)
        if self.crop:
            x = _middle(x, min(rows, columns * height // width), min(columns, rows * width // height))
        return interpolated(x, [height, width], self.interpolation, channels_first=False)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.size}, {self.interpolation!r}, crop={self.crop}"


def interpolated(x: Tensor, sizes: list[int], interpolation: Interpolation, *, channels_first: bool) -> Tensor:
    """Images in other sizes, as TensorFlow's `image.resize`: pixels are areas, and nothing is smoothed."""
    x = x if channels_first else x.movedim(-1, 1)
    if interpolation == "nearest":
        y = F.interpolate(x, sizes, mode="nearest-exact")
    elif interpolation in interpolating.METHODS:
        y = interpolating.resized(x, sizes, interpolation)
    elif x.dtype == torch.float64:
        y = _in_single(x, sizes).to(x.dtype)
    else:
        y = F.interpolate(x, sizes, mode="bilinear", align_corners=False)
    return y if channels_first else y.movedim(1, -1)


def _in_single(x: Tensor, sizes: list[int]) -> Tensor:
    """The bilinear interpolation of x `(batch, channels, height, width)` in float32, the only one of TensorFlow's.

    It has the order of TensorFlow's operations, so that models of float64 compute what they computed there.
    """
    x = x.float()
    (rows, next_rows, down), (columns, next_columns, right) = (
        _sides(size, new, x.device) for size, new in zip(x.shape[2:], sizes, strict=True)
    )
    upper, lower = x[:, :, rows], x[:, :, next_rows]
    upper, lower = (
        line[..., columns] + (line[..., next_columns] - line[..., columns]) * right for line in (upper, lower)
    )
    return upper + (lower - upper) * down[:, None]


def _sides(size: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels that each new one lies between, and how far it is from the first."""
    scale = torch.tensor(float(size), dtype=torch.float32, device=device) / new
    at = (torch.arange(new, dtype=torch.float32, device=device) + 0.5) * scale - 0.5
    low = at.floor()
    return low.clamp(min=0).long(), at.ceil().clamp(max=size - 1).long(), at - low


def _middle(x: Tensor, height: int, width: int) -> Tensor:
    return x.narrow(1, (x.shape[1] - height) // 2, height).narrow(2, (x.shape[2] - width) // 2, width)


class UpSamplingArguments(Arguments):
    """`UpSampling1D`, `UpSampling2D` and `UpSampling3D`."""

    size: Counts
    data_format: DataFormat = "channels_last"
    interpolation: Interpolation = "nearest"

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        place.spatial(self.data_format)
        if self.interpolation != "nearest" and place.ndim != 2:
            raise ValueError(f"its interpolation {self.interpolation!r} is for images, and it is {place.ndim}-D")
        size = spread("size", self.size, place.ndim)
        return UpSampling(size, self.interpolation, channels_first=self.data_format == "channels_first")


class ResizingArguments(Arguments):
    """`Resizing` and `CenterCrop`."""

    height: Count
    width: Count
    interpolation: Interpolation = "bilinear"
    crop_to_aspect_ratio: StrictBool = False

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if len(place.shape) != 3:
            raise ValueError(f"it takes images with channels last, and is given shape {place.shape}")
        keep = place.class_name == "CenterCrop"
        crop = keep or self.crop_to_aspect_ratio
        return Resizing((self.height, self.width), self.interpolation, crop=crop, keep=keep)


CLASSES: dict[str, type[Arguments]] = {
    **{f"UpSampling{ndim}D": UpSamplingArguments for ndim in (1, 2, 3)},
    "Resizing": ResizingArguments,
    "CenterCrop": ResizingArguments,
}
