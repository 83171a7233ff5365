"""What Keras layers ask of training beyond a gradient: penalties of weights and outputs, and projections of weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from lc_triton.core.parameters import check_writable, check_writes, is_plain, trains, write
from lc_triton.errors import LocalConvError
from lc_triton.keras import constraints, regularizers
from lc_triton.keras.saved.slots import Slot

KINDS: dict[str, Callable[[Any], Any]] = {"regularizer": regularizers.get, "constraint": constraints.get}

# The axis that Keras's norms have unless they are given one.
_AXIS = 0


class Trained(nn.Module):
    """A layer that `regularization_loss` and `apply_constraints` know how to ask.

    `asks` holds Keras's own regularizers and constraints by the names of the arguments they were. They see the arrays
    as Keras has them.
    """

    asks: Mapping[str, Any] = MappingProxyType({})
    _activity: Tensor | None = None

    def slots(self) -> list[Slot]:
        """The arrays that Keras keeps for this layer, in Keras's order."""
        raise NotImplementedError

    def ask(self, asks: Mapping[str, Any]) -> None:
        """Take regularizers and constraints, by the names of the arguments they were."""
        self.asks = asks

    def observed(self, y: Tensor) -> Tensor:
        """The output y, whose penalty is kept until it is asked for."""
        if "activity_regularizer" in self.asks:
            self._activity = regularizers.activity_penalty(self.asks["activity_regularizer"], y)
        return y

    def penalties(self) -> list[Tensor]:
        """The penalties of the weights, and that of the last forward's output over its batch size."""
        found = [] if self._activity is None else [regularizers.kept_penalty(self._activity, self)]
        for slot, regularizer in self._asked("regularizer"):
            found.append(regularizer(slot.to_keras(slot.tensor)))
        return found

    def constrain_(self) -> None:
        """Project the weights that are trained onto their constraints, in place."""
        for slot, constraint in self._asked("constraint"):
            if trains(slot.module, slot.attribute):
                write(slot.module, {slot.attribute: self._projected(slot, constraint)})

    def check_constraints(self) -> None:
        """Refuse a constraint on a weight that is computed by what cannot give its projection, as `constrain_` does."""
        for slot, constraint in self._asked("constraint"):
            if trains(slot.module, slot.attribute) and not is_plain(slot.module, slot.attribute):
                check_writable(slot.module, [slot.attribute])
                check_writes(slot.module, {slot.attribute: self._projected(slot, constraint)})

    def _projected(self, slot: Slot, constraint: Any) -> Tensor:
        projected: Tensor = slot.from_keras(constraints.project(constraint, slot.to_keras(slot.tensor), _AXIS))
        return projected

    def _asked(self, kind: str) -> list[tuple[Slot, Any]]:
        if not self.asks:
            return []
        named = {slot.name.removesuffix("_kernel"): slot for slot in self.slots()}
        return [(slot, self.asks[f"{name}_{kind}"]) for name, slot in named.items() if f"{name}_{kind}" in self.asks]

    def __getstate__(self) -> dict[str, Any]:
        # A copy has run no forward, and a penalty is part of a graph, which cannot be copied.
        return {**self.__dict__, "_activity": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A parametrized layer has a `__getstate__` of torch's, which refuses, and would be copied with its penalty.
        made = memo[id(self)] = object.__new__(type(self))
        made.__dict__.update(copy.deepcopy({**self.__dict__, "_activity": None}, memo))
        return made


def asked(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The regularizers and constraints among a layer's arguments, by their names, and why some cannot be read."""
    found: dict[str, Any] = {}
    unread: list[str] = []
    for name, value in config.items():
        get = KINDS.get(name.rpartition("_")[2])
        if get is not None and value is not None:
            try:
                found[name] = get(value)
            except LocalConvError as error:
                unread.append(f"its {name}: {str(error)[:200]}")
    return found, unread
