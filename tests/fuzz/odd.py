"""Values that no argument of ours takes, or takes for something else; and what an argument means, told anew here."""

from __future__ import annotations

import math
import operator
from collections import UserString
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from lc_triton.core.activations import NAMES

LARGEST = 2**31 - 1


class Index:
    """An integer by `__index__`, or whatever happens there instead."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __index__(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    def __repr__(self) -> str:
        return f"Index({self.value!r})"


class Unequal:
    """Something that cannot be compared."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not to be compared")

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return "Unequal()"


LOOP: list[Any] = [1]
LOOP.append(LOOP)


def identity(z: Any) -> Any:
    """A callable."""
    return z


NUMBERS = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 1.0, 2.5, 0.0, -0.5, math.nan, math.inf, -math.inf, 1e300, 2j),
    *(Fraction(2), np.int64(2), np.int8(1), np.uint8(3), np.float64(2.0), np.float32(0.5), np.bool_(True)),
    *(np.array(2), np.array([2]), np.array([1, 2]), np.array(True), np.array(2.0), np.array([]), np.array("same")),
    *(torch.tensor(2), torch.tensor([2]), torch.tensor([1, 2]), torch.tensor(2.0), torch.tensor(True)),
    *(torch.tensor(2, device="meta"), torch.empty(0), torch.ones(2, 2)),
    *(Index(2), Index(-1), Index(2.0), Index(TypeError("no")), Index(ZeroDivisionError("no")), Unequal()),
]
OTHERS = [
    *("", "2", "same", "SAME", "valid", "causal", "zeros", "reflect", "position", "channels_last", "relu", "float32"),
    *("cuda", "meta", "nowhere", "cpu:99", "l2", "ones", "\udcff", UserString("same"), UserString("33"), "x" * 10_000),
    *(b"", b"\x01", b"\x02\x02", bytearray(b"\x02\x02"), memoryview(b"\x02\x02"), [b"\x01\x02"], [b"\x01\x02"] * 2),
    *([], (), [1], (2,), [1, 1], (2, 1), [1, 1, 1], [1] * 50, [1, True], [1.0, 1], ["1", "1"], [None, 1], [[]]),
    *([(0, 0)], [(1, 0)] * 2, [[1, 1]] * 3, [(1,)], [(1, 2, 3)] * 2, [1, (1, 1)], [(0, True)], ["ab"], [np.int64(1)]),
    *([torch.tensor(1)], [torch.tensor(1)] * 2, [Index(1)], [Index(1)] * 2, range(1, 2), range(1, 3), {}, {1: 1}),
    *({1}, {"class_name": "L2"}, {"class_name": "Ones", "config": {}}, {"class_name": 1}, {"config": {}}),
    *({"class_name": "Zeros", "config": {1: 1}}, {"class_name": "Zeros", "config": np.array([1, 2])}),
    *({"class_name": "Constant", "config": torch.ones(2)}, {"class_name": "Constant", "config": {"value": 1e300}}),
    *({"class_name": "Constant", "config": {"value": 10**400}}, {"class_name": []}, LOOP, iter(()), object()),
    *(int, torch.nn.ReLU, torch.nn.ReLU(), identity, torch.float32, torch.float64, torch.int8, torch.complex64, float),
    *(torch.device("cpu"), torch.device("meta"), slice(2), ...),
    *(("elu", 0.5), ("elu", -1.0), ("elu", 10**400), ("elu", True), ("elu", torch.tensor(1.0)), ["leaky_relu", 0]),
    *(["zeros"], ("zeros", "circular"), ["replicate"] * 2, ("zeros", "reflect", "circular"), ["circular", None]),
    *(("gelu", "tanh"), ("gelu", np.array(["none", "tanh"])), ("relu", 1), ("tahn", 1.0), (1, 2), ("elu",)),
]
HUGE = [LARGEST, 2**31, 2**40, 2**62, 2**63, 2**64, 10**30, -(2**70), 10**400, Index(2**70), [2**70], [2**62] * 2]

