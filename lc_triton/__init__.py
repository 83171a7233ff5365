"""Locally connected layers (convolutions whose every output position has filters of its own) for PyTorch."""

from lc_triton._backend import backend
from lc_triton._decompositions import decompositions
from lc_triton._version import __version__
from lc_triton.conversion import convert_convs
from lc_triton.errors import LocalConvError
from lc_triton.functional import local_conv, local_conv_transpose
from lc_triton.keras.constraints import apply_constraints, attach_constraints
from lc_triton.keras.regularizers import regularization_loss
from lc_triton.layers import (
    LazyLocalConv1d,
    LazyLocalConv2d,
    LazyLocalConv3d,
    LazyLocalConvTranspose1d,
    LazyLocalConvTranspose2d,
    LazyLocalConvTranspose3d,
    LocalConv1d,
    LocalConv2d,
    LocalConv3d,
    LocalConvTranspose1d,
    LocalConvTranspose2d,
    LocalConvTranspose3d,
    LocallyConnected1D,
    LocallyConnected2D,
    LocallyConnected3D,
)
from lc_triton.search import tuning

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
    "LocalConvError",
    "LocalConvTranspose1d",
    "LocalConvTranspose2d",
    "LocalConvTranspose3d",
    "LocallyConnected1D",
    "LocallyConnected2D",
    "LocallyConnected3D",
    "__version__",
    "apply_constraints",
    "attach_constraints",
    "backend",
    "convert_convs",
    "decompositions",
    "local_conv",
    "local_conv_transpose",
    "regularization_loss",
    "tuning",
]
