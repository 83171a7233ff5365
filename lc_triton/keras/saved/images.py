"""TensorFlow's functions of images that have a Keras layer beside them, by its names and arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from lc_triton.keras.saved import interpolating
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


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "resize": _resize,
    "max_pool": _pool("max"),
    "avg_pool": _pool("mean"),
    **{f"max_pool{ndim}d": _pool("max", ndim) for ndim in (1, 2, 3)},
    **{f"avg_pool{ndim}d": _pool("mean", ndim) for ndim in (1, 2, 3)},
}
