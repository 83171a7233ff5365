"""Read what `nvdisasm -hex --print-line-info --print-code` prints: instructions and their control bits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# A line of source as (file name, line).
Place = tuple[str, int]

_INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,6})\*/\s+(?:\{\s*)?(@!?U?P[T\d]+)?\s*([A-Za-z0-9_.]+)\s*(.*?)\s*;?\s*\}?"
    r"\s*/\* 0x([0-9a-f]{16}) \*/"
)
_UPPER_BITS = re.compile(r"^\s+/\* 0x([0-9a-f]{16}) \*/")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_PLACE = re.compile(r'//## File "([^"]*)", line (\d+)')
# The control bits begin at bit 105 of an instruction's 128.
_CONTROL_SHIFT = 105 - 64
_NO_BARRIER = 7


@dataclass(slots=True)
class Instruction:
    """One instruction.

    Args:
        predicate: such as "@!P0"; None for an instruction that is always executed.
        opcode: with its suffixes, such as "LDGSTS.E.BYPASS.128".
        operands: the rest, as text.
        place: the line of source that it comes from.
        stall: cycles before the warp's next instruction.
        sets_at_end: the scoreboard that is set until its result is there, or None.
        sets_at_read: the scoreboard that is set until its operands were read, or None.
        waits_for: the scoreboards that must be clear before it.
        target: of a branch, the index of the instruction that follows if it is taken.
    """

    predicate: str | None
    opcode: str
    operands: str
    place: Place
    stall: int = 0
    sets_at_end: int | None = None
    sets_at_read: int | None = None
    waits_for: tuple[int, ...] = ()
    target: int | None = None


def parse(text: str) -> list[Instruction]:
    """The instructions of a kernel, in the order of their addresses."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    targets: list[tuple[Instruction, str]] = []
    place: Place = ("", 0)
    open_instruction: Instruction | None = None
    for line in text.splitlines():
        if match := _PLACE.search(line):
            place = Path(match[1]).name, int(match[2])
        elif match := _LABEL.match(line):
            labels[match[1]] = len(found)
        elif match := _INSTRUCTION.match(line):
            open_instruction = Instruction(match[2], match[3], match[4].rstrip(" ;"), place)
            if target := re.search(r"\((\.L_x_\d+)\)", open_instruction.operands):
                targets.append((open_instruction, target[1]))
            found.append(open_instruction)
        elif open_instruction is not None and (match := _UPPER_BITS.match(line)):
            _set_control(open_instruction, int(match[1], 16) >> _CONTROL_SHIFT)
            open_instruction = None
    for instruction, label in targets:
        instruction.target = labels.get(label)
    return found


def _set_control(instruction: Instruction, bits: int) -> None:
    at_end, at_read = bits >> 5 & 7, bits >> 8 & 7
    instruction.stall = bits & 15
    instruction.sets_at_end = None if at_end == _NO_BARRIER else at_end
    instruction.sets_at_read = None if at_read == _NO_BARRIER else at_read
    instruction.waits_for = tuple(barrier for barrier in range(6) if bits >> 11 + barrier & 1)


def loops(instructions: list[Instruction]) -> list[tuple[int, int]]:
    """(first, last) of each loop: a branch to an earlier instruction. A branch to itself, a trap, is none."""
    return [
        (instruction.target, i)
        for i, instruction in enumerate(instructions)
        if instruction.opcode.startswith("BRA") and instruction.target is not None and instruction.target < i
    ]
