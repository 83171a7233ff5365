"""A basic block as the source of a Python function."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tests.emulator.ptx import Instruction, Kernel
from tests.emulator.translate import arithmetic, conversions, memory, tensor_cores, warps
from tests.emulator.translate.operands import Operands

HANDLERS = {
    **arithmetic.HANDLERS,
    **conversions.HANDLERS,
    **memory.HANDLERS,
    **warps.HANDLERS,
    **tensor_cores.HANDLERS,
}


@dataclass(frozen=True)
class End:
    """How a block ends, if the next block does not simply follow.

    Args:
        kind: a branch to `target`, a return, or a barrier of all threads.
        guard: the number of a predicate, and whether it is negated; None if it is for all threads.
    """

    kind: Literal["branch", "return", "barrier"]
    guard: tuple[int, bool] | None = None
    target: int = 0


class Registers(NamedTuple):
    """The registers that an instruction reads and writes, and whether it is a copy."""

    sources: frozenset[int]
    targets: frozenset[int]
    copies: bool


class Translator(Operands):
    """The source of one kernel's blocks.

    Args:
        kernel: its PTX.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.instructions: list[Instruction] = []
        self.registers_of: dict[int, Registers] = {}
        self._watches_registers = "wgmma.mma_async" in kernel.text

    def block(self, number: int, *, masked: bool) -> tuple[str, End | None]:
        """The source of a block's function `block(S, R, m)`, and its end; m is the mask of the threads that run it."""
        self.lines, end = [], None
        for instruction in self.kernel.blocks[number]:
            if instruction.ends_block:
                end = self._end(instruction)
                continue
            self._guard(instruction, masked)
            self.inst = len(self.instructions)
            self.instructions.append(instruction)
            before = len(self.lines)
            handler = HANDLERS.get(instruction.op[0])
            if handler is None:
                raise NotImplementedError(instruction.text)
            try:
                handler(self, instruction)
            except (AssertionError, KeyError, ValueError, IndexError) as error:
                raise NotImplementedError(f"{instruction.text} ({error!r})") from error
            if self._watches_registers and instruction.op[0] != "wgmma":
                self._note_registers(instruction, before)
        body = "\n".join(f"    {line}" for line in self.lines) or "    pass"
        return f"def block(S,R,m):\n{body}\n", end

    def _guard(self, instruction: Instruction, masked: bool) -> None:
        self.guard = "m" if masked else "None"
        if instruction.guard is not None:
            name, negated = instruction.guard
            predicate = f"{'~' if negated else ''}R[{self.register(name)}]"
            self.lines.append(f"q=m&{predicate}" if masked else f"q={predicate}")
            self.guard = "q"

    def _end(self, instruction: Instruction) -> End:
        guard = None
        if instruction.guard is not None:
            guard = self.register(instruction.guard[0]), instruction.guard[1]
        if instruction.op[0] == "bra":
            return End("branch", guard, self.kernel.labels[instruction.args[0]])
        if instruction.op[0] in ("ret", "exit"):
            return End("return", guard)
        if guard is not None or not instruction.args[0].isdigit() or "red" in instruction.op:
            raise NotImplementedError(instruction.text)
        return End("barrier")

    def _note_registers(self, instruction: Instruction, before: int) -> None:
        """Let the machine check the registers of an instruction while asynchronous products use some."""
        written = "\n".join(self.lines[before:])
        target = r"^R\[(\d+)\]="
        self.registers_of[self.inst] = Registers(
            frozenset(map(int, re.findall(r"R\[(\d+)\]", re.sub(target, "", written, flags=re.M)))),
            frozenset(map(int, re.findall(target, written, re.M))),
            instruction.op[0] == "mov" and "{" not in instruction.text,
        )
        self.lines.insert(before, f"if S.registers_in_flight: S.note_register_use({self.inst})")
