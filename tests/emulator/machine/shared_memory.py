"""Loads and stores of shared memory."""

from __future__ import annotations

import numpy as np

from tests.emulator.layout import SHARED_BASE
from tests.emulator.machine.banks import Banks
from tests.emulator.machine.shadow import Shadow
from tests.emulator.machine.state import Array, Guard, first


class SharedMemory(Shadow, Banks):
    """The shared memory of all programs of a batch, one after the other."""

    def start_batch(self, programs: Array) -> None:
        super().start_batch(programs)
        size = self.program_count * self.shared_stride
        self.shared_bytes = np.random.default_rng(7).integers(0, 256, size, dtype=np.uint8)  # garbage, as on a GPU
        self.shared_as = {item: self.shared_bytes.view(f"u{item}") for item in (1, 2, 4, 8)}
        self.shared_start = self.program_of * self.shared_stride - SHARED_BASE  # what is added to a thread's address

    def load_shared(self, guard: Guard, address: Array, item: int, count: int, inst: int) -> Array:
        """`count` numbers of `item` bytes a thread, as (count, threads)."""
        threads, a = self.active(guard, address)
        out = np.zeros((count, self.thread_count), f"u{item}")
        if len(threads):
            out[:, threads] = self.read_shared(threads, a, item, count, inst).T
        return out

    def store_shared(
        self, guard: Guard, address: Array, item: int, count: int, values: tuple[Array, ...], inst: int
    ) -> None:
        """The values of each thread, one after another."""
        threads, a, *own = self.active(guard, address, *values)
        if len(threads):
            data = np.stack([v.astype(f"u{item}", copy=False) for v in own], axis=1)
            self.write_shared(threads, a, data, item, count, inst)

    def read_shared(self, threads: Array, address: Array, item: int, count: int, inst: int) -> Array:
        """The numbers (threads, count) at each thread's address."""
        width = item * count
        start = self.place(threads, address, width, inst, "load")
        if self.options.races:
            self.check_read(threads, granules(start, width), inst)
        if self.counting:
            self.count_passes("load", threads, address, width, inst)
        return self.shared_as[item][(start // item)[:, None] + np.arange(count)]

    def write_shared(self, threads: Array, address: Array, data: Array, item: int, count: int, inst: int) -> None:
        """Store the numbers (threads, count) at each thread's address."""
        width = item * count
        start = self.place(threads, address, width, inst, "store")
        index, g = (start // item)[:, None] + np.arange(count), granules(start, width)
        if self.options.races and item > 1:
            values = np.ascontiguousarray(data).view(np.uint16).reshape(g.shape)
            self.check_write(threads, g, inst, self.shared_as[2][g] != values)
        self.shared_as[item][index] = data
        if self.options.races:
            self.note_write(threads, g, inst)
            if (self.shared_as[item][index] != data).any():
                self.find("race: two threads write the same shared memory at once", inst, "")
        if self.counting:
            self.count_passes("store", threads, address, width, inst)

    def place(self, threads: Array, address: Array, width: int, inst: int, what: str) -> Array:
        """Indices of addresses in the bytes of all programs; wrong addresses are findings, and get the first index."""
        a = address.astype(np.int64)
        wrong = (a < SHARED_BASE) | (a + width > SHARED_BASE + self.shared) | (a % width != 0)
        if wrong.any():
            (i,) = first(wrong)
            kind = "misaligned shared" if a[i] % width else "out of shared memory:"
            text = f"{self.who(threads[i])}: {int(a[i]) - SHARED_BASE} of {self.shared}, {width} bytes"
            self.find(f"{kind} {what}", inst, text, int(wrong.sum()))
            a = np.where(wrong, SHARED_BASE, a)
        return self.shared_start[threads] + a

    def outside_of_shared(self, address: int, size: int) -> bool:
        """Whether a block of bytes leaves a program's shared memory."""
        return address < SHARED_BASE or address + size > SHARED_BASE + self.shared


def granules(start: Array, width: int) -> Array:
    """The granules of accesses of `width` bytes."""
    return (start // 2)[:, None] + np.arange(max(1, width // 2))
