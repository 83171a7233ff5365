"""mbarriers: barriers in shared memory that wait for arrivals, and for the bytes of bulk copies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tests.emulator.layout import SHARED_BASE
from tests.emulator.machine.copies import Copies
from tests.emulator.machine.state import Array, Guard

# After this number of looks at an mbarrier without a change, it counts as one that never completes.
MOST_LOOKS = 1000


class BulkLoad(NamedTuple):
    """A load of a box into shared memory that is not complete."""

    start: Array
    data: Array
    granules: Array
    item: int
    inst: int


@dataclass
class Mbarrier:
    """An mbarrier: how many arrivals a phase needs, how many are missing, and the bytes and copies it waits for."""

    needed: int
    thread: int
    epoch: int
    phase: int = 0
    missing: int = 0
    expected_bytes: int = 0
    loads: list[BulkLoad] = field(default_factory=list)
    arrived: int = 0  # the number of the last copy that arrived

    def complete(self) -> None:
        """Begin the next phase where nothing is missing."""
        if self.missing == 0 and self.expected_bytes == 0 and not self.loads:
            self.phase += 1
            self.missing = self.needed


class Mbarriers(Copies):
    """The mbarriers of all programs of a batch, by where they lie."""

    def start_batch(self, programs: Array) -> None:
        super().start_batch(programs)
        self.mbarriers: dict[int, Mbarrier] = {}
        self._looks = 0

    def mbarrier_init(self, guard: Guard, address: Array, needed: int, inst: int) -> None:
        """Make mbarriers."""
        for thread, at, key in self._each(guard, address):
            if at % 8 or self.outside_of_shared(at, 8):
                self.find("mbarrier misaligned or out of shared memory", inst, str(at - SHARED_BASE))
            if key in self.mbarriers:
                self.find("mbarrier.init of an mbarrier that is in use", inst, self.who(thread))
            if self.options.races:
                g = np.arange(key // 2, key // 2 + 4)[None, :]
                self.check_write(np.array([thread]), g, inst)
                self.note_write(np.array([thread]), g, inst)
            epoch = int(self.epoch[self.program_of[thread]])
            self.mbarriers[key] = Mbarrier(needed, thread, epoch, missing=needed)

    def mbarrier_invalidate(self, guard: Guard, address: Array, inst: int) -> None:
        """Give their memory back."""
        for thread, _, key in self._each(guard, address):
            mbarrier = self.mbarriers.pop(key, None)
            if mbarrier is None or mbarrier.loads:
                self.find("mbarrier.inval of none, or of one with copies under way", inst, self.who(thread))

    def mbarrier_arrive(self, guard: Guard, address: Array, expected_bytes: int, inst: int) -> None:
        """An arrival of each thread, which may also say how many bytes to expect."""
        for thread, at, _ in self._each(guard, address):
            mbarrier = self._mbarrier_at(thread, at, inst)
            if mbarrier is None:
                continue
            if mbarrier.missing <= 0:
                self.find("an arrival at an mbarrier whose phase has had all of them", inst, self.who(thread))
            mbarrier.missing -= 1
            mbarrier.expected_bytes += expected_bytes
            mbarrier.complete()

    def mbarrier_wait(self, guard: Guard, address: Array, parity: Array, inst: int) -> Array:
        """Whether the phase of a parity is complete; the data of bulk copies arrive here, as late as possible."""
        threads, a, parities = self.active(guard, address, parity)
        out = np.ones(self.thread_count, bool)
        keys = self.shared_start[threads] + a.astype(np.int64)
        for key in np.unique(keys).tolist():
            at = np.flatnonzero(keys == key)
            thread = int(threads[at[0]])
            mbarrier = self._mbarrier_at(thread, int(a[at[0]]), inst)
            if mbarrier is None:
                continue
            if len(np.unique(parities[at])) > 1:
                raise NotImplementedError("parities that differ")
            wanted = int(parities[at[0]]) & 1
            if mbarrier.phase & 1 == wanted and mbarrier.missing == 0 and mbarrier.loads:
                self._arrive(mbarrier, thread, inst)
            out[threads[at]] = mbarrier.phase & 1 != wanted or self._hangs(mbarrier, inst)
            if mbarrier.phase & 1 != wanted:
                self.bulk_seen[threads[at]] = np.maximum(self.bulk_seen[threads[at]], mbarrier.arrived)
                self._looks = 0
        return out

    def _hangs(self, mbarrier: Mbarrier, inst: int) -> bool:
        """Whether threads looked too often at an mbarrier that is not complete."""
        self._looks += 1
        if self._looks <= MOST_LOOKS:
            return False
        self.find("deadlock: an mbarrier that never completes", inst, str(mbarrier))
        return True

    def _arrive(self, mbarrier: Mbarrier, thread: int, inst: int) -> None:
        """Write the data of the copies that an mbarrier waits for to shared memory."""
        self.bulk_copies += 1
        for load in mbarrier.loads:
            self.shared_as[load.item][load.start // load.item] = load.data
            self.arriving[load.granules] -= 1
            self.note_bulk_write(thread, load.granules, load.inst)
            mbarrier.expected_bytes -= len(load.data) * load.item
        mbarrier.loads = []
        mbarrier.arrived = self.bulk_copies
        if mbarrier.expected_bytes:
            text = f"{mbarrier.expected_bytes} more"
            self.find("an mbarrier expects other bytes than its bulk copies bring", inst, text)
            mbarrier.expected_bytes = 0
        mbarrier.complete()

    def _each(self, guard: Guard, address: Array) -> list[tuple[int, int, int]]:
        """Thread, address and place of each."""
        threads, a = self.active(guard, address)
        return [(int(t), int(at), int(self.shared_start[t]) + int(at)) for t, at in zip(threads, a, strict=True)]

    def _mbarrier_at(self, thread: int, address: int, inst: int) -> Mbarrier | None:
        mbarrier = self.mbarriers.get(int(self.shared_start[thread]) + address)
        if mbarrier is None:
            text = f"{self.who(thread)}: {address - SHARED_BASE}"
            self.find("an mbarrier that was not made", inst, text)
        elif mbarrier.thread != thread and mbarrier.epoch == self.epoch[self.program_of[thread]]:
            kind = "race: an mbarrier used by a thread that no barrier separates from its init"
            self.find(kind, inst, self.who(thread))
        return mbarrier
