"""The instructions that one warp executes, in order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from lc_triton.simulator.sass import Instruction, loops

_LONGEST = 3_000_000

Trace = list[int]


def trace_of(
    instructions: list[Instruction], iterations: Mapping[int, int], jumps: Mapping[int, int] | None = None
) -> Trace:
    """Indices of the executed instructions.

    A conditional branch forward is not taken, an unconditional one is, and a loop is executed as often as it is said to
    be.

    Args:
        instructions: of the kernel.
        iterations: of each loop, by the index of its last instruction; 1 for a loop that is not there, and a loop of 0
            is jumped over.
        jumps: conditional branches that are taken, with their targets.

    Raises:
        RuntimeError: there are more than three million.
    """
    first_of = {last: first for first, last in loops(instructions)}
    loops_at = defaultdict(list)
    for last, first in first_of.items():
        loops_at[first].append(last)
    jumps = jumps or {}
    left: dict[int, int] = {}
    executed: Trace = []
    k = 0
    for _ in range(_LONGEST):
        if k >= len(instructions):
            return executed
        if k in jumps:
            executed.append(k)
            k = jumps[k]
            continue
        empty = [last for last in loops_at.get(k, ()) if iterations.get(last, 1) == 0]
        if empty:
            k = max(empty) + 1
            continue
        executed.append(k)
        instruction = instructions[k]
        if k in first_of:
            remaining = left.get(k, iterations.get(k, 1)) - 1
            if remaining > 0:
                left[k] = remaining
                k = first_of[k]
                continue
            left.pop(k, None)
        elif instruction.predicate is None and instruction.opcode.startswith("EXIT"):
            return executed
        elif instruction.predicate is None and instruction.opcode.startswith("BRA"):
            if instruction.target == k:
                return executed
            if instruction.target is not None and instruction.target > k:
                k = instruction.target
                continue
        k += 1
    raise RuntimeError(f"one warp executes more than {_LONGEST:,} instructions")
