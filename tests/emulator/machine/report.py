"""The report of a launch: findings and counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Finding:
    """A fault of a kernel: its kind, the line of the source and of the PTX, how often it occurred, and an example."""

    kind: str
    loc: str
    ptx_line: int
    text: str
    example: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.kind} x{self.count} at {self.loc} (PTX {self.ptx_line}: {self.text[:90]}): {self.example}"


@dataclass
class Result:
    """What a launch did.

    Args:
        findings: what it did wrong, each kind at each instruction once.
        programs: how many ran.
        seconds: that it took here.
        warp_instructions: by class.
        counts: bytes, sectors and requests of global memory, by tensor too; passes of shared memory.
        conflicts: passes of shared memory beyond the ideal, by line of the source and instruction.
        dram_read, dram_written: distinct sectors, in bytes.
        per_buffer: the same by tensor.
    """

    findings: list[Finding]
    programs: int
    seconds: float
    warp_instructions: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    conflicts: Counter[str] = field(default_factory=Counter)
    dram_read: int = 0
    dram_written: int = 0
    per_buffer: dict[str, tuple[int, int]] = field(default_factory=dict)
