"""RNN: a recurrent layer of cells, one or several of them on top of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lc_triton.keras.saved.arguments import Arguments, Place
from lc_triton.keras.saved.names import numbered
from lc_triton.keras.saved.recurrent import LoopArguments, Recurrent, RecurrentArguments
from lc_triton.keras.saved.slots import Slot
from lc_triton.keras.saved.training import Trained, asked

Tensors = tuple[Tensor, ...]
Mask = Tensor | None

CELLS = ("SimpleRNNCell", "LSTMCell", "GRUCell")


class Stack(Trained):
    """Cells on top of each other: each step of one is the input of the next. `keras.layers.StackedRNNCells`.

    Each cell is a layer that returns its sequences and its states, and has the name of its class in Keras.
    """

    takes_mask = True

    def __init__(
        self,
        cells: Sequence[tuple[str, Recurrent]],
        *,
        sequences: bool,
        state: bool,
        backwards: bool,
        time_major: bool,
    ) -> None:
        super().__init__()
        self.places = numbered([name for name, _ in cells])
        self.layers = nn.ModuleList([layer for _, layer in cells])
        self.sequences, self.state, self.backwards, self.time_major = sequences, state, backwards, time_major

    def slots(self) -> list[Slot]:
        """See the base."""
        return [
            replace(slot, part=f"cell/cells/{place}")
            for place, layer in zip(self.places, self._cells(), strict=True)
            for slot in layer.slots()
        ]

    def forward(self, x: Tensor, *initial: Tensor, mask: Mask | tuple[Mask, ...] = None) -> Tensor | Tensors:
        """The outputs for x `(batch, steps, channels)`: see `Recurrent`; states are those of all cells in turn."""
        x = x.transpose(0, 1) if self.time_major else x
        mask = mask[0] if isinstance(mask, tuple) else mask
        if self.backwards:
            x, mask = x.flip(1), None if mask is None else mask.flip(1)
        after: list[Tensor] = []
        for layer in self._cells():
            own, initial = initial[: layer.states], initial[layer.states :]
            x, *states = layer(x, *own, mask=mask)
            after += states
        y = x if self.sequences else x[:, -1]
        y = self.observed(y.transpose(0, 1) if self.time_major and self.sequences else y)
        return (y, *after) if self.state else y

    def output_mask(self, inputs: Tensors, masks: tuple[Mask, ...]) -> Mask:
        """The mask of the outputs: that of the steps, where all are returned."""
        return masks[0] if self.sequences else None

    def _cells(self) -> list[Recurrent]:
        return [layer for layer in self.layers if isinstance(layer, Recurrent)]

    def extra_repr(self) -> str:
        """The arguments."""
        return f"sequences={self.sequences}, backwards={self.backwards}"


class CellArguments(LoopArguments):
    """`RNN`, of cells that have a layer of their own."""

    cell: dict[str, Any]

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        config = self.cell.get("config")
        if self.cell.get("class_name") != "StackedRNNCells":
            own = {name: getattr(self, name) for name in _OF_LOOP}
            return self._layer(place, self.cell, place.shapes, own)
        cells = config.get("cells") if isinstance(config, dict) else None
        if not isinstance(cells, list) or not cells or not all(isinstance(cell, dict) for cell in cells):
            raise ValueError("its StackedRNNCells hold no cells")
        layers: list[tuple[str, Recurrent]] = []
        shape, states = place.shapes[:1], place.shapes[1:]
        inner = {"return_sequences": True, "return_state": True, "stateful": self.stateful}
        for i, cell in enumerate(cells):
            own = {**inner, "zero_output_for_mask": self.zero_output_for_mask and i == len(cells) - 1}
            count = 2 if cell.get("class_name") == "LSTMCell" else 1
            layer = self._layer(place, cell, (*shape, *states[:count]), own)
            layer.asks, unread = asked(cell["config"])
            if unread:
                raise ValueError("; ".join(unread))
            layers.append((str(cell["class_name"]), layer))
            shape, states = ((*shape[0][:-1], layer.units),), states[count:]
        if states:
            raise ValueError(f"it is given {len(states)} state(s) more than its cells have")
        return Stack(
            layers,
            sequences=self.return_sequences,
            state=self.return_state,
            backwards=self.go_backwards,
            time_major=self.time_major,
        )

    def _layer(
        self, place: Place, cell: dict[str, Any], shapes: tuple[tuple[int, ...], ...], given: dict[str, Any]
    ) -> Recurrent:
        name, config = str(cell.get("class_name")), cell.get("config")
        if name not in CELLS or not isinstance(config, dict):
            raise ValueError(f"its cell is a {name[:80]}, where {', '.join(CELLS)} can be read")
        arguments = RecurrentArguments.model_validate(
            {**config, **given, "name": self.name, "trainable": self.trainable}
        )
        return arguments.recurrent(Place(name.removesuffix("Cell"), shapes, place.keras))


_OF_LOOP = LoopArguments.model_fields.keys() - Arguments.model_fields.keys()

CLASSES: dict[str, type[Arguments]] = {"RNN": CellArguments}
