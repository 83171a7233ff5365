"""A layer whose kernel is kept at the spectral norm 1 in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lc_triton.core.parameters import write
from lc_triton.keras import layout
from lc_triton.keras.saved.arguments import Arguments, Count, Place
from lc_triton.keras.saved.convolution import LOCALLY_CONNECTED
from lc_triton.keras.saved.merging import unit
from lc_triton.keras.saved.training import Trained


class SpectralNormalization(nn.Module):
    """A layer, whose kernel each forward in training divides by its largest singular value, found by power iteration.

    The kernel is a matrix with a column for each entry of its last axis in Keras. It is divided in place, before the
    layer uses it, and gradients are those of the divided one.

    Source: Miyato et al., "Spectral normalization for generative adversarial networks", 2018;
    `keras.layers.SpectralNormalization`.
    """

    vector_u: Tensor

    def __init__(self, layer: nn.Module, iterations: int) -> None:
        super().__init__()
        self.layer, self.iterations = layer, iterations
        _, _, matrix = kernel(layer)
        self.register_buffer("vector_u", torch.zeros_like(matrix[:1]))

    def forward(self, x: Tensor) -> Any:
        """The layer's output for a batch x."""
        if self.training:
            self._normalize()
        return self.layer(x)

    @torch.no_grad()
    def _normalize(self) -> None:
        owner, name, matrix = kernel(self.layer)
        u = v = self.vector_u
        for _ in range(self.iterations):
            v = unit(u @ matrix.mT, (0, 1))
            u = unit(v @ matrix, (0, 1))
        any_left = matrix.any()
        sigma = torch.where(any_left, (v @ matrix @ u.mT)[0, 0], 1.0)
        self.vector_u.copy_(torch.where(any_left, u, self.vector_u))
        write(owner, {name: getattr(owner, name) / sigma})

    def extra_repr(self) -> str:
        """The iterations."""
        return f"iterations={self.iterations}"


def kernel(layer: nn.Module) -> tuple[nn.Module, str, Tensor]:
    """What has the kernel of a layer, under which name, and the kernel as a matrix.

    Raises:
        ValueError: a layer that has none.
    """
    if isinstance(layer, LOCALLY_CONNECTED):
        array = layout.kernel_to_keras(layer.weight, layer.geometry, layer.data_format, layer.implementation)
        return layer, "weight", array.flatten(0, -2) if array.ndim > 1 else array[None]
    slots = layer.slots() if isinstance(layer, Trained) else []
    found = [slot for slot in slots if not slot.part and slot.name in ("kernel", "embeddings")]
    if not found:
        raise ValueError(f"its layer is a {type(layer).__name__}, which has no kernel and no embeddings")
    return found[0].module, found[0].attribute, found[0].to_keras(found[0].tensor).flatten(0, -2)


class SpectralNormalizationArguments(Arguments):
    """`SpectralNormalization`."""

    layer: Any
    power_iterations: Count = 1

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if "layer" not in place.inner:
            raise ValueError("it wraps no layer")
        return SpectralNormalization(place.inner["layer"](place.shape), self.power_iterations)


CLASSES: dict[str, type[Arguments]] = {"SpectralNormalization": SpectralNormalizationArguments}
