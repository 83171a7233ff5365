"""Locally connected layers (convolutions whose every output position has filters of its own) for PyTorch."""

from lc_triton._backend import backend
from lc_triton._version import __version__
from lc_triton.errors import LocalConvError
from lc_triton.functional import local_conv
from lc_triton.layers import (
    LazyLocalConv1d,
    LazyLocalConv2d,
    LazyLocalConv3d,
    LocalConv1d,
    LocalConv2d,
    LocalConv3d,
)

__all__ = [
    "LazyLocalConv1d",
    "LazyLocalConv2d",
    "LazyLocalConv3d",
    "LocalConv1d",
    "LocalConv2d",
    "LocalConv3d",
    "LocalConvError",
    "__version__",
    "backend",
    "local_conv",
]
