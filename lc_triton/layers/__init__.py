"""Layers as torch modules, in torch's convention and in Keras's."""

from lc_triton.layers.local_conv import (
    LazyLocalConv1d,
    LazyLocalConv2d,
    LazyLocalConv3d,
    LocalConv1d,
    LocalConv2d,
    LocalConv3d,
)
from lc_triton.layers.local_conv_transpose import (
    LazyLocalConvTranspose1d,
    LazyLocalConvTranspose2d,
    LazyLocalConvTranspose3d,
    LocalConvTranspose1d,
    LocalConvTranspose2d,
    LocalConvTranspose3d,
)
from lc_triton.layers.local_gather import LocalGather
from lc_triton.layers.local_linear import LocalLinear
from lc_triton.layers.locally_connected import LocallyConnected1D, LocallyConnected2D, LocallyConnected3D
from lc_triton.layers.low_rank import LowRankLocalConv1d, LowRankLocalConv2d, LowRankLocalConv3d

__all__ = [
    "LazyLocalConv1d",
    "LazyLocalConv2d",
    "LazyLocalConv3d",
    "LazyLocalConvTranspose1d",
    "LazyLocalConvTranspose2d",
    "LazyLocalConvTranspose3d",
    "LocalConv1d",
    "LocalConv2d",
    "LocalConv3d",
    "LocalConvTranspose1d",
    "LocalConvTranspose2d",
    "LocalConvTranspose3d",
    "LocalGather",
    "LocalLinear",
    "LocallyConnected1D",
    "LocallyConnected2D",
    "LocallyConnected3D",
    "LowRankLocalConv1d",
    "LowRankLocalConv2d",
    "LowRankLocalConv3d",
]
