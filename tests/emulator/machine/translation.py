"""A kernel translated into Python functions, one for each basic block, each compiled when it first runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from tests.emulator.machine.order import order_of
from tests.emulator.ptx import Instruction, Kernel
from tests.emulator.translate.block import Translator
from tests.emulator.translate.numbers import NAMES


class Translation:
    """A kernel translated into Python.

    Args:
        kernel: its PTX.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        translator = Translator(kernel)
        numbers = range(len(kernel.blocks))
        whole = [translator.block(number, masked=False) for number in numbers]
        self.ends = [end for _, end in whole]
        self._whole: list[Any] = [source for source, _ in whole]
        self._masked: list[Any] = [translator.block(number, masked=True)[0] for number in numbers]
        self.classes = [Counter(class_of(i) for i in block) for block in kernel.blocks]
        self.rank = np.array([*order_of(self._successors()), len(self.ends)])
        self.instructions = translator.instructions
        self.registers_of = translator.registers_of
        self.register_names = {number: name for name, number in translator.register_numbers.items()}
        self._scope = {**NAMES, "K": translator.constants}
        self.garbage = _garbage([translator.size_of(name) for name in translator.register_numbers])

    def function(self, number: int, *, masked: bool) -> Any:
        """The function of a block: for all threads, or for those of a mask."""
        functions = self._masked if masked else self._whole
        if isinstance(functions[number], str):
            scope = dict(self._scope)
            exec(compile(functions[number], f"<block {number}>", "exec"), scope)
            functions[number] = scope["block"]
        return functions[number]

    def _successors(self) -> list[list[int]]:
        found = []
        for number, end in enumerate(self.ends):
            following = [number + 1] if number + 1 < len(self.ends) else []
            if end is not None and end.kind == "branch":
                found.append([end.target] if end.guard is None else [end.target, *following])
            elif end is not None and end.kind == "return" and end.guard is None:
                found.append([])
            else:
                found.append(following)
        return found


def _garbage(sizes: list[int]) -> list[Any]:
    """The contents of registers that nothing wrote: compilers read some of them, and mask the result."""
    rng = np.random.default_rng(3)
    return [
        np.array([rng.integers(0, 2) == 1])
        if size == 0
        else rng.integers(0, 256, size, dtype=np.uint8).view(f"u{size}")
        for size in sizes
    ]


def class_of(instruction: Instruction) -> str:
    """The name under which an instruction is counted."""
    op = instruction.op
    if op[0] in ("ld", "st"):
        return f"{op[0]}.{next((p for p in op if p in ('global', 'shared', 'param')), '')}"
    if op[0] == "cp":
        return "cp.async.bulk" if "bulk" in op else "cp.async" if op[2] in ("cg", "ca") else "cp.async sync"
    if op[0] == "wgmma":
        return f"wgmma.{op[1]}"
    if op[0] in ("mma", "ldmatrix", "stmatrix", "bar", "shfl", "redux", "mbarrier", "fence", "bra", "mov"):
        return op[0]
    return "float" if op[-1] in ("f32", "f64", "f16", "bf16") else "integer"
