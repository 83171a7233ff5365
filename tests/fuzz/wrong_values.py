"""Values that are wrong for most arguments, and arguments of which some are replaced by such values."""

from __future__ import annotations

import math
from collections import UserString
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from tests.fuzz.parse import LARGEST


class Index:
    """An object whose `__index__` returns a value or raises an error."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __index__(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    def __repr__(self) -> str:
        return f"Index({self.value!r})"


class Unequal:
    """An object whose comparison raises an error."""

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
huge_values = st.sampled_from(HUGE)


@st.composite
def replace_some(draw: Any, right: dict[str, Any], at_most: int = 2) -> tuple[dict[str, Any], set[str], bool]:
    """Arguments of which some are replaced, the names of these, and whether one is too large to allocate anything."""
    names = draw(st.lists(st.sampled_from(sorted(right)), max_size=at_most, unique=True))
    large = bool(names) and draw(st.integers(0, 4)) == 4
    wrong = {name: draw(values) for name in names}
    if large:
        wrong[names[0]] = draw(huge_values)
    return right | wrong, set(names), large
