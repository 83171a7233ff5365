"""Layers as torch modules, in torch's convention and in Keras's."""

from lc_triton.layers.local_conv import (
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
]
