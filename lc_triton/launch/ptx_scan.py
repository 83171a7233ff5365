"""Find the marks of known miscompilations in PTX: a kernel with a mark may compute wrong numbers.

Both come from index arithmetic that LLVM narrowed to 16 bits; docs/dev/nvptx-16-bit-index.md explains them.
"""

from __future__ import annotations

import re
from collections import defaultdict

# Instructions whose result is one number of 32 bits and never two of 16.
_ONE_NUMBER = ("ld.param", "bfe.", "mad.", "mul.", "sub.s32", "div.", "rem.", "cvt.u32.", "cvt.s32.")
# Instructions that keep two halves apart if an operand does, as far as constants stay below 2^16.
_KEEPS_HALVES = ("or.b32", "and.b32", "xor.b32", "add.s32", "shl.b32", "shr.u32")
_DEPTH = 6

_Written = dict[str, list[tuple[str, str]]]


def marks(ptx: str) -> list[str]:
    """The instructions of a kernel's PTX that are marks of a miscompilation; none in a sound kernel.

    Args:
        ptx: the text, as Triton keeps it in `CompiledKernel.asm["ptx"]`.

    Example:
        >>> marks(chr(10).join(["mul.lo.s32 %r2, %r1, 24;", "mov.b32 {%rs1, %rs2}, %r2;"]))
        ['mov.b32 {%rs1, %rs2}, %r2']
    """
    written: _Written = defaultdict(list)
    for line in re.finditer(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s+(%r\d+)\s*,(.*);", ptx, re.M):
        written[line[2]].append((line[1], line[3]))
    unpacked = re.finditer(r"^\s*mov\.b32\s+(\{%rs\d+, %rs\d+\}), (%r\d+);", ptx, re.M)
    found = [f"mov.b32 {m[1]}, {m[2]}" for m in unpacked if not _is_pair(m[2], written)]
    return found + _shared_immediates(ptx, written)


def _is_pair(register: str, written: _Written, depth: int = 0) -> bool:
    """Whether a register of 32 bits may hold two numbers of 16: True in doubt."""
    by = written[register]
    if len(by) != 1 or depth > _DEPTH:
        return True
    ((operation, operands),) = by
    if operation.startswith(_ONE_NUMBER):
        return False
    if operation in ("mov.u32", "mov.b32"):
        return "%tid" not in operands and "%ctaid" not in operands
    if operation not in _KEEPS_HALVES:
        return True
    parts = [part.strip() for part in operands.split(",")]
    if any(re.fullmatch(r"-?\d+", part) and abs(int(part)) >= 1 << 16 for part in parts):
        return True
    return any(_is_pair(part, written, depth + 1) for part in parts if part.startswith("%r"))


def _shared_immediates(ptx: str, written: _Written) -> list[str]:
    """Packed 16-bit additions of one constant register: ptxas 12.9 drops the constant of the second."""
    added: dict[str, list[str]] = defaultdict(list)
    for line in re.finditer(r"^\s*(add\.s16x2\s+%r\d+, (%r\d+), (%r\d+));", ptx, re.M):
        for register in {line[2], line[3]}:
            if any(op == "mov.b32" and re.fullmatch(r"\s*-?\d+", value) for op, value in written[register]):
                added[register].append(" ".join(line[1].split()))
    return [line for lines in added.values() if len(lines) > 1 for line in lines[1:]]
