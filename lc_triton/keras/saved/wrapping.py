"""Layers around layers, and layers that make masks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lc_triton.keras.saved import masks as masking
from lc_triton.keras.saved.arguments import Arguments, Number, Place
from lc_triton.keras.saved.masks import Mask, Masking


class TimeDistributed(nn.Module):
    """A layer that computes each step of a sequence by itself."""

    takes_masks = True

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.makes_mask = masking.makes_mask(layer)

    def forward(self, x: Tensor, masks: tuple[Mask, ...] | None = None) -> Any:
        """The layer's output for each step of x `(batch, steps, ...)`; with the mask of x, that of the output too."""
        if masks is None:
            return self._in_steps(self.layer(x.flatten(0, 1)), x)
        mask = masks[0]
        inner = None if mask is None else mask.flatten(0, 1)
        output, found = masking.call(self.layer, (x.flatten(0, 1),), {}, (inner,))
        if found[0] is not None:
            return self._in_steps(output, x), (_steps(found[0], x),)
        # Where the layer ends the mask of what is in a step, the steps of which anything is left are masked on.
        left = mask if mask is None or mask.ndim == 2 else mask.flatten(2).any(-1)
        return self._in_steps(output, x), (left,)

    @staticmethod
    def _in_steps(output: Any, x: Tensor) -> Any:
        if isinstance(output, Tensor):
            return _steps(output, x)
        if isinstance(output, dict):
            return {key: _steps(value, x) for key, value in output.items()}
        return tuple(_steps(value, x) for value in output)


def _steps(y: Tensor, x: Tensor) -> Tensor:
    return y.reshape(*x.shape[:2], *y.shape[1:])


class TimeDistributedArguments(Arguments):
    """`TimeDistributed`."""

    layer: Any

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if len(place.shape) < 2:
            raise ValueError(f"it takes sequences of samples, and is given shape {place.shape}")
        if "layer" not in place.inner:
            raise ValueError("it wraps no layer")
        layer = place.inner["layer"](place.shape[1:])
        if any(getattr(inner, "stateful", False) for inner in layer.modules()):
            raise ValueError("it wraps a layer with stateful=True, whose states would go from step to step")
        return TimeDistributed(layer)


class MaskingArguments(Arguments):
    """`Masking`."""

    mask_value: Number = 0.0

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return Masking(float(self.mask_value))


CLASSES: dict[str, type[Arguments]] = {"TimeDistributed": TimeDistributedArguments, "Masking": MaskingArguments}
