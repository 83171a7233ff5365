"""What the fused optimizers are given: their hyperparameters, and the parameters that they update."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.autograd.graph import increment_version
from torch.nn.parameter import is_lazy

from lc_triton.errors import ArgumentTypeError, ArgumentValueError

# Where torch has fused updates of all parameters of a group.
FUSED_DEVICES = "cpu", "cuda", "mps", "xpu"
# Options of a group that torch's classes do not have, with their defaults.
PENALTIES: dict[str, Any] = {"l1": 0.0, "l2": 0.0, "non_neg": False}
# Hyperparameters that every saved state of an optimizer has; torch itself adds younger ones.
REQUIRED = {"lr", "betas", "eps", "weight_decay", "momentum", "dampening"}


def number(value: Any) -> float:
    """A hyperparameter, which torch lets be a tensor."""
    return float(value)


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float; a bool is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_hyperparameters(hyperparameters: Mapping[str, Any]) -> None:
    """Refuse values of wrong types; torch's class refuses those out of range, where it reads them as numbers."""
    for name, value in hyperparameters.items():
        if name in ("maximize", "nesterov"):
            is_right, allowed = isinstance(value, bool), "True or False"
        elif name == "betas":
            is_right = isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_scalar, value))
            allowed = "two numbers"
        else:
            is_right, allowed = _is_scalar(value), "a number"
        if not is_right:
            raise ArgumentTypeError(name=name, value=value, allowed=allowed)


def check_penalties(group: Mapping[str, Any]) -> None:
    """Refuse penalties of a group that are no numbers from 0 on, and a bound that is no bool."""
    for name in ("l1", "l2"):
        value = group.get(name, 0.0)
        if not is_number(value) or not 0 <= value < math.inf:
            raise ArgumentValueError(name=name, value=value, allowed="a finite number >= 0")
    if not isinstance(group.get("non_neg", False), bool):
        raise ArgumentTypeError(name="non_neg", value=group["non_neg"], allowed="True or False")


def _is_scalar(value: Any) -> bool:
    return is_number(value) or (isinstance(value, Tensor) and value.numel() == 1)


def groups_of(params: Any) -> list[Any]:
    """Parameters, or groups of them, as a list that may be read twice: by us and by torch."""
    if isinstance(params, (Tensor, str, Mapping)) or not isinstance(params, Iterable):
        allowed = "a module, or an iterable of parameters or of groups of them"
        raise ArgumentTypeError(name="model_or_params", value=params, allowed=allowed)
    groups = [{**entry} if isinstance(entry, dict) else entry for entry in params]
    for group in groups:
        if not isinstance(group, dict):
            continue
        if "params" not in group:
            allowed = 'an iterable of parameters, or of dictionaries with an entry "params"'
            raise ArgumentValueError(name="model_or_params", value=group, allowed=allowed)
        if isinstance(group["params"], Iterator):
            group["params"] = list(group["params"])
    return groups


def check_state(state_dict: Any, required: set[str]) -> None:
    """Refuse what is no state of an optimizer with these hyperparameters."""
    allowed = 'the state_dict() of an optimizer: a dictionary with "state" and "param_groups"'
    if not isinstance(state_dict, Mapping):
        raise ArgumentTypeError(name="state_dict", value=state_dict, allowed=allowed)
    if not {"state", "param_groups"} <= state_dict.keys():
        raise ArgumentValueError(name="state_dict", value=sorted(map(str, state_dict)), allowed=allowed)
    for group in state_dict["param_groups"]:
        if not required <= group.keys():
            allowed = f"of an optimizer whose groups have {', '.join(sorted(required))}"
            raise ArgumentValueError(name="state_dict", value=sorted(map(str, group)), allowed=allowed)


def can_fuse(params: list[Any]) -> bool | None:
    """Whether torch's fused update takes all of the parameters; None lets torch choose another."""
    flat: list[Any] = []
    for entry in params:
        if isinstance(entry, dict):
            flat += [entry["params"]] if isinstance(entry["params"], Tensor) else list(entry["params"])
        else:
            flat.append(entry)
    tensors = [entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry for entry in flat]
    takes_all = all(
        (type(t) in (Tensor, nn.Parameter) or is_lazy(t)) and t.is_floating_point() and t.device.type in FUSED_DEVICES
        for t in tensors
    )
    return True if takes_all else None


def overlapping(params: Iterable[Tensor]) -> set[int]:
    """The identities of the parameters whose memory is another one's too, as after `a.weight.data = b.weight.data`."""
    spans = []
    for p in params:
        if type(p) in (Tensor, nn.Parameter) and p.layout is torch.strided and p.numel() and p.data_ptr():
            length = sum((size - 1) * step for size, step in zip(p.shape, p.stride(), strict=True)) + 1
            spans.append((str(p.device), p.data_ptr(), p.data_ptr() + length * p.element_size(), id(p)))
    found: set[int] = set()
    furthest: tuple[str, int, int] = "", 0, 0  # device, end and identity of what reaches furthest
    for device, begin, end, key in sorted(spans):
        if device == furthest[0] and begin < furthest[1]:
            found |= {key, furthest[2]}
        if device != furthest[0] or end > furthest[1]:
            furthest = device, end, key
    return found


def sharing_versions(params: Iterable[Tensor]) -> set[int]:
    """The identities of the parameters that autograd takes for changed where another one is changed.

    Parameters that were made of views of one tensor count their changes together, even where `module.to` has since
    given them memory of their own. The counters are incremented here, and then restored.
    """
    plain = [p for p in params if type(p) in (Tensor, nn.Parameter) and not p.is_inference()]
    before = [p._version for p in plain]
    with _unsafe_preserve_version_counter(tuple(plain)):
        for p in plain:
            increment_version(p)
        return {id(p) for p, version in zip(plain, before, strict=True) if p._version > version + 1}
