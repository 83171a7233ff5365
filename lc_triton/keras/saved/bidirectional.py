"""A recurrent layer of each direction side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lc_triton.keras.saved import cells, convolutional_lstm, recurrent
from lc_triton.keras.saved.arguments import Arguments, Place
from lc_triton.keras.saved.cells import Stack
from lc_triton.keras.saved.convolutional_lstm import ConvLSTM
from lc_triton.keras.saved.recurrent import Recurrent
from lc_triton.keras.saved.slots import Slot, inside
from lc_triton.keras.saved.training import Trained, asked

Tensors = tuple[Tensor, ...]
Mask = Tensor | None

# A layer that reads sequences, in either direction.
OneWay: TypeAlias = Recurrent | Stack | ConvLSTM

_INNER: Mapping[str, type[Arguments]] = {**recurrent.CLASSES, **cells.CLASSES, **convolutional_lstm.CLASSES}


class Bidirectional(Trained):
    """A recurrent layer, and another that reads the steps from the last to the first; their outputs merged."""

    takes_mask = True

    def __init__(self, forwards: OneWay, backwards: OneWay, merge: str | None) -> None:
        super().__init__()
        self.forward_layer, self.backward_layer, self.merge = forwards, backwards, merge

    def slots(self) -> list[Slot]:
        """See the base."""
        return inside("forward_layer", self.forward_layer.slots()) + inside(
            "backward_layer", self.backward_layer.slots()
        )

    def output_mask(self, inputs: Tensors, masks: tuple[Mask, ...]) -> Mask:
        """The mask of the outputs: that of the steps, where all are returned."""
        return masks[0] if self.forward_layer.sequences else None

    def forward(
        self,
        x: Tensor,
        *initial: Tensor,
        mask: Mask | tuple[Mask, ...] = None,
        initial_state: None = None,
        constants: None = None,
    ) -> Tensor | Tensors:
        """The merged outputs; then the last states of both, if the layers return theirs.

        Keras writes `initial_state` and `constants` as None beside states that are inputs.
        """
        half = len(initial) // 2
        there = _listed(self.forward_layer(x, *initial[:half], mask=mask))
        back = _listed(self.backward_layer(x, *initial[half:], mask=mask))
        y, reverse = there[0], back[0]
        if self.backward_layer.sequences:
            reverse = reverse.flip(0 if self.backward_layer.time_major else 1)
        outputs = (y, reverse) if self.merge is None else (self.observed(_MERGE[self.merge](y, reverse)),)
        found = (*outputs, *there[1:], *back[1:])
        return found if len(found) > 1 else found[0]

    def extra_repr(self) -> str:
        """The merging."""
        return f"merge={self.merge!r}"


_MERGE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "concat": lambda a, b: torch.cat((a, b), -1),
    "sum": torch.add,
    "ave": lambda a, b: (a + b) / 2,
    "mul": torch.mul,
}


def _listed(found: Tensor | Tensors) -> Tensors:
    return found if isinstance(found, tuple) else (found,)


class BidirectionalArguments(Arguments):
    """`Bidirectional`."""

    call_arguments = frozenset({"mask"})

    layer: dict[str, Any]
    backward_layer: dict[str, Any] | None = None
    merge_mode: Literal["concat", "sum", "ave", "mul"] | None = "concat"

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        there = self._inner(place, self.layer, 0)
        if self.backward_layer is None:
            back = self._inner(place, self.layer, 1, go_backwards=not there.backwards)
        else:
            back = self._inner(place, self.backward_layer, 1)
        return Bidirectional(there, back, self.merge_mode)

    def _inner(self, place: Place, layer: dict[str, Any], half: int, **changes: bool) -> OneWay:
        name, config = layer.get("class_name"), layer.get("config")
        if not isinstance(name, str) or name not in _INNER or not isinstance(config, dict):
            raise ValueError(f"its layer is a {str(name)[:80]}, where {', '.join(_INNER)} can be read")
        arguments: Any = _INNER[name].model_validate({"name": self.name, **config})
        if arguments.variable_dtype != self.variable_dtype:
            raise ValueError(f"its layer has another dtype than itself, {str(arguments.dtype)[:80]}")
        states = place.shapes[1:]
        half_states = states[len(states) // 2 :] if half else states[: len(states) // 2]
        # Keras's wrapper has masked steps give zeros wherever sequences are returned.
        changes["zero_output_for_mask"] = arguments.return_sequences
        inner = Place(name, (*place.shapes[:1], *half_states), place.keras, None)
        made: OneWay = arguments.model_copy(update=changes).module(inner)
        cell = config.get("cell")
        made.asks, unread = asked({**(cell.get("config", {}) if isinstance(cell, dict) else {}), **config})
        if unread:
            raise ValueError("; ".join(unread))
        return made


CLASSES: dict[str, type[Arguments]] = {"Bidirectional": BidirectionalArguments}
