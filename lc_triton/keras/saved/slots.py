"""An array that Keras keeps for a layer, beside the tensor that holds it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

Convert = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Slot:
    """One array of Keras's: its name and shape there, the tensor here, and the conversions in both directions.

    The tensor is `attribute` of `module`, which a parametrization may compute. `part` is where newer files keep the
    array below its layer ("cell", say; nothing for the layer's own). Keras trains it if `trained`, unless the layer is
    frozen: older files have what is trained first.
    """

    name: str
    module: nn.Module
    attribute: str
    shape: tuple[int, ...]
    to_keras: Convert
    from_keras: Convert
    part: str = ""
    trained: bool = True
    # Another tensor of the module that the array holds too: conversions are of both, stacked.
    second: str | None = None
    # Files that know parts hold the array here once more: a wrapper's, which is the layer's inside of it.
    repeated: bool = False

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of the tensors: one, or two."""
        return (self.attribute,) if self.second is None else (self.attribute, self.second)

    @property
    def tensor(self) -> Tensor:
        """The tensor as it is now, or both."""
        found: Tensor = getattr(self.module, self.attribute)
        return found if self.second is None else torch.stack((found, getattr(self.module, self.second)))

    def values(self, array: Tensor) -> dict[str, Tensor]:
        """What the tensors are for an array of Keras's, by their names."""
        value = self.from_keras(array)
        return dict(zip(self.attributes, (value,) if self.second is None else value.unbind(), strict=True))


def same_layout(name: str, module: nn.Module, attribute: str, *, trained: bool = True) -> list[Slot]:
    """The slot of a tensor that Keras stores in the same layout; none if the module has no such tensor."""
    tensor = getattr(module, attribute)
    if tensor is None:
        return []
    return [Slot(name, module, attribute, tuple(tensor.shape), _identity, _identity, trained=trained)]


def reshaped(slot: Slot, shape: tuple[int, ...]) -> Slot:
    """The slot of a tensor whose numbers Keras stores in the same order and another shape."""
    there, back = partial(torch.reshape, shape=shape), partial(torch.reshape, shape=slot.shape)
    return replace(slot, shape=shape, to_keras=there, from_keras=back)


def inside(part: str, slots: list[Slot]) -> list[Slot]:
    """The slots of a layer that another one has inside, under the name of that part."""
    return [replace(slot, part=f"{part}/{slot.part}" if slot.part else part) for slot in slots]


def linear_slots(module: nn.Linear) -> list[Slot]:
    """The kernel and bias of a dense layer."""
    shape = tuple(reversed(module.weight.shape))
    kernel = Slot("kernel", module, "weight", shape, _transposed, _transposed)
    return [kernel, *same_layout("bias", module, "bias")]


def convolution_slots(module: nn.Module, weight: Tensor, groups: int, *, depthwise: bool) -> list[Slot]:
    """The kernel and bias of a convolution, whose weight `(filters, channels // groups, *kernel)` is torch's."""
    filters, channels, *kernel = weight.shape
    if depthwise:
        shape = (*kernel, groups, filters // groups)
        there, back = partial(_depthwise_to_keras, shape), partial(_depthwise_from_keras, tuple(weight.shape))
        return [
            Slot("depthwise_kernel", module, "weight", shape, there, back),
            *same_layout("bias", module, "bias"),
        ]
    return [
        Slot("kernel", module, "weight", (*kernel, channels, filters), _conv_to_keras, _conv_from_keras),
        *same_layout("bias", module, "bias"),
    ]


def batch_normalization_slots(module: nn.Module) -> list[Slot]:
    """The scale, the offset and the moving statistics of a batch normalization."""
    affine = same_layout("gamma", module, "weight") + same_layout("beta", module, "bias")
    return (
        affine
        + same_layout("moving_mean", module, "running_mean", trained=False)
        + same_layout("moving_variance", module, "running_var", trained=False)
    )


def layer_normalization_slots(module: nn.Module) -> list[Slot]:
    """The scale and the offset of a layer normalization."""
    return same_layout("gamma", module, "weight") + same_layout("beta", module, "bias")


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.mT


def _conv_to_keras(weight: Tensor) -> Tensor:
    return weight.movedim((1, 0), (-2, -1))


def _conv_from_keras(kernel: Tensor) -> Tensor:
    return kernel.movedim((-1, -2), (0, 1))


def _depthwise_to_keras(shape: tuple[int, ...], weight: Tensor) -> Tensor:
    return weight.movedim(0, -1).reshape(shape)


def _depthwise_from_keras(shape: tuple[int, ...], kernel: Tensor) -> Tensor:
    return kernel.flatten(-2).movedim(-1, 0).reshape(shape)
