"""Operands of instructions as Python expressions: registers, constants, parameters, addresses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tests.emulator.layout import PARAM_BASE, SHARED_BASE
from tests.emulator.ptx import Kernel
from tests.emulator.translate.types import NUMPY_TYPES, REGISTER_BYTES

SPECIAL = re.compile(r"^%(tid|ntid|ctaid|nctaid|laneid|warpid|nwarpid|smid|clock|globaltimer)")


class Operands:
    """The registers and constants of a kernel, and the lines of the block that is being translated.

    In the lines, R is the list of registers, K that of constants, S the machine.

    Args:
        kernel: its PTX.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.register_numbers: dict[str, int] = {}
        self.constants: list[Any] = []
        self._constant_numbers: dict[tuple[str, str], int] = {}
        self._params = {p.name: p for p in kernel.params}
        self.lines: list[str] = []
        self.guard = "None"  # the expression of the threads that execute the instruction: all, a mask, a predicate
        self.inst = 0  # the number of the instruction

    def register(self, name: str) -> int:
        """Its place in R."""
        return self.register_numbers.setdefault(name, len(self.register_numbers))

    def size_of(self, name: str) -> int:
        """A register's bytes; 0 of a predicate."""
        registers = self.kernel.registers
        if name in registers:
            return REGISTER_BYTES[registers[name]]
        prefix = re.match(r"%[a-zA-Z_]+", name)
        assert prefix, name
        return REGISTER_BYTES[registers[prefix[0]]]

    def is_register(self, text: str) -> bool:
        """Whether an operand is a register, but not one that the hardware writes."""
        if text in self.kernel.registers:
            return True
        match = None if SPECIAL.match(text) else re.match(r"(%[a-zA-Z_]+)\d+$", text)
        return match is not None and match[1] in self.kernel.registers

    def constant(self, value: Any, kind: str) -> str:
        """An expression of a number in one of numpy's types."""
        key = (repr(value), kind)
        if key not in self._constant_numbers:
            if kind == "b":
                array = np.array([bool(value)])
            elif kind in ("f4", "f8", "f2", "bf"):
                array = np.array([value], dtype="f4" if kind == "bf" else kind)
            else:
                bits = 8 * np.dtype(kind).itemsize
                array = np.array([value & ((1 << bits) - 1)], dtype=f"u{bits // 8}").view(kind)
            self._constant_numbers[key] = len(self.constants)
            self.constants.append(array)
        return f"K[{self._constant_numbers[key]}]"

    def bits(self, value: int, unsigned: str, kind: str) -> str:
        """An expression of the number that has these bits."""
        self.constants.append(np.array([value], dtype=unsigned).view(kind))
        return f"K[{len(self.constants) - 1}]"

    def literal(self, text: str, kind: str) -> str:
        """An expression of a number that is written in the PTX."""
        if text.startswith("0f"):
            return (
                self.bits(int(text[2:], 16), "u4", "f4")
                if kind in ("f4", "bf")
                else self.constant(int(text[2:], 16), kind)
            )
        if text.startswith("0d"):
            return self.bits(int(text[2:], 16), "u8", "f8") if kind == "f8" else self.constant(int(text[2:], 16), kind)
        if text in ("true", "false"):
            return self.constant(text == "true", "b")
        value = int(text.rstrip("U"), 0)
        if kind == "f4":
            return self.bits(value & 0xFFFFFFFF, "u4", "f4")
        if kind == "f2":
            return self.bits(value & 0xFFFF, "u2", "f2")
        if kind == "bf":
            return self.bits((value & 0xFFFF) << 16, "u4", "f4")
        return self.constant(value, kind)

    def read(self, text: str, type_name: str) -> str:
        """An expression of an operand as numbers of a type (bf16: as float32)."""
        kind, size = NUMPY_TYPES[type_name]
        if self.is_register(text):
            place, held = f"R[{self.register(text)}]", self.size_of(text)
            if held == 0 or kind == "b":
                return place
            base = place if held == size else f"{place}.astype(u{size})"
            if kind == "bf":
                return f"bf16_to_float({base})"
            return base if kind.startswith("u") else f"{base}.view({kind})"
        if SPECIAL.match(text):
            return f"S.specials[{text!r}]" + ("" if size in (0, 4) else f".astype({kind})")
        name, _, offset = text.partition("+")
        if name == "global_smem":
            return self.constant(SHARED_BASE + int(offset or 0), kind)
        if text in self._params:
            return self.constant(PARAM_BASE + self._params[text].offset, kind)
        return self.literal(text, kind)

    def write(self, register: str, value: str, type_name: str) -> None:
        """Assign an expression of numbers of a type to a register, for the threads of the guard."""
        if register == "_":
            return
        kind, size = NUMPY_TYPES[type_name]
        number, held = self.register(register), self.size_of(register)
        if kind == "bf" and held:
            value = f"float_to_bf16({value})"
        elif held == size and held and not kind.startswith("u"):
            value = f"({value}).view(u{size})"
        elif held and held != size:
            value = f"({value}).astype(i{held}).view(u{held})" if kind.startswith("i") else f"({value}).astype(u{held})"
        self.lines.append(
            f"R[{number}]={value}"
            if self.guard == "None"
            else f"R[{number}]=np.where({self.guard},{value},R[{number}])"
        )

    def address(self, text: str, *, wide: bool) -> str:
        """An expression of an address in brackets, in 64 bits or, of shared memory, in 32."""
        match = re.match(r"^([%\w$]+)\s*(?:([+-])\s*(-?\d+))?$", text.strip()[1:-1].strip())
        assert match, text
        offset = int(match[3] or 0) * (-1 if match[2] == "-" else 1)
        type_name = "u64" if wide else "u32"
        kind = NUMPY_TYPES[type_name][0]
        if match[1] == "global_smem":
            return self.constant(SHARED_BASE + offset, kind)
        base = self.read(match[1], type_name)
        return base if offset == 0 else f"({base}+{self.constant(offset, kind)})"

    def param(self, text: str) -> int:
        """The offset of a parameter in brackets."""
        match = re.match(r"\[(\w+)(?:\+(\d+))?\]", text)
        assert match, text
        return self._params[match[1]].offset + int(match[2] or 0)

    def tuple_of(self, registers: list[str], type_name: str) -> str:
        """An expression of several operands."""
        return "(" + "".join(f"{self.read(r, type_name)}," for r in registers) + ")"

    def call(self, method: str, *args: Any) -> str:
        """An expression of a call of one of the machine's methods for the threads of the guard."""
        return f"S.{method}({self.guard},{','.join(map(str, args))},{self.inst})"


def vector(text: str) -> list[str]:
    """The operands in braces, or the single operand without braces."""
    text = text.strip()
    return [t.strip() for t in text[1:-1].split(",")] if text.startswith("{") else [text]
