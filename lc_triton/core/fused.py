"""Weights that are updated, or whose `.grad` is added to, where their gradient is computed: slots and updates.

A layer's backward calls `slot_of` with its weight. If the weight has a slot that takes the gradient, backward gives the
slot a `Deferred` product instead of the gradient, and returns no gradient to autograd.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

# How many states the optimizer of a weight has, by the rule of its update. Two rules belong to no optimizer: "add" adds
# gradients up, and "square_sum" only makes the sum of their squares, for `clip_norm`.
STATES = {"adamw": 2, "momentum": 1, "nesterov": 1, "sgd": 0, "add": 0, "square_sum": 0}
# Neighbouring filters whose states in 8 bits are scaled by one largest magnitude; the last block may have fewer.
BLOCK = 32


class Small(NamedTuple):
    """What lies beside a weight and its states where they are kept in fewer bits.

    Args:
        correction: `(*out_spatial, *kernel, C // groups, F)` in int8, from a weight in bfloat16 to its master; or None.
        amax: `(*out_spatial, *kernel, C // groups, blocks, 2)` in float32, of states in 8 bits: the largest magnitudes
            of both in each block of filters; or None.
    """

    correction: Tensor | None = None
    amax: Tensor | None = None


NOTHING_SMALL = Small()


class Rule(Protocol):
    """An optimizer's hyperparameters at one step: how a weight and its states follow from a gradient."""

    @property
    def name(self) -> str:
        """The name that the kernels know it by."""

    @property
    def scalars(self) -> tuple[float, ...]:
        """What the kernels compute with, in the order that they read."""

    def apply(
        self, weight: Tensor, gradient: Tensor, states: tuple[Tensor, ...], start: int = 0, small: Small = NOTHING_SMALL
    ) -> None:
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
        weight = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        gradient = weight * (2 * self.l2)
        return gradient.add_(weight.sign(), alpha=self.l1) if self.l1 else gradient

    def bound(self, weight: Tensor, small: Small) -> None:
        """Let no weight, and no master of one, be negative, if that is asked for."""
        if not self.non_neg:
            return
        if small.correction is not None:
            small.correction.masked_fill_(weight.signbit(), 0)
        weight.clamp_(min=0)


@dataclass(frozen=True)
class Update:
    """The update of a weight by its gradient; of a parameter that is no layer's weight, as one of any shape.

    Args:
        rule: of the optimizer.
        weight: `(*out_spatial, *kernel, C // groups, F)`, contiguous, as all other tensors here.
        states: of the weight's shape, as many as the rule has; of its dtype (float32 of a weight in bfloat16), or
            AdamW's in bfloat16, or in int8 and uint8.
        added: a gradient of earlier micro-batches, which is a part of the sum; or None.
        scale: a scalar that the gradient is multiplied by; or None.
        small: what lies beside a weight or states of fewer bits.
        penalty: whose gradient is a part of the sum as well; or None.
    """

    rule: Rule
    weight: Tensor
    states: tuple[Tensor, ...]
    added: Tensor | None = None
    scale: Tensor | None = None
    penalty: Penalty | None = None
    small: Small = NOTHING_SMALL

    def apply(self, gradient: Tensor) -> None:
        """Update all of the weight; the gradient may change."""
        self.apply_block(slice(0, None), gradient)

    def apply_block(self, span: slice, gradient: Tensor) -> None:
        """Update the weights of the positions of `span`, in row-major order, by their gradient, which may change."""
        weight = rows_of(self.weight)[span]
        gradient = gradient.reshape(weight.shape).contiguous()  # as torch's operators need it
        small = Small(*(None if tensor is None else rows_of(tensor, self.weight.ndim)[span] for tensor in self.small))
        if self.added is not None:
            gradient += rows_of(self.added)[span]
        if self.penalty is not None and self.penalty.scalars:
            gradient += self.penalty.gradient(weight)
        if self.scale is not None:
            gradient *= self.scale
        states = tuple(rows_of(state)[span] for state in self.states)
        start = (span.start or 0) * weight[0].numel()
        self.rule.apply(weight, gradient, states, start, small)
        if self.penalty is not None:
            self.penalty.bound(weight, small)


