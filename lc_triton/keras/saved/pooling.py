"""Pooling over windows and over everything, in 1-D to 3-D, in either data format and with TensorFlow's padding."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import StrictBool
from torch import Tensor, nn

from lc_triton.core.padding import padding_pairs
from lc_triton.keras.saved.arguments import Arguments, Counts, DataFormat, Place, WindowArguments, spread
from lc_triton.keras.saved.masks import Mask

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Pool(nn.Module):
    """The maximum or the mean of each window; sites of the padding do not count."""

    def __init__(
        self, kind: str, size: tuple[int, ...], stride: tuple[int, ...], padding: str, *, channels_first: bool
    ) -> None:
        super().__init__()
        self.kind, self.size, self.stride, self.padding = kind, size, stride, padding
        self.channels_first = channels_first

    def forward(self, x: Tensor) -> Tensor:
        """The pooled batch x."""
        x = x if self.channels_first else x.movedim(-1, 1)
        ndim, spatial = len(self.size), tuple(x.shape[2:])
        pairs = padding_pairs(self.padding, spatial, self.size, self.stride, (1,) * ndim)
        sides = [side for pair in reversed(pairs) for side in pair] if any(map(any, pairs)) else None
        if self.kind == "max":
            x = x if sides is None else F.pad(x, sides, value=-torch.inf)
            y = _MAX[ndim](x, self.size, self.stride)
        else:
            pool = _MEAN[ndim]
            y = pool(x if sides is None else F.pad(x, sides), self.size, self.stride)
            if sides is not None:
                counted = F.pad(torch.ones(1, 1, *spatial, dtype=x.dtype, device=x.device), sides)
                y = y / pool(counted, self.size, self.stride)
        return y if self.channels_first else y.movedim(1, -1)

    def extra_repr(self) -> str:
        """The arguments."""
        layout = "channels_first" if self.channels_first else "channels_last"
        return f"{self.kind}, {self.size}, stride={self.stride}, padding={self.padding!r}, {layout}"


class GlobalPool(nn.Module):
    """The maximum or the mean over all sites."""

    def __init__(self, kind: str, axes: tuple[int, ...], *, keepdims: bool) -> None:
        super().__init__()
        self.kind, self.axes, self.keepdims = kind, axes, keepdims
        self.takes_mask = kind == "mean" and len(axes) == 1

    def forward(self, x: Tensor, mask: Mask = None) -> Tensor:
        """The pooled batch x, of the steps that a mask leaves."""
        if mask is not None:
            kept = mask.to(x.dtype).unsqueeze(3 - self.axes[0])
            return (x * kept).sum(self.axes, self.keepdims) / kept.sum(self.axes, self.keepdims)
        over = torch.amax if self.kind == "max" else torch.mean
        return over(x, self.axes, self.keepdims)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.kind}, {self.axes}, keepdims={self.keepdims}"


class PoolArguments(WindowArguments):
    """`MaxPooling1D`, `AveragePooling1D` and the same in 2-D and 3-D."""

    pool_size: Counts
    strides: Counts | None = None
    padding: Literal["valid", "same"] = "valid"

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        place.spatial(self.data_format)
        size = spread("pool_size", self.pool_size, place.ndim)
        stride = size if self.strides is None else spread("strides", self.strides, place.ndim)
        return Pool(_kind(place), size, stride, self.padding, channels_first=self.channels_first)


class GlobalPoolArguments(Arguments):
    """`GlobalMaxPooling1D`, `GlobalAveragePooling1D` and the same in 2-D and 3-D."""

    call_arguments = frozenset({"mask"})

    data_format: DataFormat = "channels_last"
    keepdims: StrictBool = False

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        place.spatial(self.data_format)
        first = 2 if self.data_format == "channels_first" else 1
        return GlobalPool(_kind(place), tuple(range(first, first + place.ndim)), keepdims=self.keepdims)


def _kind(place: Place) -> str:
    return "max" if "Max" in place.class_name else "mean"


CLASSES: dict[str, type[Arguments]] = {
    f"{scope}{kind}Pooling{ndim}D": arguments
    for scope, arguments in (("", PoolArguments), ("Global", GlobalPoolArguments))
    for kind in ("Max", "Average")
    for ndim in (1, 2, 3)
}
