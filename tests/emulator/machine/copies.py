"""cp.async: asynchronous copies of one thread, which arrive only when the thread waits for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.emulator.machine.global_memory import GlobalMemory
from tests.emulator.machine.shared_memory import SharedMemory, granules
from tests.emulator.machine.state import Array, Guard


@dataclass
class Copy:
    """The copies of one instruction: their threads, targets, data and groups, and which of them are not complete."""

    threads: Array
    start: Array
    data: Array
    item: int
    granules: Array
    group: Array
    under_way: Array
    inst: int


class Copies(GlobalMemory, SharedMemory):
    """Asynchronous copies."""

    def start_batch(self, programs: Array) -> None:
        super().start_batch(programs)
        self.copies: list[Copy] = []
        self.copy_groups = np.zeros(self.thread_count, np.int64)  # that each thread closed

    def async_copy(
        self, guard: Guard, to: Array, source: Array, width: int, given: Array | None, cached: bool, inst: int
    ) -> None:
        """Copy `width` bytes a thread, of which `given` come from memory and the rest are zero."""
        threads, target, a, count = self.active(guard, to, source, np.full(1, width) if given is None else given)
        if not len(threads):
            return
        if not np.isin(count, (0, width)).all():
            raise NotImplementedError("a copy of a part")
        start = self.place(threads, target, width, inst, "asynchronous copy")
        item = 8 if width >= 8 else 4
        data = np.zeros((len(threads), width // item), f"u{item}")
        some = np.flatnonzero(count > 0)
        if len(some):
            data[some] = self.read_global(threads[some], a[some], item, width // item, inst, cached=cached)
        g = granules(start, width)
        if self.options.races:
            self.check_write(threads, g, inst)
        self.arriving[g] += 1
        self.writer_inst[g] = inst
        if self.counting:
            self.count_passes("asynchronous store", threads, target, width, inst)
        group, under_way = self.copy_groups[threads].copy(), np.ones(len(threads), bool)
        self.copies.append(Copy(threads, start, data, item, g, group, under_way, inst))

    def commit_copies(self, guard: Guard) -> None:
        """Close a group."""
        (threads,) = self.active(guard)
        self.copy_groups[threads] += 1

    def wait_for_copies(self, guard: Guard, groups: int) -> None:
        """Complete the copies of the threads, except for those of their last `groups` groups."""
        (threads,) = self.active(guard)
        waits = np.zeros(self.thread_count, bool)
        waits[threads] = True
        for copy in self.copies:
            closed = self.copy_groups[copy.threads] - groups
            at = np.flatnonzero(copy.under_way & waits[copy.threads] & (copy.group < closed))
            if len(at):
                columns = np.arange(copy.data.shape[1])
                self.shared_as[copy.item][(copy.start[at] // copy.item)[:, None] + columns] = copy.data[at]
                self.arriving[copy.granules[at]] -= 1
                self.note_write(copy.threads[at], copy.granules[at], copy.inst)
                copy.under_way[at] = False
        self.copies = [copy for copy in self.copies if copy.under_way.any()]

    def check_copies_at_exit(self) -> None:
        """A program must not end before its copies have arrived."""
        if self.copies:
            self.find("exit with cp.async in flight", self.copies[0].inst, "")
