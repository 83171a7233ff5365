"""Runs the programs of one launch, the threads of several at the same time, and checks all accesses to memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from tests.emulator.machine.bulk_copies import BulkCopies
from tests.emulator.machine.report import Finding, Result
from tests.emulator.machine.schedule import Schedule
from tests.emulator.machine.state import Options, State
from tests.emulator.machine.translation import Translation
from tests.emulator.machine.warp_groups import WarpGroups

__all__ = ["Finding", "Launch", "Machine", "Options", "Result", "Translation"]


class Launch(State):
    """A launch: its programs in batches, and what they did."""

    def run(self, programs: Sequence[int] | None = None) -> Result:
        """Run these programs, or all."""
        width, height, depth = self.grid
        chosen = range(width * height * depth) if programs is None else programs
        side_by_side = max(1, self.options.lanes // self.program_threads)
        started = time.perf_counter()
        with np.errstate(all="ignore"):
            for start in range(0, len(chosen), side_by_side):
                self.start_batch(np.array(chosen[start : start + side_by_side], dtype=np.int64))
                self.run_threads()
                self.check_exit()
        return self._result(len(chosen), time.perf_counter() - started)

    def run_threads(self) -> None:
        """Run all threads of the batch to their end."""
        raise NotImplementedError

    def check_exit(self) -> None:
        """Check for copies and products that are not complete when all threads have ended."""

    def _result(self, programs: int, seconds: float) -> Result:
        classes: Counter[str] = Counter()
        for block, warps in self.executed.items():
            for name, count in self.translation.classes[block].items():
                classes[name] += count * warps
        conflicts: Counter[str] = Counter()
        for (inst, what), extra in self.conflicts.items():
            instruction = self.translation.instructions[inst]
            conflicts[f"{what} at {instruction.loc} {'.'.join(instruction.op[:4])}"] += extra
        per_buffer = {b.title: (int(b.loaded.sum()) * 32, int(b.stored.sum()) * 32) for b in self.buffers}
        read, written = (sum(moved[i] for moved in per_buffer.values()) for i in (0, 1))
        return Result(
            list(self.findings.values()), programs, seconds, classes, self.counts, conflicts, read, written, per_buffer
        )


class Machine(Schedule, BulkCopies, WarpGroups, Launch):
    """A launch with data, in which everything is checked."""

    def check_exit(self) -> None:
        """No copy or product may be under way."""
        self.check_products_at_exit()
        self.check_copies_at_exit()
        self.check_bulk_at_exit()
