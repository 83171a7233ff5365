"""Instructions of whole warps: barriers, elections, exchanges of registers, matrices of shared memory, products."""

from __future__ import annotations

import numpy as np

from tests.emulator import fragments
from tests.emulator.machine.shared_memory import SharedMemory
from tests.emulator.machine.state import Array, Guard


class Warps(SharedMemory):
    """Instructions of whole warps."""

    def warp_barrier(self, guard: Guard) -> None:
        """bar.warp.sync."""
        (threads,) = self.active(guard)
        self.warp_epoch[np.unique(self.warp_of[threads])] += 1

    def elect(self, guard: Guard) -> tuple[Array, Array]:
        """One thread of each warp."""
        out = np.tile(np.arange(32) == 0, self.warp_count)
        if guard is not None:
            by_warp = np.broadcast_to(guard, (self.thread_count,)).reshape(-1, 32)
            out = (np.arange(32)[None, :] == by_warp.argmax(1)[:, None]).ravel()
        return np.zeros(1, np.uint32), out

    def shuffle(self, mode: str, value: Array, lane: Array, clamp: Array) -> tuple[Array, Array]:
        """The value of another lane, and whether this lane exists; if not, the thread's own value."""
        if self.mask is not None:
            self.whole_warps(self.mask, 0)
        value, by, limits = (np.broadcast_to(a, (self.thread_count,)).reshape(-1, 32) for a in (value, lane, clamp))
        own = np.arange(32)[None, :]
        by, segment, most = by.astype(np.int64) & 31, limits.astype(np.int64) >> 8 & 31, limits.astype(np.int64) & 31
        low = own & segment
        high = low | (most & ~segment)
        if mode == "up":
            source = own - by
            exists = source >= high
        else:
            source = {"bfly": own ^ by, "down": own + by, "idx": low | (by & ~segment)}[mode]
            exists = source <= high
        return np.take_along_axis(value, np.where(exists, source, own), 1).ravel(), exists.ravel()

    def reduce(self, operation: str, value: Array, members: Array) -> Array:
        """redux: the least or the largest integer of each warp, of all its threads."""
        if self.mask is not None:
            self.whole_warps(self.mask, 0)
        if (np.asarray(members).astype(np.uint32) != 0xFFFFFFFF).any():
            raise NotImplementedError("redux by a part of a warp")
        of_warps = np.broadcast_to(value, (self.thread_count,)).reshape(-1, 32)
        found = of_warps.min(1) if operation == "min" else of_warps.max(1)
        return np.repeat(found, 32)

    def load_matrices(self, guard: Guard, address: Array, count: int, transposed: bool, inst: int) -> list[Array]:
        """ldmatrix: 8 x 8 matrices of 16-bit numbers, whose rows are at the addresses of eight threads each."""
        warps = self.whole_warps(guard, inst)
        out = [np.zeros(self.thread_count, np.uint32) for _ in range(count)]
        if not len(warps):
            return out
        for matrix, (threads, rows) in enumerate(self._rows(address, warps, count)):
            numbers = (
                np.ascontiguousarray(self.read_shared(threads, rows, 8, 2, inst)).view(np.uint16).reshape(-1, 8, 8)
            )
            out[matrix].reshape(-1, 32)[warps] = _turned(numbers, transposed).view(np.uint32).reshape(-1, 32)
        return out

    def store_matrices(
        self, guard: Guard, address: Array, count: int, transposed: bool, values: tuple[Array, ...], inst: int
    ) -> None:
        """stmatrix: the reverse."""
        warps = self.whole_warps(guard, inst)
        if not len(warps):
            return
        for matrix, (threads, rows) in enumerate(self._rows(address, warps, count)):
            own = np.ascontiguousarray(np.broadcast_to(values[matrix], (self.thread_count,)).reshape(-1, 32)[warps])
            numbers = _turned(own.view(np.uint16).reshape(-1, 8, 8), transposed)
            self.write_shared(threads, rows, numbers.reshape(-1, 8).view(np.uint64), 8, 2, inst)

    def _rows(self, address: Array, warps: Array, count: int) -> list[tuple[Array, Array]]:
        """For each matrix, the threads that have the addresses of its rows, and those."""
        a = np.broadcast_to(address, (self.thread_count,)).reshape(-1, 32)[warps]
        threads = self.thread.reshape(-1, 32)[warps]
        return [(threads[:, j : j + 8].ravel(), a[:, j : j + 8].ravel()) for j in range(0, 8 * count, 8)]

    def multiply(
        self, shape: str, kind: str, a: tuple[Array, ...], b: tuple[Array, ...], c: tuple[Array, ...]
    ) -> list[Array]:
        """mma: D = A B + C of each warp."""
        if self.mask is not None:
            self.whole_warps(self.mask, 0)
        return fragments.multiply(shape, kind, a, b, c, self.thread_count)


def _turned(matrices: Array, transposed: bool) -> Array:
    return np.ascontiguousarray(matrices.transpose(0, 2, 1) if transposed else matrices)
