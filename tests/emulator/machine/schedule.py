"""The order in which threads run: all together, or after a branch those with the lowest block."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.emulator.machine.shadow import Shadow
from tests.emulator.machine.state import Array


class Schedule(Shadow):
    """Runs the blocks of a kernel."""

    def run_threads(self) -> None:
        """Run all threads of the batch to their end."""
        registers: list[Any] = [garbage.copy() for garbage in self.translation.garbage]
        block, last = 0, len(self.translation.ends)
        while block < last:
            following = self._run_together(block, registers)
            if isinstance(following, int):
                block = following
                continue
            meeting = _Diverged(self, *following).run(registers)
            if meeting is None:
                return
            block = meeting

    def _run_together(self, block: int, registers: list[Any]) -> int | tuple[Array, Array]:
        """Run a block by all threads: the next block, or where each of them goes and which are alive."""
        self.translation.function(block, masked=False)(self, registers, None)
        self.executed[block] += self.warp_count
        end = self.translation.ends[block]
        if end is None:
            return block + 1
        if end.kind == "barrier":
            self.barrier()
            return block + 1
        over = len(self.translation.ends)
        target = end.target if end.kind == "branch" else over
        if end.guard is None:
            return target
        leaves = self.guard_of(end.guard, registers)
        if leaves.all() or not leaves.any():
            return target if leaves[0] else block + 1
        alive = np.ones_like(leaves) if end.kind == "branch" else ~leaves
        return np.where(leaves, target, block + 1), alive

    def guard_of(self, guard: tuple[int, bool], registers: list[Any]) -> Array:
        """A predicate of all threads."""
        number, negated = guard
        value = ~registers[number] if negated else registers[number]
        return np.broadcast_to(value, (self.thread_count,))


class _Diverged:
    """Threads at several blocks: those at the lowest block run, until all living threads are at the same block."""

    def __init__(self, machine: Schedule, at: Array, alive: Array) -> None:
        self.machine, self.at, self.alive = machine, at, alive
        self.waiting = np.zeros(machine.thread_count, bool)

    def run(self, registers: list[Any]) -> int | None:
        """The block at which all threads are again, or None when all have ended."""
        machine, translation = self.machine, self.machine.translation
        while True:
            ready = self.alive & ~self.waiting
            if not ready.any():
                if self.alive.any():
                    machine.find("deadlock: threads wait at a barrier that others never reach", 0, "")
                return None
            there = self.at[ready]
            block = int(there[translation.rank[there].argmin()])
            mask = ready & (self.at == block)
            machine.mask = mask
            translation.function(block, masked=True)(machine, registers, mask)
            machine.mask = None
            machine.executed[block] += int(mask.reshape(-1, 32).any(1).sum())
            self._end(block, mask, registers)
            if self.alive.all() and not self.waiting.any() and (self.at == self.at[0]).all():
                return int(self.at[0])

    def _end(self, block: int, mask: Array, registers: list[Any]) -> None:
        end = self.machine.translation.ends[block]
        self.at[mask] = block + 1
        if end is None:
            return
        if end.kind == "barrier":
            self.waiting |= mask
            self._release()
            return
        leaves = mask if end.guard is None else mask & self.machine.guard_of(end.guard, registers)
        if end.kind == "branch":
            self.at[leaves] = end.target
        else:
            self.alive &= ~leaves

    def _release(self) -> None:
        """Continue the programs whose living threads all wait."""
        machine = self.machine
        waiting, alive, at = (a.reshape(machine.program_count, -1) for a in (self.waiting, self.alive, self.at))
        met = (waiting | ~alive).all(1) & waiting.any(1)
        for program in np.flatnonzero(met):
            if len(np.unique(at[program][waiting[program]])) > 1:
                text = f"program {machine.programs[program]}"
                machine.find("threads of a program meet at different barriers", 0, text)
        if met.any():
            self.waiting &= ~np.repeat(met, machine.program_threads)
            machine.barrier(met)
