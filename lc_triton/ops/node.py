"""A layer's call as one node of the graph, from its input as given to its output as asked for.

The output is no view: a caller may change it in place, or free what it was computed from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lc_triton.core import fused
from lc_triton.core.batched_gradients import at_once
from lc_triton.core.problem import Problem
from lc_triton.core.storage import check_saved
from lc_triton.core.tracing import has_saved_tensor_hooks, is_observed, is_unresolved
from lc_triton.errors import ArgumentValueError
from lc_triton.ops import autograd, bound, dispatch
from lc_triton.ops.bound import NodeArguments
from lc_triton.tiles.chooser import chooser


def can_use_single_node(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a graph is being built of plain tensors, and no hook sees the saved ones.

    A checkpoint compares the saved tensors of two calls, and one of them may have run an operator, which saves tensors
    in the internal format.
    """
    return autograd.dispatch_path(x, weight, bias) == "autograd" and not has_saved_tensor_hooks()


class BoundNode:
    """A layer's call as one node of the graph, bound to the tensors it is made for and others like them.

    Args:
        arguments: of the node.
        x, weight, bias: its tensors.
    """

    __slots__ = ("arguments", "backwards", "bias_shape", "deferrals", "forward", "kinds", "operand_dtype", "saves")

    def __init__(self, arguments: NodeArguments, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.arguments = arguments
        self.saves = arguments.problem.activation.saves
        self.bias_shape = None if bias is None else bias.shape
        self.operand_dtype = bound.operand_dtype(arguments, x, weight, needs_input_grad=x.requires_grad)
        operand = bound.operand_like(weight, self.operand_dtype)
        self.forward = bound.bind_forward(arguments, x, operand, bias, store_z=self.saves == "z")
        self.kinds = _kind(x), _kind(weight)
        self.backwards: dict[Any, bound.BoundBackward | None] = {}
        self.deferrals: dict[Any, bound.BoundDeferral | None] = {}

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """y in the output format, no view, with its gradients."""
        out = _apply_node(self, x, weight, bias)
        y: Tensor = out[0] if self.saves == "z" else out
        return y

    def backward(self, tensors: Any, operand: Tensor, grad: Tensor, needed: tuple[bool, bool, bool]) -> Any:
        """dx, dw and db by kernels alone; None where that cannot be."""
        if torch.is_grad_enabled() or is_observed() or (key := self._gradient_key(tensors, grad, needed)) is None:
            return None
        x, weight, saved = tensors
        try:
            call = self.backwards[key]
        except KeyError:
            of_call = x, weight, operand, saved
            call = self.backwards[key] = bound.bind_backward(self.arguments, of_call, grad, self.bias_shape, needed)
        return None if call is None else call(x, weight, operand, saved, grad)

    def deferral(
        self, tensors: Any, operand: Tensor, grad: Tensor, needed: tuple[bool, bool, bool]
    ) -> bound.BoundDeferral | None:
        """The backward of x and bias by kernels alone; None where that cannot be."""
        if (key := self._gradient_key(tensors, grad, needed)) is None:
            return None
        try:
            return self.deferrals[key]
        except KeyError:
            x, weight, saved = tensors
            found = bound.bind_deferral(self.arguments, (x, weight, operand, saved), grad, self.bias_shape, needed)
            self.deferrals[key] = found
            return found

    def _gradient_key(self, tensors: Any, grad: Tensor, needed: tuple[bool, bool, bool]) -> tuple[Any, ...] | None:
        """Everything but values that decides how the gradients are computed; None where no bound launch may read them.

        A tensor that was freed since the forward is at address 0, and one whose `.data` was assigned to may be another.
        """
        if type(grad) is not Tensor or (address := grad.data_ptr()) % 16:
            return None
        x, weight, saved = tensors
        if not (address and x.data_ptr() and weight.data_ptr() and (saved is None or saved.data_ptr())):
            check_saved((*tensors, grad))
        if (_kind(x), _kind(weight)) != self.kinds:
            return None
        return grad.stride(), grad.is_neg() if address else is_unresolved(grad), needed, chooser.generation

    def check_unchanged(self, tensors: Any) -> None:
        """Refuse an x or weight that was freed since the forward, or has another shape, dtype or device."""
        check_saved(tensors)
        if is_observed():  # shapes may be symbols there
            return
        for name, tensor, (_, *then) in zip(("the layer's input", "the weight"), tensors, self.kinds, strict=False):
            if (now := [tensor.shape, tensor.dtype, tensor.device]) != then:
                value, allowed = ("shape {}, {}, on {}".format(tuple(kind[0]), *kind[1:]) for kind in (now, then))
                remedy = "convert or move a model before its forward or after its backward"
                raise ArgumentValueError(name=f"{name} in backward", value=value, allowed=f"{allowed!r}: {remedy}")


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    """Everything but values that a launch is bound for.

    Another layout or alignment takes another launch; another shape, dtype or device is an error in a backward.
    """
    layout = tensor.is_contiguous() or tensor.stride(), tensor.data_ptr() % 16
    return layout, tensor.shape, tensor.dtype, tensor.device


class LocalConv(torch.autograd.Function):
    """(y, z) where the activation's derivative needs z, else y alone: z is an output like any other, so that a second
    differentiation through it is exact.
    """

    @staticmethod
    def forward(ctx: Any, node: BoundNode, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        ctx.node = node
        if fused.slots and ctx.needs_input_grad[2] and (slot := fused.slot_of(weight)) is not None:
            slot.enter_graph()
        operand = bound.operand_of(weight, node.operand_dtype)
        y, z = node.forward(x, operand, bias)
        saved = z if node.saves == "z" else y if node.saves == "y" else None
        if operand is weight or not ctx.needs_input_grad[1]:
            ctx.save_for_backward(x, weight, saved)
        else:  # a copy that the input gradient reads, which goes with the graph
            ctx.save_for_backward(x, weight, saved, operand)
        if node.saves == "z":
            ctx.set_materialize_grads(False)
            return y, z
        return y

    @staticmethod
    @at_once
    def backward(ctx: Any, grad: Tensor | None, grad_z: Tensor | None = None) -> Any:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        operand, tensors = tensors[-1] if len(tensors) > 3 else tensors[1], tensors[:3]
        if fused.slots and needed[1] and (slot := fused.slot_of(tensors[1])) is not None:
            accepted = slot.accepts(ctx.next_functions[1][0])
            if accepted and grad is not None and grad_z is None:
                return None, *_defer(ctx.node, tensors, operand, grad, needed, slot)
            needed = needed[0], accepted is not None, needed[2]
        if grad is not None and grad_z is None:
            found = ctx.node.backward(tensors, operand, grad, needed)
            if found is not None:
                return None, *found
        ctx.node.check_unchanged(tensors)
        (x, weight, saved), node = tensors, ctx.node.arguments
        x, grad = node.input_format.to_internal(x), None if grad is None else node.output_format.to_internal(grad)
        if saved is not None and ctx.node.saves == "y":
            saved = node.output_format.to_internal(saved)
        args = node.problem, (x, weight, saved), ctx.node.bias_shape, needed, grad
        dx, dw, db = autograd.gradients_of_transpose(*args) if node.transposed else autograd.gradients(*args, grad_z)
        return None, None if dx is None else node.input_format.from_internal(dx), dw, db


class WeightProduct(NamedTuple):
    """The weight gradient of (x, g), still to be made."""

    x: Tensor
    g: Tensor
    problem: Problem
    weight: Tensor
    bound_updates: dict[Any, Any] | None = None  # those that were bound for such operands

    def gradient(self) -> Tensor:
        """The gradient."""
        return dispatch.weight_grad(self.x, self.g, self.problem, self.weight.dtype, with_bias=False)[0]

    def square_sum(self, penalty: fused.Penalty | None) -> Tensor:
        """The sum of the squares of the gradient and a penalty's, which are not kept: a float64 scalar."""
        return dispatch.weight_grad_square_sum(self.x, self.g, self.problem, self.weight, penalty)

    def update(self, update: fused.Update) -> None:
        """Update the weight by the gradient."""
        dispatch.weight_update(self.x, self.g, self.problem, update, self.bound_updates)

    def versions(self) -> tuple[int, ...]:
        """Of the operands: how often each was changed in place."""
        return self.x._version, self.g._version


def _defer(
    node: BoundNode, tensors: Any, operand: Tensor, grad: Tensor, needed: tuple[bool, bool, bool], slot: fused.Slot
) -> Any:
    """dx and db, and nothing for the weight, whose gradient `slot` makes when nothing more reads the weight."""
    (x, weight, saved), (problem, input_format, output_format, transposed) = tensors, node.arguments
    deferral = node.deferral(tensors, operand, grad, needed)
    if deferral is not None:
        if deferral.call_once is not None and (update := slot.update_in_node()) is not None:
            of_x, of_bias = deferral.call_once(x, weight, saved, grad, update)
            return of_x, None, of_bias
        dx, db, x, dz = deferral.call(x, weight, operand, saved, grad)
        operands = (dz, x) if transposed else (x, dz)
        slot.defer(WeightProduct(*operands, problem.linear(), weight, deferral.updates))
        return dx, None, db
    node.check_unchanged(tensors)
    x, grad, linear = input_format.to_internal(x), output_format.to_internal(grad), problem.linear()
    if saved is not None and node.saves == "y":
        saved = output_format.to_internal(saved)
    dz = problem.activation.backward(dispatch.as_stored(grad), saved)
    db = bound.bias_grad(dz, weight.dtype, node.bias_shape) if needed[2] and node.bias_shape is not None else None
    run = autograd.forward if transposed else autograd.transpose
    dx = run(dz, operand, None, linear) if needed[0] else None
    slot.defer(WeightProduct(*((dz, x) if transposed else (x, dz)), linear, weight))
    return None if dx is None else input_format.from_internal(dx), None, db


# `LocalConv.apply` without its look-up of the signature of forward: a third of a small layer's time.
_apply_node: Any = super(torch.autograd.Function, LocalConv).apply
