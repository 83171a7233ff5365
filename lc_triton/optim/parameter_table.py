"""The parameters of a fused optimizer: the name and the group of each, and the slots of those that may be weights."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping, Set
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lc_triton.core import fused
from lc_triton.layers._planned import PlannedLayer
from lc_triton.optim.arguments import overlapping, sharing_versions
from lc_triton.optim.slot import Owner, WeightSlot

# The fewest dimensions of the weight of a layer with windows, and of LocalLinear's, which is updated on a GPU alone.
LEAST_NDIM, LEAST_NDIM_OF_LINEAR = 4, 3


class GroupOwner(Owner, Protocol):
    """An optimizer, with its groups of parameters, which users may edit."""

    param_groups: list[dict[str, Any]]


class ParameterTable:
    """What an optimizer knows of its parameters, by their identities.

    Args:
        names: that warnings call them by; groups that have names replace these.
        known: those that are known to be weights of this library's layers.
    """

    def __init__(self, names: Mapping[int, str], known: Set[int]) -> None:
        self.names, self._known = dict(names), known
        self.slots: dict[int, WeightSlot] = {}
        self.overlapping: set[int] = set()  # those whose memory is another's too
        self.sharing_versions: set[int] = set()  # those that are changed, to autograd, where another one is
        self._places: dict[int, tuple[int, int]] = {}  # number of the group, and index in it
        self._has_collected = False

    @classmethod
    def of(cls, model_or_params: Any) -> ParameterTable:
        """The table of an optimizer that was not given its groups yet, which only a module has names for."""
        if not isinstance(model_or_params, nn.Module):
            return cls({}, set())
        names = {id(p): name for name, p in model_or_params.named_parameters()}
        return cls(names, weights_of_layers(model_or_params))

    def register(self, owner: GroupOwner) -> None:
        """Give each parameter that may be a layer's weight its slot, and find the places of all."""
        self._places = {}
        for number, group in enumerate(owner.param_groups):
            names = group.get("param_names", [])
            for index, parameter in enumerate(group["params"]):
                key = id(parameter)
                self._places[key] = number, index
                if names:
                    self.names[key] = names[index]
                if key not in self.slots and (is_lazy(parameter) or parameter.ndim >= LEAST_NDIM_OF_LINEAR):
                    name = self.names.get(key, f"parameter {index} of group {number}")
                    known = key in self._known and (is_lazy(parameter) or parameter.ndim >= LEAST_NDIM)
                    self.slots[key] = slot = WeightSlot(parameter, name, owner, known)
                    earlier = fused.slot_of(parameter)
                    if isinstance(earlier, WeightSlot):
                        slot.others = [*earlier.others, weakref.ref(earlier)]
                    fused.register(parameter, slot)
        parameters = [p for group in owner.param_groups for p in group["params"]]
        self.overlapping, self.sharing_versions = overlapping(parameters), sharing_versions(parameters)
        for key in self.slots.keys() - self._places.keys():
            del self.slots[key]

    def group_of(self, parameter: Tensor, owner: GroupOwner) -> dict[str, Any] | None:
        """The group that a parameter is in, looked up anew where the groups were edited; None if it is in none."""
        for _ in range(2):
            number, index = self._places.get(id(parameter), (-1, -1))
            if 0 <= number < len(owner.param_groups):
                group = owner.param_groups[number]
                if index < len(group["params"]) and group["params"][index] is parameter:
                    return group
            if number >= 0:
                self.register(owner)
        return None

    def is_weight(self, parameter: Tensor) -> bool:
        """Whether a parameter is known to be the weight of a layer of this library."""
        slot = self.slots.get(id(parameter))
        return slot is not None and slot.known

    def has_rival(self, slot: WeightSlot) -> bool:
        """Whether an earlier optimizer of this library that updates the weight is still alive."""
        if not slot.others or all(other() is None for other in slot.others):
            return False
        if not self._has_collected:  # a scheduler and its optimizer refer to each other
            self._has_collected = True
            gc.collect()
        slot.others = [other for other in slot.others if other() is not None]
        return bool(slot.others)


def weights_of_layers(model: nn.Module) -> set[int]:
    """The identities of the parameters of this library's layers in a module, biases left out."""
    layers = [module for module in model.modules() if isinstance(module, PlannedLayer)]
    return {id(p) for layer in layers for name, p in layer.named_parameters() if "bias" not in name}