def rows_of(tensor: Tensor, ndim: int | None = None) -> Tensor:
    """A contiguous weight `(*out_spatial, *kernel, C // groups, F)`, or what lies beside one, as a view.

    Args:
        tensor: of the weight's dimensions, the last of which may be several.
        ndim: how many dimensions the weight has, if it is not the tensor.

    Returns:
        `(P, T * C // groups, F)`, or the last size of what each filter or block has.
    """
    last = (ndim or tensor.ndim) - 1
    positions = tensor.shape[: (last - 1) // 2].numel()
    return tensor.detach().view(positions, -1, tensor.shape[last:].numel())


class Deferred(Protocol):
    """A weight gradient that is not computed yet: the product and its operands."""

    def gradient(self) -> Tensor:
        """The gradient."""

    def square_sum(self, penalty: Penalty | None) -> Tensor:
        """The sum of the squares of the gradient and a penalty's, which are not kept: a float64 scalar."""

    def update(self, update: Update) -> None:
        """Make the gradient and update the weight by it."""

    def versions(self) -> tuple[int, ...]:
        """How often each of the operands was changed in place."""


class Slot(Protocol):
    """What takes the gradients of a weight over: for its optimizer, or to add them to what is there."""

    takes_parts: bool  # whether it takes the gradient of a rank's part of a weight

    def enter_graph(self) -> None:
        """Count a graph that uses the weight."""

    def enter_evaluation(self) -> None:
        """Note that a layer in evaluation mode uses the weight."""

    def accepts(self, accumulate: Any) -> bool | None:
        """Whether the gradient that is about to be made is taken over; None if nothing needs it.

        Args:
            accumulate: the graph's node that would add the gradient to `.grad`.
        """

    def update_in_node(self) -> Update | None:
        """The update of a weight whose gradient is taken over, if the layer's node is to make it; else it defers."""

    def defer(self, product: Deferred) -> None:
        """Take a gradient over."""


class PartSlot:
    """The slot of a tensor that one node of the graph makes from a weight: a rank's part of it, or a view.

    Args:
        slot: of the weight.
    """

    takes_parts = True

    def __init__(self, slot: Slot) -> None:
        self._slot = slot

    def enter_graph(self) -> None:
        """Count a graph that uses the weight."""
        self._slot.enter_graph()

    def enter_evaluation(self) -> None:
        """Note that a layer in evaluation mode uses the weight."""
        self._slot.enter_evaluation()

    def accepts(self, accumulate: Any) -> bool | None:
        """As the weight's slot; `accumulate` is the node that makes the part."""
        return self._slot.accepts(accumulate.next_functions[0][0])

    def update_in_node(self) -> Update | None:
        """As the weight's slot."""
        return self._slot.update_in_node()

    def defer(self, product: Deferred) -> None:
        """Take a gradient over."""
        self._slot.defer(product)


# By `id(weight)`: a reference to the weight if the slot is kept alive here, else None; and a function that returns the
# slot. Callers first test whether the dictionary is empty, as it is without such an optimizer: that takes no call.
slots: dict[int, tuple[weakref.ref[Tensor] | None, Callable[[], Any]]] = {}


def register(weight: Tensor, slot: Slot, *, keep: bool = False) -> None:
    """Let the backward of layers find a weight's slot for as long as both live; it replaces an earlier slot.

    Args:
        weight: a leaf.
        slot: of it, which keeps the weight alive.
        keep: whether the register keeps the slot alive, which then must not keep the weight alive. Such a weight has a
            weak reference, with which torch cannot swap its contents: `module.to` does that to a DTensor.
    """
    key = id(weight)

    def forget(gone: Any) -> None:
        known = slots.get(key)
        if known is not None and gone in known:
            del slots[key]

    slots[key] = (weakref.ref(weight, forget), lambda: slot) if keep else (None, weakref.ref(slot, forget))


def unregister(weight: Tensor, slot: Slot) -> None:
    """Forget a slot, if it is still the weight's."""
    if slot_of(weight) is slot:
        del slots[id(weight)]


def slot_of(weight: Tensor) -> Slot | None:
    """The slot of a weight, if there is one."""
    known = slots.get(id(weight))
    if known is None or (known[0] is not None and known[0]() is not weight):
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
