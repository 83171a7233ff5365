"""TensorFlow's functions of images that have a Keras layer beside them, by its names and arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lc_triton.core.padding import padding_pairs
from lc_triton.keras.saved import interpolating
from lc_triton.keras.saved.indexing import constant
from lc_triton.keras.saved.pooling import Pool
from lc_triton.keras.saved.resizing import Interpolation, interpolated


def _resize(
    images: Tensor,
    size: Any,
    method: Any = "bilinear",
    preserve_aspect_ratio: bool = False,
    antialias: bool = False,
) -> Tensor:
    method = str(method).lower()
    if method not in ("bilinear", "nearest", *interpolating.METHODS):
        raise ValueError(f"method={method[:80]!r} of image.resize has no counterpart here")
    if preserve_aspect_ratio or antialias:
        raise ValueError("image.resize with preserve_aspect_ratio or antialias has no counterpart here")
    sizes = [int(n) for n in size]
    if images.ndim != 4:
        raise ValueError(f"image.resize takes images (batch, height, width, channels), not {images.ndim} axes")
    if sizes == list(images.shape[1:3]):
        return images
    y = interpolated(images, sizes, cast(Interpolation, method), channels_first=False)
    return y if method == "nearest" else y.float()


def _pool(kind: str, axes: int | None = None) -> Callable[..., Tensor]:
    def call(input: Tensor, ksize: Any, strides: Any, padding: Any = "VALID", data_format: str | None = None) -> Tensor:
        ndim = input.ndim - 2
        if ndim not in (1, 2, 3) or axes not in (None, ndim) or not isinstance(padding, str):
            raise ValueError(f"pooling of {input.ndim} axes with padding {str(padding)[:80]} has no counterpart here")
        first = (data_format or "").startswith("NC")
        size, stride = (_windows(numbers, ndim, first=first) for numbers in (ksize, strides))
        y: Tensor = Pool(kind, size, stride, padding.lower(), channels_first=first)(input)
        return y

    return call


def _windows(numbers: Any, ndim: int, *, first: bool) -> tuple[int, ...]:
    """Sizes along the spatial axes: TensorFlow takes one, one an axis, or those of the batch and the channels too."""
    found = list(numbers) if isinstance(numbers, (list, tuple)) else [numbers]
    if len(found) == ndim + 2:
        found = found[2:] if first else found[1:-1]
    found = found * ndim if len(found) == 1 else found
    if len(found) != ndim:
        raise ValueError(f"windows {str(numbers)[:80]} of pooling have no counterpart here")
    return tuple(found)


_CONVOLUTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


def _convolution(
    input: Tensor,
    filters: Any = None,
    strides: Any = 1,
    padding: Any = "VALID",
    data_format: str | None = None,
    dilations: Any = None,
    filter: Any = None,
    stride: Any = None,
    use_cudnn_on_gpu: Any = None,
) -> Tensor:
    """A convolution with a kernel `(*taps, channels, filters)` that the model's code made, a blur, say."""
    ndim, first = input.ndim - 2, (data_format or "").startswith("NC")
    kernel = constant(filter if filters is None else filters, input)
    if ndim not in (1, 2, 3) or not isinstance(padding, str) or not isinstance(kernel, Tensor):
        raise ValueError(f"a convolution of {input.ndim} axes with padding {str(padding)[:80]} has no counterpart here")
    steps, dilation = (
        _windows(1 if numbers is None else numbers, ndim, first=first)
        for numbers in (strides if stride is None else stride, dilations)
    )
    x = input if first else input.movedim(-1, 1)
    taps = tuple(kernel.shape[:-2])
    pairs = padding_pairs(padding.lower(), tuple(x.shape[2:]), taps, steps, dilation)
    x = F.pad(x, [side for pair in reversed(pairs) for side in pair])
    weight = kernel.movedim((-1, -2), (0, 1))
    y = _CONVOLUTIONS[ndim](x, weight, None, steps, 0, dilation, x.shape[1] // weight.shape[1])
    return y if first else y.movedim(1, -1)


def _patches(images: Tensor, sizes: Any, strides: Any, rates: Any, padding: str) -> Tensor:
    """Windows of images, each in the channels of one site, taps before channels."""
    taps, steps, dilation = (_windows(numbers, 2, first=False) for numbers in (sizes, strides, rates))
    x = images.movedim(-1, 1)
    pairs = padding_pairs(padding.lower(), tuple(x.shape[2:]), taps, steps, dilation)
    x = F.pad(x, [side for pair in reversed(pairs) for side in pair])
    for axis, (size, step, rate) in enumerate(zip(taps, steps, dilation, strict=True), 2):
        x = x.unfold(axis, rate * (size - 1) + 1, step)[..., ::rate]
    return x.permute(0, 2, 3, 4, 5, 1).flatten(3)  # (batch, channels, rows, columns, *taps)


def _crop(image: Tensor, offset_height: int, offset_width: int, target_height: int, target_width: int) -> Tensor:
    return image.narrow(-3, offset_height, target_height).narrow(-2, offset_width, target_width)


def _box(image: Tensor, offset_height: int, offset_width: int, target_height: int, target_width: int) -> Tensor:
    height, width = image.shape[-3:-1]
    below, right = target_height - height - offset_height, target_width - width - offset_width
    if min(offset_height, offset_width, below, right) < 0:
        raise ValueError(f"{height} by {width} pixels have no place in {target_height} by {target_width}")
    return F.pad(image, (0, 0, offset_width, right, offset_height, below))


def _standardized(image: Tensor) -> Tensor:
    axes, count = (-3, -2, -1), image.shape[-3] * image.shape[-2] * image.shape[-1]
    deviation = image.var(axes, correction=0, keepdim=True).sqrt().clamp(min=count**-0.5)
    return (image - image.mean(axes, keepdim=True)) / deviation


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "resize": _resize,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    "extract_patches": _patches,
    "crop_to_bounding_box": _crop,
    "pad_to_bounding_box": _box,
    "per_image_standardization": _standardized,
    "max_pool": _pool("max"),
    "avg_pool": _pool("mean"),
    **{f"max_pool{ndim}d": _pool("max", ndim) for ndim in (1, 2, 3)},
    **{f"avg_pool{ndim}d": _pool("mean", ndim) for ndim in (1, 2, 3)},
}
