"""Bulk copies of boxes by tensor maps (TMA): loads into shared memory, stores out of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tests.emulator.buffers import TensorMap
from tests.emulator.fragments import swizzled
from tests.emulator.layout import SHARED_BASE
from tests.emulator.machine.mbarriers import BulkLoad, Mbarriers
from tests.emulator.machine.state import Array, Guard

# A tensor map's swizzle as matrix descriptors number it, and the alignment it needs.
SWIZZLE = {0: 0, 1: 3, 2: 2, 3: 1}
ALIGNMENT = {0: 128, 1: 256, 2: 512, 3: 1024}


class BulkStore(NamedTuple):
    """A store of a box that is not complete: its map, the bytes of the tensor that it writes, and where it reads."""

    map: TensorMap
    offset: Array
    exists: Array
    start: Array
    granules: Array
    thread: int
    inst: int


class BulkCopies(Mbarriers):
    """Bulk loads and stores."""

    def start_batch(self, programs: Array) -> None:
        super().start_batch(programs)
        self._open_stores: list[BulkStore] = []
        self._store_groups: list[list[BulkStore]] = []

    def bulk_load(
        self, guard: Guard, to: Array, tensor_map: Array, corner: tuple[Array, ...], mbarrier: Array, inst: int
    ) -> None:
        """Begin to load a box; it arrives when a thread waits for its mbarrier."""
        threads, target, maps, mbarriers, *corners = self.active(guard, to, tensor_map, mbarrier, *corner)
        for i, thread in enumerate(threads.tolist()):
            m = self.maps[int(maps[i])]
            offset, exists = _box(m, [int(c[i]) for c in corners][::-1])
            data = np.zeros(len(offset), f"u{m.item}")
            if exists.any():
                data[exists] = self._read_box(m, _addresses(m, offset[exists]), thread, inst)
            place = self._box_in_shared(m, int(target[i]), len(offset), thread, inst, "to")
            if place is None:
                continue
            start, g = place
            if self.options.races:
                self.check_write(np.array([thread]), g[None, :], inst)
            self.arriving[g] += 1
            self.writer_inst[g] = inst
            waiting = self.mbarriers.get(int(self.shared_start[thread]) + int(mbarriers[i]))
            if waiting is None:
                self.find("bulk copy with an mbarrier that is none", inst, self.who(thread))
                continue
            waiting.loads.append(BulkLoad(start, data, g, m.item, inst))

    def bulk_store(self, guard: Guard, source: Array, tensor_map: Array, corner: tuple[Array, ...], inst: int) -> None:
        """Begin to store a box; it reads shared memory until the wait for it."""
        threads, addresses, maps, *corners = self.active(guard, source, tensor_map, *corner)
        for i, thread in enumerate(threads.tolist()):
            m = self.maps[int(maps[i])]
            offset, exists = _box(m, [int(c[i]) for c in corners][::-1])
            place = self._box_in_shared(m, int(addresses[i]), len(offset), thread, inst, "from")
            if place is None:
                continue
            start, g = place
            if self.options.races:
                self.check_asynchronous_read([thread], g[None], inst, "bulk store")
            self.in_use[g] += 1
            self._open_stores.append(BulkStore(m, offset, exists, start, g, thread, inst))

    def commit_bulk(self, guard: Guard) -> None:
        """Close a group of stores."""
        if self._open_stores:
            self._store_groups.append(self._open_stores)
            self._open_stores = []

    def wait_for_bulk(self, guard: Guard, groups: int) -> None:
        """Complete all stores but those of the last `groups` groups."""
        done = self._store_groups[: len(self._store_groups) - groups]
        self._store_groups = self._store_groups[len(done) :]
        for store in (store for group in done for store in group):
            m = store.map
            if store.exists.any():
                a = _addresses(m, store.offset[store.exists])
                data = self.shared_as[m.item][store.start[store.exists] // m.item][:, None]
                counting, self.counting = self.counting, False
                self.write_global(np.full(len(a), store.thread), a, data, m.item, 1, store.inst)
                self.counting = counting
                self._count_box("store", m, a, store.thread)
            self.in_use[store.granules] -= 1
            self.note_asynchronous_read([store.thread], store.granules[None], store.inst)

    def check_bulk_at_exit(self) -> None:
        """A program must not end while its shared memory is read."""
        if self._open_stores or self._store_groups:
            self.find("exit with a bulk copy reading shared memory", 0, "")

    def _box_in_shared(
        self, m: TensorMap, address: int, numbers: int, thread: int, inst: int, direction: str
    ) -> tuple[Array, Array] | None:
        """Where the numbers of a box lie in shared memory, and their granules; None if it leaves it."""
        if address % ALIGNMENT[m.swizzle]:
            kind = f"bulk copy {direction} shared memory that is not aligned for its swizzle"
            self.find(kind, inst, str(address - SHARED_BASE))
        if self.outside_of_shared(address, numbers * m.item):
            self.find("bulk copy out of shared memory", inst, f"{address - SHARED_BASE} of {self.shared}")
            return None
        start = swizzled(address + np.arange(numbers) * m.item, SWIZZLE[m.swizzle]) + int(self.shared_start[thread])
        g = start // 2 if m.item == 2 else np.concatenate([start // 2, start // 2 + 1])
        return start, np.unique(g)

    def _read_box(self, m: TensorMap, address: Array, thread: int, inst: int) -> Array:
        counting, self.counting = self.counting, False
        numbers = self.read_global(np.full(len(address), thread), address, m.item, 1, inst)[:, 0]
        self.counting = counting
        self._count_box("load", m, address, thread)
        return numbers

    def _count_box(self, what: str, m: TensorMap, address: Array, thread: int) -> None:
        """Count the sectors of a box, each once."""
        if not self.counting:
            return
        sectors = np.unique((address >> np.uint64(5)).astype(np.int64))
        self.counts[f"global {what} bytes"] += len(address) * m.item
        self.counts[f"bulk {what} sectors"] += len(sectors)
        self.note_sectors(what, np.full(len(sectors), self.program_of[thread]), sectors)
        buffer = self.buffer_at(int(address[0]))
        if buffer is not None:
            (buffer.loaded if what == "load" else buffer.stored)[sectors - (buffer.start >> 5)] = True


def _box(m: TensorMap, corner: list[int]) -> tuple[Array, Array]:
    """Byte offsets into the tensor of a box (outermost dimension first), and which of them exist."""
    grids = np.meshgrid(*(np.arange(b) + s for b, s in zip(m.box, corner, strict=True)), indexing="ij")
    exists = np.ones(grids[0].shape, bool)
    offset = np.zeros(grids[0].shape, np.int64)
    for at, size, stride in zip(grids, m.shape, m.strides, strict=True):
        exists &= (at >= 0) & (at < size)
        offset += at * stride
    return offset.ravel() * m.item, exists.ravel()


def _addresses(m: TensorMap, offset: Array) -> Array:
    return np.uint64(m.base) + offset.astype(np.uint64)