values = st.sampled_from(NUMBERS) | st.sampled_from(OTHERS)
huge = st.sampled_from(HUGE)


@st.composite
def mixed(draw: Any, right: dict[str, Any], at_most: int = 2) -> tuple[dict[str, Any], set[str], bool]:
    """Right arguments with up to so many replaced, which ones, and whether one is so large that nothing can be made."""
    names = draw(st.lists(st.sampled_from(sorted(right)), max_size=at_most, unique=True))
    large = bool(names) and draw(st.integers(0, 4)) == 4
    wrong = {name: draw(values) for name in names}
    if large:
        wrong[names[0]] = draw(huge)
    return right | wrong, set(names), large


class Refused(Exception):
    """The value means nothing."""


def integer(value: object, minimum: int = 1, maximum: int = LARGEST) -> int:
    """What an integer argument means."""
    flag = isinstance(value, bool) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool)
    if flag or not hasattr(type(value), "__index__"):
        raise Refused
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except Exception as error:
        raise Refused from error
    if not minimum <= number <= maximum:
        raise Refused
    return number


def sequence(value: object) -> bool:
    """Whether a value is several."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def integers(value: Any, ndim: int, minimum: int = 1) -> tuple[int, ...]:
    """What an argument with an integer a dimension means."""
    if not sequence(value):
        return (integer(value, minimum),) * ndim
    if len(value) != ndim:
        raise Refused
    return tuple(integer(v, minimum) for v in value)


def name(value: object, allowed: Sequence[str]) -> str:
    """What an argument that is one of some names means."""
    if not isinstance(value, str) or value not in allowed:
        raise Refused
    return value


def padding_mode(value: object, ndim: int) -> Any:
    """What a padding mode means: one name, or one a dimension that are not all the same."""
    modes = ["zeros", "reflect", "replicate", "circular"]
    if not sequence(value):
        return name(value, modes)
    found = tuple(name(v, modes) for v in value)  # type: ignore[attr-defined]
    if len(found) != ndim:
        raise Refused
    return found[0] if len(set(found)) == 1 else found


def padding(value: Any, ndim: int) -> Any:
    """What padding means: a name, or a pair a dimension."""
    if isinstance(value, str):
        return name(value, ["valid", "same", "keras_same", *["causal"] * (ndim == 1)])
    if sequence(value) and len(value) == ndim and all(map(sequence, value)):
        pairs = tuple(tuple(integer(v, 0) for v in pair) for pair in value)
        if any(len(pair) != 2 for pair in pairs):
            raise Refused
        return pairs
    return tuple((n, n) for n in integers(value, ndim, 0))


def boolean(value: object) -> bool:
    """What a switch means."""
    if not isinstance(value, bool):
        raise Refused
    return value


def bias(value: object) -> str | None:
    """What the kind of a bias means."""
    if isinstance(value, bool):
        return "position" if value else None
    return name(value, ["position", "channel"])


def activation(value: Any) -> Any:
    """An activation that means something, as it is."""
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
        raise Refused
    if value[0] == "gelu":
        name(value[1], ["none", "tanh"])
    elif type(value[1]) not in (int, float) or not 0 <= value[1] <= 1e308:
        raise Refused
    return value


def floating(value: object) -> torch.dtype | None:
    """What a dtype means."""
    known = (None, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if not any(value is dtype for dtype in known):
        raise Refused
    return value  # type: ignore[return-value]


def device(value: Any) -> torch.device:
    """What a device means on this machine."""
    try:
        return torch.empty(0, device=value).device
    except Exception as error:
        raise Refused from error


def meant(rules: dict[str, Callable[[Any], Any]], arguments: dict[str, Any]) -> dict[str, Any]:
    """What all arguments mean; Refused names the first that means nothing."""
    found = {}
    for argument, rule in rules.items():
        try:
            found[argument] = rule(arguments[argument])
        except Refused as error:
            raise Refused(argument) from error
    return found
