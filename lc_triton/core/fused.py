"""Weights that are updated, or whose `.grad` is, where their gradient is made: the register, and what an update is.

A layer's backward asks `slot_of` for its weight. Where there is a slot that takes the gradient, the backward hands over
a `Deferred` product in its place, and autograd is given none.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Rule(Protocol):
    """An optimizer's hyperparameters at one step: how a weight and its states follow from a gradient."""

    @property
    def name(self) -> str:
        """The name that the kernels know it by."""

    @property
    def scalars(self) -> tuple[float, ...]:
        """What the kernels compute with, in the order that they read."""

    def apply(self, weight: Tensor, gradient: Tensor, states: tuple[Tensor, ...], start: int = 0) -> None:
        """Update a weight and its states, or the part of each from an offset on, by torch's own operator."""


@dataclass(frozen=True)
class Penalty:
    """What an optimizer adds to a gradient, `l1 * sign(w) + 2 * l2 * w`, and the bound that it keeps a weight to.

    Args:
        l1: the factor of `sum(|w|)`; negative where the optimizer negates gradients, to maximize.
        l2: the factor of `sum(w^2)`, likewise.
        non_neg: whether negative weights become 0 after the update.
    """

    l1: float = 0.0
    l2: float = 0.0
    non_neg: bool = False

    @property
    def scalars(self) -> tuple[float, ...]:
        """The factors of sign(w) and w; nothing where no gradient changes."""
        return (self.l1, 2 * self.l2) if self.l1 or self.l2 else ()

    def gradient(self, weight: Tensor) -> Tensor:
        """What is added to the gradient of a weight, or of a part of one."""
        weight = weight.detach()
        gradient = weight * (2 * self.l2)
        return gradient.add_(weight.sign(), alpha=self.l1) if self.l1 else gradient


@dataclass(frozen=True)
class Update:
    """The update of a weight by its gradient.

    Args:
        rule: of the optimizer.
        weight: `(*out_spatial, *kernel, C // groups, F)`, contiguous, as all other tensors here.
        states: of the weight's shape, as many as the rule has; of its dtype, or AdamW's in bfloat16.
        added: a gradient of earlier micro-batches, which is a part of the sum; or None.
        scale: a scalar that the gradient is multiplied by; or None.
        penalty: whose gradient is a part of the sum as well; or None.
    """

    rule: Rule
    weight: Tensor
    states: tuple[Tensor, ...]
    added: Tensor | None = None
    scale: Tensor | None = None
    penalty: Penalty | None = None

    def apply(self, gradient: Tensor) -> None:
        """Update all of the weight; the gradient may change."""
        self.apply_block(slice(0, None), gradient)

    def apply_block(self, span: slice, gradient: Tensor) -> None:
        """Update the weights of the positions of `span`, in row-major order, by their gradient, which may change."""
        weight = rows_of(self.weight)
        size = weight.shape[1]
        weight = weight[span]
        gradient = gradient.reshape(gradient.numel() // size, size)
        if self.added is not None:
            gradient += rows_of(self.added)[span]
        if self.penalty is not None and self.penalty.scalars:
            gradient += self.penalty.gradient(weight)
        if self.scale is not None:
            gradient *= self.scale
        states = tuple(rows_of(state)[span] for state in self.states)
        self.rule.apply(weight, gradient, states, (span.start or 0) * size)
        if self.penalty is not None and self.penalty.non_neg:
            weight.clamp_(min=0)


def rows_of(weight: Tensor) -> Tensor:
    """A contiguous weight `(*out_spatial, *kernel, C // groups, F)` with one row a position, a view."""
    ndim = (weight.ndim - 2) // 2
    return weight.detach().view(-1, weight[(0,) * ndim].numel())


class Deferred(Protocol):
    """The product that a weight's gradient is, with its operands at hand."""

    def gradient(self) -> Tensor:
        """The gradient."""

    def square_sum(self, penalty: Penalty | None) -> Tensor:
        """The sum of the squares of the gradient and a penalty's, which are not kept: a float64 scalar."""

    def update(self, update: Update) -> None:
        """Make the gradient and update the weight by it."""

    def versions(self) -> tuple[int, ...]:
        """Of the operands: how often each was changed in place."""


class Slot(Protocol):
    """What takes the gradients of a weight over: for its optimizer, or to add them to what is there."""

    def enter_graph(self) -> None:
        """Count a graph that uses the weight."""

    def enter_evaluation(self) -> None:
        """Learn that a layer in evaluation mode uses the weight."""

    def takes(self, accumulate: Any) -> bool | None:
        """Whether the gradient that is about to be made is taken over; None where nobody wants it.

        Args:
            accumulate: the graph's node that would add the gradient to `.grad`.
        """

    def defer(self, product: Deferred) -> None:
        """Take a gradient over."""


# By the identity of the weight; empty where no such optimizer is alive, which callers look at first: it takes no call.
slots: dict[int, tuple[weakref.ref[Tensor], Callable[[], Any]]] = {}


def register(weight: Tensor, slot: Slot, *, keep: bool = False) -> None:
    """Let the backward of layers find a weight's slot for as long as both live; the last one that is registered.

    Args:
        weight: a leaf.
        slot: of it.
        keep: whether the register keeps the slot alive, which then must not keep the weight alive.
    """
    key = id(weight)

    def forget(gone: Any) -> None:
        known = slots.get(key)
        if known is not None and gone in known:
            del slots[key]

    slots[key] = weakref.ref(weight, forget), (lambda: slot) if keep else weakref.ref(slot, forget)


def unregister(weight: Tensor, slot: Slot) -> None:
    """Forget a slot, if it is still the weight's."""
    if slot_of(weight) is slot:
        del slots[id(weight)]


def slot_of(weight: Tensor) -> Slot | None:
    """The slot of a weight, if there is one."""
    known = slots.get(id(weight))
    if known is None or known[0]() is not weight:
        return None
    slot: Slot | None = known[1]()
    return slot


def enter_evaluation(weight: Tensor) -> None:
    """Let a layer in evaluation mode keep its weight until `step`: its backward is often for its input's gradient."""
    if torch.is_grad_enabled() and (slot := slot_of(weight)) is not None:
        slot.enter_evaluation()


def current_stream(tensor: Tensor) -> Any:
    """The stream that work on a tensor is queued on; None on a CPU."""
    return torch.cuda.current_stream(tensor.device) if tensor.device.type == "cuda" else None
