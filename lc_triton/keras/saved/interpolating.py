"""TensorFlow's ways to resize images that are a matrix along each axis: bicubic, area, Lanczos, Gauss and Mitchell."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# TensorFlow reads the cubic kernel from a table of so many steps a pixel.
_STEPS = 1024
_RADII = {"lanczos3": 3.0, "lanczos5": 5.0, "gaussian": 1.5, "mitchellcubic": 2.0}

METHODS = ("bicubic", "area", *_RADII)


def resized(x: Tensor, sizes: list[int], method: str) -> Tensor:
    """The images x `(batch, channels, height, width)` in another size, computed in float32 as TensorFlow does.

    Raises:
        ValueError: numbers of float64, which TensorFlow rounds on their way.

    Source: `tf.image.resize` without antialiasing; `resize_bicubic_op.cc`, `resize_area_op.cc`,
    `scale_and_translate_op.cc`.
    """
    if x.dtype == torch.float64:
        raise ValueError(
            f"{method} interpolation of float64, which TensorFlow rounds to float32, has no counterpart here"
        )
    y = x.float()
    for axis, new in zip((2, 3), sizes, strict=True):
        matrix = _matrix(x.shape[axis], new, method, x.device)
        y = torch.tensordot(y, matrix, dims=([axis], [1])).movedim(-1, axis)
    return y.to(x.dtype)


def _matrix(size: int, new: int, method: str, device: torch.device) -> Tensor:
    """What each new pixel takes of each old one, `(new, size)`."""
    # In float32 as TensorFlow, for a pixel may lie on the edge of a kernel.
    one = torch.ones((), dtype=torch.float32, device=device)
    scale = one / (one * new / size) if method in _KERNELS else one * size / new
    pixels = torch.arange(size, dtype=torch.float32, device=device)
    steps = torch.arange(new, dtype=torch.float32, device=device)[:, None]
    if method == "area":
        low, high = steps * scale, (steps + 1) * scale
        shares = ((pixels + 1).minimum(high) - pixels.maximum(low)).clamp(min=0)
    elif method == "bicubic":
        shares = _cubic(pixels, (steps + 0.5) * scale - 0.5)
    else:
        shares = _KERNELS[method](pixels + 0.5 - (steps + 0.5) * scale)
    return shares / shares.sum(1, keepdim=True)


def _cubic(pixels: Tensor, at: Tensor) -> Tensor:
    """Keys's cubic, with a = -0.5, of the distances between pixels and places."""
    below = at.floor()
    at = below + ((at - below) * _STEPS).round() / _STEPS
    x = (pixels - at).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _lanczos(radius: float) -> Callable[[Tensor], Tensor]:
    def kernel(x: Tensor) -> Tensor:
        return torch.where(x.abs() <= radius, torch.sinc(x) * torch.sinc(x / radius), 0.0)

    return kernel


def _gaussian(x: Tensor) -> Tensor:
    radius = _RADII["gaussian"]
    return torch.where(x.abs() < radius, torch.exp(-0.5 * (x / (radius / 3)) ** 2), 0.0)


def _mitchell(x: Tensor) -> Tensor:
    x = x.abs()
    near, far = (7 / 6 * x - 2) * x * x + 8 / 9, ((-7 / 18 * x + 2) * x - 10 / 3) * x + 16 / 9
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


_KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "lanczos3": _lanczos(_RADII["lanczos3"]),
    "lanczos5": _lanczos(_RADII["lanczos5"]),
    "gaussian": _gaussian,
    "mitchellcubic": _mitchell,
}
