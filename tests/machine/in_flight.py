"""Find wgmma whose operand A lies in registers that are written while the product may still read them.

A product of a warp group is asynchronous: PTX leaves it undefined what happens where a register of A is written before
`wgmma.wait_group` has waited for it. Triton's pipeliner lets the product of one step of a loop run on into the next
step, where A is loaded into the same registers: https://github.com/triton-lang/triton/issues/9433.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Instructions without a result in registers.
_NO_RESULT = ("st", "red", "bar", "barrier", "bra", "ret", "exit", "cp", "fence", "mbarrier", "membar", "wgmma", "trap")
# More groups than any kernel leaves unfinished.
_MOST_GROUPS = 16


@dataclass(frozen=True)
class _Instruction:
    text: str
    guard: str | None
    operation: str
    operands: tuple[str, ...]

    @property
    def written(self) -> frozenset[str]:
        if self.operation.split(".")[0] in _NO_RESULT and not self.operation.startswith("mbarrier.try_wait"):
            return frozenset()
        return frozenset(re.findall(r"%\w+", self.operands[0])) if self.operands else frozenset()

    @property
    def registers_of_a(self) -> frozenset[str]:
        """The registers of operand A, if it is in registers."""
        if not self.operation.startswith("wgmma.mma_async") or not self.operands[1].startswith("{"):
            return frozenset()
        return frozenset(re.findall(r"%\w+", self.operands[1]))


def overwritten(ptx: str) -> list[str]:
    """The instructions of a kernel that write a register of A while a product may still read it.

    Args:
        ptx: the text, as Triton keeps it in `CompiledKernel.asm["ptx"]`.
    """
    instructions, labels = _parse(ptx)
    found: dict[int, str] = {}
    for start, product in enumerate(instructions):
        if registers := product.registers_of_a:
            for index in _written_in_flight(instructions, labels, start, registers):
                found[index] = f"{instructions[index].text} (A of {product.operation})"
    return [found[index] for index in sorted(found)]


def _written_in_flight(
    instructions: list[_Instruction], labels: dict[str, int], start: int, registers: frozenset[str]
) -> set[int]:
    """The instructions that write registers on any path from a product to a wait for it."""
    found, visited, todo = set(), set(), [(start + 1, 0)]
    while todo:
        index, groups = todo.pop()
        if (index, groups) in visited or index >= len(instructions):
            continue
        visited.add((index, groups))
        instruction = instructions[index]
        operation = instruction.operation
        if operation.startswith("wgmma.commit_group"):
            groups = min(groups + 1, _MOST_GROUPS)
        elif operation.startswith("wgmma.wait_group") and groups > int(instruction.operands[0]):
            continue  # at most so many groups are unfinished, the latest ones
        if registers & instruction.written:
            found.add(index)
        if operation.startswith("bra"):
            todo.append((labels[instruction.operands[-1]], groups))
        if instruction.guard is not None or operation.split(".")[0] not in ("bra", "ret", "exit"):
            todo.append((index + 1, groups))
    return found


def _parse(ptx: str) -> tuple[list[_Instruction], dict[str, int]]:
    """All instructions in order, and the index of the instruction after each label."""
    body = re.sub(r"//[^\n]*|^\s*\.(?:loc|pragma)[^\n]*", "", ptx[ptx.index(".entry") :], flags=re.M)
    body = body[body.index("{") + 1 :]
    instructions: list[_Instruction] = []
    labels: dict[str, int] = {}
    for text in body.split(";"):
        text = " ".join(text.split()).lstrip("{} ")
        while label := re.match(r"([$\w]+): ?", text):
            labels[label[1]] = len(instructions)
            text = text[label.end() :].lstrip("{} ")
        parts = re.match(r"(?:@(!?%?\w+) )?([a-z][\w.:]*)\s*(.*)", text)
        if parts is not None and not text.startswith("."):
            operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", parts[3])
            instructions.append(_Instruction(text, parts[1], parts[2], tuple(o.strip() for o in operands)))
    return instructions, labels
