"""wgmma: asynchronous products of warp groups, with operands in shared memory or registers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.emulator import fragments
from tests.emulator.layout import SHARED_BASE
from tests.emulator.machine.state import Array, Guard
from tests.emulator.machine.warps import Warps
from tests.emulator.translate.numbers import Product

GROUP = 128  # threads


@dataclass
class InFlight:
    """A product that is not complete: its registers, its warp groups (without those that waited), and its operands."""

    registers: set[int]
    accumulator: set[int]
    groups: Array
    under_way: Array
    batch: Array  # which of each group's commits it belongs to
    reads: list[Array]
    inst: int


class WarpGroups(Warps):
    """Products of warp groups. Their results are computed at once; their operands count as in use until the wait."""

    def start_batch(self, programs: Array) -> None:
        super().start_batch(programs)
        self._products: list[InFlight] = []
        self._commits = np.zeros(max(1, self.thread_count // GROUP), np.int64)
        self._fenced = False
        self.registers_in_flight: set[int] = set()

    def wgmma_fence(self) -> None:
        """Registers written before may be used by products."""
        self._fenced = True

    def wgmma_commit(self) -> None:
        """Close a group of products."""
        self._commits[self._running()] += 1
        self._fenced = False

    def wgmma_wait(self, batches: int) -> None:
        """Wait for all products but those of the last `batches` commits."""
        waits = self._is_running()
        for product in self._products:
            groups = product.groups
            done = product.batch < self._commits[groups] - batches
            at = np.flatnonzero(product.under_way & waits[groups] & done)
            if len(at):
                for g in product.reads:
                    self._use(g[at], -1)
                    self.note_asynchronous_read(groups[at] * GROUP, g[at], product.inst)
                product.under_way[at] = False
        self._products = [product for product in self._products if product.under_way.any()]
        self.registers_in_flight = set().union(*(product.registers for product in self._products))

    def wgmma(
        self,
        guard: Guard,
        product: Product,
        a: Array,
        b: Array,
        scale: Array,
        accumulator: tuple[Array, ...],
        inst: int,
    ) -> list[Array]:
        """D = A B + D, or A B where scale is false; `a` is a descriptor or a tuple of registers."""
        n, k = (int(v) for v in product.shape[4:].split("k"))
        if not self._fenced and not self.registers_in_flight:
            self.find("wgmma without wgmma.fence", inst, "")
        groups = self._running() if guard is None else _groups_of(np.broadcast_to(guard, (self.thread_count,)))
        if not len(groups):
            return [np.broadcast_to(v, (self.thread_count,)) for v in accumulator]
        reads: list[Array] = []
        if isinstance(a, tuple):
            x = fragments.warp_group_a(a, self.thread_count, product.kind)[groups]
        else:
            x, g = self._operand(a, 64, k, product.kind, product.transposed[0], groups, inst)
            reads.append(g)
        y, g = self._operand(b, n, k, product.kind, product.transposed[1], groups, inst)
        reads.append(g)
        for g in reads:
            if self.options.races:
                self.check_asynchronous_read(groups * GROUP, g, inst, "wgmma")
            self._use(g, 1)
        old = fragments.warp_group_d(accumulator, self.thread_count)
        adds = np.broadcast_to(scale, (self.thread_count,)).reshape(-1, GROUP)[groups, 0]
        new, d = old.copy(), x @ y.transpose(0, 2, 1)
        new[groups] = np.where(adds[:, None, None], d + old[groups], d)
        written, held = set(product.accumulator), set(product.held)
        under_way, batch = np.ones(len(groups), bool), self._commits[groups].copy()
        self._products.append(InFlight(written | held, written, groups, under_way, batch, reads, inst))
        self.registers_in_flight |= written | held
        return fragments.warp_group_registers(new.astype(np.float32), self.thread_count)

    def note_register_use(self, inst: int) -> None:
        """Check that no instruction uses registers of products in flight, except to copy them."""
        sources, targets, copies = self.translation.registers_of[inst]
        used = (sources | targets) & self.registers_in_flight
        if not used:
            return
        running = self._is_running()
        names = self.translation.register_names
        for product in self._products:
            if not used & product.registers or not (product.under_way & running[product.groups]).any():
                continue
            if copies and sources & product.registers:
                product.registers |= targets
                if sources & product.accumulator:
                    product.accumulator |= targets
                self.registers_in_flight |= targets
            elif copies:
                product.registers -= targets
                product.accumulator -= targets
            elif used & product.accumulator:
                name = names[next(iter(used & product.accumulator))]
                self.find("the accumulator of a wgmma in flight is used", inst, name)
            elif targets & product.registers:
                name = names[next(iter(targets & product.registers))]
                self.find("note: registers of operand A of a wgmma in flight are overwritten", inst, name)

    def check_products_at_exit(self) -> None:
        """A program must not end before its products."""
        if self._products:
            self.find("exit with wgmma in flight", self._products[0].inst, "")

    def _running(self) -> Array:
        """The warp groups that run now."""
        return np.arange(self.thread_count // GROUP) if self.mask is None else _groups_of(self.mask)

    def _is_running(self) -> Array:
        running = np.zeros(self.thread_count // GROUP, bool)
        running[self._running()] = True
        return running

    def _use(self, g: Array, change: int) -> None:
        """Count granules as in use, or as no longer in use; groups of one program may share some."""
        if self.program_threads > GROUP:
            np.add.at(self.in_use, g.ravel(), change)
        else:
            self.in_use[g] += change

    def _operand(
        self, word: Array, rows: int, k: int, kind: str, transposed: int, groups: Array, inst: int
    ) -> tuple[Array, Array]:
        """A matrix in shared memory as (groups, rows, k) float32 numbers, and the granules it is in."""
        item = 4 if kind == "tf32" else 2
        words = np.broadcast_to(word, (self.thread_count,)).reshape(-1, GROUP)[groups]
        if (words != words[:, :1]).any():
            self.find("a matrix descriptor differs within a warp group", inst, "")
        bits, used = [], []
        for group, descriptor in zip(groups.tolist(), words[:, 0].tolist(), strict=True):
            a, g, low, high = fragments.operand(descriptor, rows, k, item, transposed)
            if self.outside_of_shared(low, high + item - low):
                text = f"{low - SHARED_BASE}..{high - SHARED_BASE} of {self.shared}"
                self.find("wgmma reads out of shared memory", inst, text)
                a = np.clip(a, SHARED_BASE, SHARED_BASE + self.shared - item)
                g = np.clip(g, SHARED_BASE // 2, (SHARED_BASE + self.shared) // 2 - 1)
            start = int(self.shared_start[group * GROUP])
            bits.append(self.shared_as[item][(a + start) // item])
            used.append(g + start // 2)
        return fragments.numbers(np.stack(bits), kind), np.stack(used)


def _groups_of(mask: Array) -> Array:
    """The warp groups with a thread in a mask."""
    return np.flatnonzero(mask.reshape(-1, GROUP).any(1))
