"""What each argument means, written apart from the library: functions that parse a value, or raise `Invalid`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lc_triton.core.activations import NAMES

LARGEST = 2**31 - 1


class Invalid(Exception):
    """The value is not valid for the argument."""


def integer(value: object, minimum: int = 1, maximum: int = LARGEST) -> int:
    """Parse an integer."""
    flag = isinstance(value, bool) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool)
    if flag or not hasattr(type(value), "__index__"):
        raise Invalid
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except Exception as error:
        raise Invalid from error
    if not minimum <= number <= maximum:
        raise Invalid
    return number


def is_sequence(value: object) -> bool:
    """Whether a value is a sequence of values."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def integers(value: Any, ndim: int, minimum: int = 1) -> tuple[int, ...]:
    """Parse an integer, or one for each dimension."""
    if not is_sequence(value):
        return (integer(value, minimum),) * ndim
    if len(value) != ndim:
        raise Invalid
    return tuple(integer(v, minimum) for v in value)


def name(value: object, allowed: Sequence[str]) -> str:
    """Parse one of some names."""
    if not isinstance(value, str) or value not in allowed:
        raise Invalid
    return value


def padding_mode(value: object, ndim: int) -> Any:
    """Parse a padding mode: a name for all dimensions, or a tuple of different names."""
    modes = ["zeros", "reflect", "replicate", "circular"]
    if not is_sequence(value):
        return name(value, modes)
    parsed = tuple(name(v, modes) for v in value)  # type: ignore[attr-defined]
    if len(parsed) != ndim:
        raise Invalid
    return parsed[0] if len(set(parsed)) == 1 else parsed


def padding(value: Any, ndim: int) -> Any:
    """Parse padding: a name, or a pair for each dimension."""
    if isinstance(value, str):
        return name(value, ["valid", "same", "keras_same", *["causal"] * (ndim == 1)])
    if is_sequence(value) and len(value) == ndim and all(map(is_sequence, value)):
        pairs = tuple(tuple(integer(v, 0) for v in pair) for pair in value)
        if any(len(pair) != 2 for pair in pairs):
            raise Invalid
        return pairs
    return tuple((n, n) for n in integers(value, ndim, 0))


def boolean(value: object) -> bool:
    """Parse a bool."""
    if not isinstance(value, bool):
        raise Invalid
    return value


def bias(value: object) -> str | None:
    """Parse the kind of a bias."""
    if isinstance(value, bool):
        return "position" if value else None
    return name(value, ["position", "channel"])


def activation(value: Any) -> Any:
    """Return a valid activation unchanged."""
    if value is None or (callable(value) and not isinstance(value, type)):
        return value
    if isinstance(value, str):
        return name(value, NAMES)
    pairs = {"leaky_relu": float, "elu": float, "gelu": str}
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 2
        or not isinstance(value[0], str)
        or value[0] not in pairs
    ):
        raise Invalid
    if value[0] == "gelu":
        name(value[1], ["none", "tanh"])
    elif type(value[1]) not in (int, float) or not 0 <= value[1] <= 1e308:
        raise Invalid
    return value


def dtype(value: object) -> torch.dtype | None:
    """Return a floating-point dtype or None unchanged."""
    known = (None, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if not any(value is dtype_ for dtype_ in known):
        raise Invalid
    return value  # type: ignore[return-value]


def device(value: Any) -> torch.device:
    """Parse a device of this machine."""
    try:
        return torch.empty(0, device=value).device
    except Exception as error:
        raise Invalid from error


def all_arguments(rules: dict[str, Callable[[Any], Any]], arguments: dict[str, Any]) -> dict[str, Any]:
    """Parse all arguments; Invalid has the name of the first that is not valid."""
    parsed = {}
    for argument, rule in rules.items():
        try:
            parsed[argument] = rule(arguments[argument])
        except Invalid as error:
            raise Invalid(argument) from error
    return parsed
