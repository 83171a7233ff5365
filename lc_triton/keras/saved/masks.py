"""Keras's masks: which samples of a sequence are padding, handed from layer to layer beside the tensors.

A module takes part by what it has:

- `takes_mask = True`: its `forward` has an argument `mask`, that of its input (a tuple of them for several inputs).
- `output_mask(inputs, masks)`: the mask of its output.
- `makes_mask = True`: it makes a mask where its input has none.
- `takes_masks = True`, of models and wrappers: its `forward` has an argument `masks`, one an input, and then returns
  the output and a tuple of masks.

Any other module hands a mask on if its Keras class is among `PASSES`. Elsewhere a mask ends, as it does in Keras: at a
locally connected layer, a convolution or a flattening, say. Masks are bool tensors, true where numbers count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Mask: TypeAlias = Tensor | None

# `supports_masking` in tf_keras, where the mask of the output is that of the input.
PASSES = frozenset(
    {
        *("ELU", "LeakyReLU", "PReLU", "ReLU", "Softmax", "ThresholdedReLU", "Activation"),
        *("Dense", "Lambda", "ActivityRegularization"),
        *("BatchNormalization", "BatchNormalizationV1", "BatchNormalizationV2", "SyncBatchNormalization"),
        *("LayerNormalization", "GroupNormalization", "UnitNormalization"),
        *("AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "SpatialDropout1D"),
        *("SpatialDropout2D", "SpatialDropout3D"),
    }
)

_PASSES_HERE = "passes_mask"

# On a module of a user's own: the class of the layer whose place it takes.
STANDS_FOR = "stands_for"


def mark(module: nn.Module, class_name: str) -> None:
    """Note on a module that it hands masks on, if its Keras class does."""
    if class_name in PASSES and not hasattr(module, "output_mask"):
        setattr(module, _PASSES_HERE, True)


def makes_mask(module: nn.Module) -> bool:
    """Whether a module, or one inside of it, makes masks."""
    return any(getattr(inner, "makes_mask", False) for inner in module.modules())


def call(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: tuple[Mask, ...]
) -> tuple[Any, tuple[Mask, ...]]:
    """A module's output for inputs with masks, and the masks of its outputs (one for all, or one each)."""
    if getattr(module, "takes_masks", False):
        if all(mask is None for mask in masks) and not getattr(module, "makes_mask", False):
            return module(*args, **kwargs), (None,)
        output, found = module(*args, **kwargs, masks=masks)
        return output, found
    if "mask" in kwargs and not hasattr(module, STANDS_FOR):  # what a call is given stands before what inputs bring
        kwargs = dict(kwargs)
        masks = _explicit(kwargs.pop("mask"), masks)
    given = masks[0] if len(masks) == 1 else masks
    if getattr(module, "takes_mask", False) and any(mask is not None for mask in masks) and "mask" not in kwargs:
        output = module(*args, **kwargs, mask=given)
    else:
        output = module(*args, **kwargs)
    if hasattr(module, "output_mask"):
        made: Mask = module.output_mask(args, masks)  # type: ignore[operator]  # a method, by the module's contract
        return output, (made,)
    return output, (masks[0] if masks and getattr(module, _PASSES_HERE, False) else None,)


def _explicit(given: Any, masks: tuple[Mask, ...]) -> tuple[Mask, ...]:
    """The masks of a call's inputs where the call names them: that of the first, or a list."""
    found = [*given] if isinstance(given, (list, tuple)) else [given]
    found += [None] * (len(masks) - len(found))
    return tuple(mask if mask is None else mask.bool() for mask in found)


class Masking(nn.Module):
    """Steps of a sequence whose numbers all have one value are masked, and become zero."""

    makes_mask = True

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        """The sequences x `(batch, steps, ...)`, zero where they are masked."""
        return x * (x != self.value).any(-1, keepdim=True).to(x.dtype)

    def output_mask(self, inputs: tuple[Tensor, ...], masks: tuple[Mask, ...]) -> Mask:
        """True for the steps that have another value somewhere."""
        return torch.any(inputs[0] != self.value, -1)

    def extra_repr(self) -> str:
        """The value."""
        return f"value={self.value}"
