"""Weights of 8 or 4 bits for inference: layers of a model changed in place."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.nn.parameter import is_lazy

from lc_triton.core.arguments import check_name
from lc_triton.core.names import QuantizedName
from lc_triton.core.parameters import is_plain
from lc_triton.errors import ArgumentTypeError, ConversionError, NotBuiltError
from lc_triton.layers._planned import PlannedLayer
from lc_triton.ops.quantized import KINDS, quantize

__all__ = ["quantize_weights"]

Model = TypeVar("Model", bound=nn.Module)


def quantize_weights(model: Model, dtype: QuantizedName) -> Model:
    """Store the weights of a model's locally connected layers in 8 or 4 bits, in place, for inference.

    Each layer's `weight` becomes a buffer, beside a buffer `weight_scale` of float32. Gradients go to the input and to
    the bias, not to the weight. If one of the layers cannot be changed, none is.

    Args:
        model: any module. Its LocalConv1d, 2d, 3d and LocallyConnected1D, 2D, 3D are changed; all others stay.
        dtype: "int8" or "float8_e4m3", with a scale of each position and filter, or "int4", with a scale every 32
            entries of each filter's window.

    Returns:
        The model.

    Raises:
        LocalConvError: (also a ValueError or TypeError) there is no such layer, one is quantized already, not built, or
            shared by ranks, or has a weight that a parametrization or pruning computes.

    Source: Dettmers et al., "LLM.int8()", NeurIPS 2022, and Frantar et al., "GPTQ", ICLR 2023, for groups of entries;
        values are rounded to the nearest.

    Example:
        >>> import torch, lc_triton
        >>> layer, x = lc_triton.LocalConv2d(8, 16, 3, input_size=12), torch.randn(2, 8, 12, 12)
        >>> exact = layer(x)
        >>> quantized = lc_triton.quantize_weights(layer, "int8")
        >>> quantized is layer, quantized.weight.dtype
        (True, torch.int8)
        >>> bool((layer(x) - exact).norm() < 0.02 * exact.norm())
        True
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(name="model", value=model, allowed="a torch.nn.Module")
    check_name("dtype", dtype, tuple(KINDS))
    layers = {name: module for name, module in model.named_modules() if _is_quantizable(module)}
    if not layers:
        reason = "it has no LocalConv1d, 2d, 3d and no LocallyConnected1D, 2D, 3D"
        raise ConversionError(name=f"a {type(model).__name__}", reason=reason)
    for name, layer in layers.items():
        _check(f"layer {name!r}" if name else "the model", layer)
    for layer in layers.values():
        weight, scale = quantize(layer.weight, dtype)
        del layer.weight
        layer.register_buffer("weight", weight)
        layer.register_buffer("weight_scale", scale)
    return model


def _is_quantizable(module: nn.Module) -> bool:
    return isinstance(module, PlannedLayer) and module._is_quantizable


def _check(name: str, layer: PlannedLayer) -> None:
    layer._check_unshared("quantize_weights")
    layer._check_unquantized("quantize_weights")
    if is_lazy(layer.weight) or layer._plan is None:
        raise NotBuiltError(name=name, remedy="call it once on an input")
    if not is_plain(layer, "weight"):
        reason = (
            "its weight is computed by a parametrization, a pruning or a hook: make it permanent first "
            "(torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.prune.remove)"
        )
        raise ConversionError(name=name, reason=reason)
    layer._check_parameters()
    for argument in ("kernel_regularizer", "kernel_constraint"):
        if getattr(layer, argument, None) is not None:
            reason = f"its {argument} is about the weight: set layer.{argument} = None first"
            raise ConversionError(name=name, reason=reason)
