"""Loads and stores of global memory: bounds, alignment, what may be read and written, and sectors."""

from __future__ import annotations

import numpy as np

from tests.emulator.buffers import Buffer
from tests.emulator.machine.state import Array, Guard, State, first

SECTOR = 32
_LOW = (1 << 48) - 1


class GlobalMemory(State):
    """Access to the tensors."""

    def load_global(self, guard: Guard, address: Array, item: int, count: int, inst: int) -> Array:
        """`count` numbers of `item` bytes a thread, as (count, threads)."""
        threads, a = self.active(guard, address)
        out = np.zeros((count, self.thread_count), f"u{item}")
        if len(threads):
            out[:, threads] = self.read_global(threads, a, item, count, inst).T
        return out

    def store_global(
        self, guard: Guard, address: Array, item: int, count: int, values: tuple[Array, ...], inst: int
    ) -> None:
        """The values of each thread, one after another."""
        threads, a, *own = self.active(guard, address, *values)
        if len(threads):
            data = np.stack([v.astype(f"u{item}", copy=False) for v in own], axis=1)
            self.write_global(threads, a, data, item, count, inst)

    def read_global(
        self, threads: Array, address: Array, item: int, count: int, inst: int, *, cached: bool = True
    ) -> Array:
        """The numbers (threads, count) at each thread's address; `cached` says whether L1 keeps them."""
        width = item * count
        out = np.zeros((len(threads), count), f"u{item}")
        for buffer, at in self._by_buffer(address, width, inst, threads, "load"):
            own, who = (address, threads) if at is None else (address[at], threads[at])
            index = _index(own, buffer, item, count)
            self._check_allowed(buffer, "readable", index, item, inst, who, "load")
            data = buffer.view("bytes", item)[index]
            if at is None:
                out = data
            else:
                out[at] = data
            if self.counting:
                buffer.loaded[_sectors_in(buffer, own)] = True
        if self.counting:
            self.count_global("load", threads, address, width, cached=cached)
        return out

    def write_global(self, threads: Array, address: Array, data: Array, item: int, count: int, inst: int) -> None:
        """Store the numbers (threads, count) at each thread's address."""
        width = item * count
        for buffer, at in self._by_buffer(address, width, inst, threads, "store"):
            own, who, values = (address, threads, data) if at is None else (address[at], threads[at], data[at])
            index = _index(own, buffer, item, count)
            self._check_allowed(buffer, "writable", index, item, inst, who, "store")
            if self.options.races:
                self._check_written_once(buffer, index, values, item, inst, who)
            buffer.view("bytes", item)[index] = values
            if self.options.races and (buffer.view("bytes", item)[index] != values).any():
                self.find("global memory written by two threads at once", inst, str(sorted(buffer.names)))
            if self.counting:
                buffer.stored[_sectors_in(buffer, own)] = True
        if self.counting:
            self.count_global("store", threads, address, width)

    def count_global(self, what: str, threads: Array, address: Array, width: int, *, cached: bool = False) -> None:
        """Count bytes, and the sectors of each warp's request."""
        self.counts[f"global {what} bytes"] += len(address) * width
        sector = (address >> np.uint64(5)).astype(np.int64)
        unique = np.unique((threads // 32).astype(np.int64) << 48 | sector)
        self.counts[f"global {what} requests"] += len(np.unique(threads // 32))
        self.note_sectors(what, self.program_of[(unique >> 48) * 32], unique & _LOW, cached=cached)

    def note_sectors(self, what: str, programs: Array, sectors: Array, *, cached: bool = False) -> None:
        """Count sectors, also by tensor; `programs` says whose each one is, counted in the batch."""
        self.counts[f"global {what} sectors"] += len(sectors)
        for b in self.buffers:
            count = int(((sectors >= b.start // SECTOR) & (sectors < -(-b.end // SECTOR))).sum())
            if count:
                self.counts[f"{b.title} {what} sectors"] += count
        if self.listener is not None:
            self.listener(f"cached {what}" if cached else what, self.programs[programs], sectors)

    def buffer_at(self, address: int) -> Buffer | None:
        """The tensor at an address."""
        return next((b for b in self.buffers if b.start <= address < b.end), None)

    def _by_buffer(
        self, a: Array, width: int, inst: int, threads: Array, what: str
    ) -> list[tuple[Buffer, Array | None]]:
        """For each buffer, the accesses inside it (None means all); accesses outside of all buffers are findings."""
        misaligned = a % np.uint64(width) != 0
        if misaligned.any():
            (i,) = first(misaligned)
            text = f"{self.who(threads[i])}: {int(a[i]):#x}, {width} bytes"
            self.find(f"misaligned global {what}", inst, text, int(misaligned.sum()))
        buffer = self.buffer_at(int(a[0]))
        if buffer is not None and not misaligned.any() and buffer.holds(int(a.min()), int(a.max()) + width):
            return [(buffer, None)]
        found: list[tuple[Buffer, Array | None]] = []
        rest = ~misaligned
        for b in self.buffers:
            inside = rest & (a >= np.uint64(b.start)) & (a + np.uint64(width) <= np.uint64(b.end))
            if inside.any():
                found.append((b, np.flatnonzero(inside)))
                rest &= ~inside
        if rest.any():
            (i,) = first(rest)
            text = f"{self.who(threads[i])}: {int(a[i]):#x}{self._nearest(int(a[i]))}"
            self.find(f"global {what} outside of every tensor", inst, text, int(rest.sum()))
        return found

    def _nearest(self, address: int) -> str:
        """The place of an address relative to the nearest tensor, as text."""
        if not self.buffers:
            return ""
        near = min(self.buffers, key=lambda b: min(abs(address - b.start), abs(address - b.end)))
        return f", {address - near.start} bytes from the start of {sorted(near.names)} of {near.nbytes}"

    def _check_allowed(
        self, buffer: Buffer, marks: str, index: Array, item: int, inst: int, threads: Array, what: str
    ) -> None:
        wrong = buffer.view(marks, item)[index] != all_ones(item)
        if wrong.any():
            i = first(wrong)
            text = f"{self.who(threads[i[0]])}: byte {int(index[i]) * item} of {sorted(buffer.names)}"
            self.find(f"global {what} outside of the tensor's numbers", inst, text, int(wrong.sum()))

    def _check_written_once(
        self, buffer: Buffer, index: Array, values: Array, item: int, inst: int, threads: Array
    ) -> None:
        written = buffer.view("written", item)
        twice = (written[index] != 0) & (buffer.view("bytes", item)[index] != values)
        if twice.any():
            text = f"{self.who(threads[first(twice)[0]])} in {sorted(buffer.names)}"
            self.find("global memory written twice with different values", inst, text, int(twice.sum()))
        written[index] = all_ones(item)


def all_ones(item: int) -> Array:
    """The integer of `item` bytes, each of which is 1."""
    return np.array([int("01" * item, 16)], dtype=f"u{item}")


def _index(address: Array, buffer: Buffer, item: int, count: int) -> Array:
    """Which numbers of a buffer lie at addresses, (addresses, count)."""
    return ((address - np.uint64(buffer.start)).astype(np.int64) // item)[:, None] + np.arange(count)


def _sectors_in(buffer: Buffer, address: Array) -> Array:
    """The sectors of addresses, counted from the buffer's first."""
    return (address - np.uint64(buffer.start & ~(SECTOR - 1))).astype(np.int64) >> 5
