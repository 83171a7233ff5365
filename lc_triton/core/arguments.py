"""Checks of arguments that are integers or names."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from typing import Any, SupportsIndex, TypeAlias, TypeGuard

from lc_triton.errors import ArgumentTypeError, ArgumentValueError, LengthError, UnknownNameError

Ints: TypeAlias = int | Sequence[int]

# The largest size, stride and the like: the kernels keep them in 32 bits.
LARGEST = 2**31 - 1


def as_index(value: object) -> int | None:
    """The int that a value stands for; None if it is no integer. Bools, torch's included, are no integers."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    if str(getattr(value, "dtype", "")) == "torch.bool":
        return None
    try:
        return operator.index(value)
    except Exception:  # arrays and tensors that are no single integer raise errors of different types
        return None


def check_int(name: str, value: object, minimum: int, maximum: int = LARGEST) -> int:
    """`value` as an int of at least `minimum`; bools and floats are not integers."""
    number = value if type(value) is int else as_index(value)
    if number is None:
        raise ArgumentTypeError(name=name, value=value, allowed=f"an integer >= {minimum}")
    if number < minimum:
        raise ArgumentValueError(name=name, value=value, allowed=f"an integer >= {minimum}")
    if number > maximum:
        raise ArgumentValueError(name=name, value=value, allowed=f"an integer >= {minimum} and <= {maximum}")
    return number


def several(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether an argument is a sequence of values; text and bytes are not."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def int_tuple(name: str, value: object, ndim: int, minimum: int = 1) -> tuple[int, ...]:
    """One int for each of `ndim` dimensions, from an int or a sequence of them."""
    if several(value):
        if len(value) != ndim:
            raise LengthError(name=name, value=value, ndim=ndim, allowed=f"an int or {ndim} ints")
        return tuple(check_int(name, v, minimum) for v in value)
    return (check_int(name, value, minimum),) * ndim


def check_name(name: str, value: object, allowed: Collection[str]) -> str:
    """`value` if it is one of the `allowed` strings."""
    if not isinstance(value, str):
        raise ArgumentTypeError(name=name, value=value, allowed=f"one of {', '.join(allowed)}")
    if value not in allowed:
        raise UnknownNameError.of(name, value, allowed)
    return value
