"""Locally connected layers for PyTorch: convolutions in which every output position has filters of its own.

Layers in torch's convention, weights `(*out_spatial, *kernel_size, in_channels // groups, out_channels)`:
    LocalConv1d, LocalConv2d, LocalConv3d                             as nn.Conv1d, 2d, 3d
    LocalConvTranspose1d, LocalConvTranspose2d, LocalConvTranspose3d  their adjoints, as nn.ConvTranspose1d, 2d, 3d
    LazyLocalConv1d, ..., LazyLocalConvTranspose3d                    the same, with sizes taken from the first input

Layers around them:
    LowRankLocalConv1d, LowRankLocalConv2d, LowRankLocalConv3d        filters of each position mixed from a few
    LocalGather                                                       positions that read any sites: a table
    LocalLinear                                                       a linear map of its own at every position

Layers with the arguments of Keras 2:
    LocallyConnected1D, LocallyConnected2D, LocallyConnected3D
    regularization_loss, apply_constraints, attach_constraints        penalties and constraints in a training loop
    penalty_groups                                                    those that a fused optimizer takes over

The operator itself, a function of tensors:
    local_conv, local_conv_transpose

Around them:
    init              torch.nn.init for these weights, at each position
    position_penalty  how much filters differ between positions, for a loss
    quantize_weights  weights of 8 or 4 bits, for inference
    convert_convs     replaces convolutions of a model by layers that compute the same
    convert_weights   weights of flax, JAX, darknet and others in this library's order
    decompositions    for exported programs that run without this library: AOTInductor packages, ONNX
    backend           chooses the implementation by hand
    keras             Keras's arguments and files
    parallel          layers that many ranks share
    FusedAdamW        torch's optimizer, which updates the weight of a layer in its backward; FusedSGD likewise
    accumulate_gradients  lets backward add to `.grad` or `main_grad` in the kernel, for other optimizers
    precompile        compiles the kernels of a model without the GPU that will run it
    tuning            measures tiles at the first call of a layer on a GPU, instead of predicting them
    LocalConvError    the base of all errors; each is a ValueError or a TypeError as well

Example:
    >>> import torch, lc_triton
    >>> layer = lc_triton.LocalConv2d(3, 8, kernel_size=3, input_size=6, padding=1, activation="relu")
    >>> layer(torch.randn(2, 3, 6, 6)).shape
    torch.Size([2, 8, 6, 6])

`help` of each name has its arguments, shapes and errors; README.md and docs/ have the guides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lc_triton import _command  # noqa: F401  first: torch is imported below, and Ctrl-C may come meanwhile
from lc_triton import keras as keras
from lc_triton._version import __version__
from lc_triton.ahead import precompile
from lc_triton.core.backend import backend
from lc_triton.errors import LocalConvError
from lc_triton.functional import local_conv, local_conv_transpose
from lc_triton.keras.constraints import apply_constraints, attach_constraints
from lc_triton.keras.folding import penalty_groups
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
    LocalGather,
    LocalLinear,
    LocallyConnected1D,
    LocallyConnected2D,
    LocallyConnected3D,
    LowRankLocalConv1d,
    LowRankLocalConv2d,
    LowRankLocalConv3d,
)
from lc_triton.layers import init as init
from lc_triton.layers.conversion import convert_convs
from lc_triton.layers.other_layouts import convert_weights
from lc_triton.layers.penalties import position_penalty
from lc_triton.layers.quantization import quantize_weights
from lc_triton.ops.decompositions import decompositions
from lc_triton.optim import FusedAdamW, FusedSGD, accumulate_gradients
from lc_triton.search import tuning

if TYPE_CHECKING:
    from lc_triton import parallel as parallel

__all__ = [
    "FusedAdamW",
    "FusedSGD",
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
    "LocalGather",
    "LocalLinear",
    "LocallyConnected1D",
    "LocallyConnected2D",
    "LocallyConnected3D",
    "LowRankLocalConv1d",
    "LowRankLocalConv2d",
    "LowRankLocalConv3d",
    "__version__",
    "accumulate_gradients",
    "apply_constraints",
    "attach_constraints",
    "backend",
    "convert_convs",
    "convert_weights",
    "decompositions",
    "local_conv",
    "local_conv_transpose",
    "penalty_groups",
    "position_penalty",
    "precompile",
    "quantize_weights",
    "regularization_loss",
    "tuning",
]


def __getattr__(name: str) -> Any:
    if name == "parallel":  # imported when first asked for: torch.distributed.tensor takes a second
        import importlib

        return importlib.import_module(".parallel", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "parallel"})
