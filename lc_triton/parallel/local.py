"""Parts of DTensors, with derivatives of every order.

The gradients of `DTensor.to_local` and `from_local` are cut off from their graph before torch 2.13, so that
derivatives of second order would lack terms without an error. This module may go when 2.13 is the oldest torch
that is allowed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement
from torch.torch_version import TorchVersion

from lc_triton.core import fused
from lc_triton.core.fused import PartSlot, Penalty, Slot, Update

_TORCH_HAS_ALL_ORDERS = TorchVersion(torch.__version__) >= TorchVersion("2.13")


class Whole(NamedTuple):
    """What a DTensor has beside its numbers."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    shape: torch.Size
    stride: tuple[int, ...]


def to_local(tensor: DTensor) -> Tensor:
    """This rank's part, in the graph of autograd."""
    if _TORCH_HAS_ALL_ORDERS or torch.compiler.is_compiling():
        return tensor.to_local()
    part: Tensor = _ToLocal.apply(tensor)  # type: ignore[no-untyped-call]
    return part


def part_for_update(tensor: DTensor, slot: Slot) -> Tensor:
    """This rank's part of a weight that an optimizer may update in backward; the layer that reads it finds the slot."""
    part: Tensor = _PartForUpdate.apply(tensor, slot)  # type: ignore[no-untyped-call]
    if part.requires_grad:
        if part.numel():
            fused.register(part, PartSlot(slot), keep=True)
        else:  # no layer reads it
            slot.enter_graph()
    return part


def from_local(part: Tensor, whole: Whole) -> DTensor:
    """The DTensor of which each rank has a part, in the graph of autograd."""
    if _TORCH_HAS_ALL_ORDERS or torch.compiler.is_compiling():
        return _from_local(part, whole)
    tensor: DTensor = _FromLocal.apply(part, whole)  # type: ignore[no-untyped-call]
    return tensor


def redistributed(tensor: DTensor, placements: tuple[Placement, ...]) -> DTensor:
    """The tensor with these placements: itself if it has them, since torch's function cuts its gradient off as well."""
    return tensor if tensor.placements == placements else tensor.redistribute(placements=placements)


def _from_local(part: Tensor, whole: Whole) -> DTensor:
    return DTensor.from_local(
        part, whole.mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride
    )


class _ToLocal(torch.autograd.Function):
    @staticmethod
    def forward(tensor: DTensor) -> Tensor:
        part = tensor.to_local()
        return part.view_as(part)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensor = inputs[0]
        ctx.whole = Whole(tensor.device_mesh, tensor.placements, tensor.shape, tensor.stride())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _FromLocal.apply(grad, ctx.whole)  # type: ignore[no-untyped-call]


class _PartForUpdate(torch.autograd.Function):
    """As `_ToLocal`, but there is no gradient where the layer has handed it over to the slot.

    A rank that owns nothing of the weight runs no layer that could: it hands its empty gradient over here.
    """

    @staticmethod
    def forward(tensor: DTensor, slot: Slot) -> Tensor:
        part = tensor.to_local()
        return part.view_as(part)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensor, ctx.slot = inputs
        ctx.whole = Whole(tensor.device_mesh, tensor.placements, tensor.shape, tensor.stride())
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return None, None
        if not grad.numel():
            accepted = ctx.slot.accepts(ctx.next_functions[0][0])
            if accepted:
                ctx.slot.defer(_NoNumbers(grad))
            if accepted or accepted is None:
                return None, None
        return _FromLocal.apply(grad, ctx.whole), None  # type: ignore[no-untyped-call]


class _NoNumbers(NamedTuple):
    """The weight gradient of a rank that owns nothing of the weight."""

    empty: Tensor

    def gradient(self) -> Tensor:
        """The gradient, a tensor of its own."""
        return torch.empty_like(self.empty)

    def square_sum(self, penalty: Penalty | None) -> Tensor:
        """Zero: there are no squares."""
        return self.empty.new_zeros((), dtype=torch.float64)

    def update(self, update: Update) -> None:
        """Do nothing: there are no numbers to update."""

    def versions(self) -> tuple[int, ...]:
        """Nothing: there are no operands."""
        return ()


class _FromLocal(torch.autograd.Function):
    @staticmethod
    def forward(part: Tensor, whole: Whole) -> DTensor:
        return _from_local(part, whole)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.placements = inputs[1].placements

    @staticmethod
    def backward(ctx: Any, grad: DTensor) -> Any:
        return to_local(redistributed(grad, ctx.placements)), None
