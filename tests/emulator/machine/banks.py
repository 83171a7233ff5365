"""Bank conflicts: the passes that an access to shared memory takes, and the fewest that it could take."""

from __future__ import annotations

import numpy as np

from tests.emulator.machine.state import Array, State

BANK_BYTES, PASS_BYTES = 4, 128


class Banks(State):
    """Counts passes of shared memory: a pass moves 128 bytes, and one word of each bank."""

    def count_passes(self, what: str, threads: Array, address: Array, width: int, inst: int) -> None:
        """Count an access of `width` bytes a thread; wide ones go by halves or quarters of a warp."""
        part = max(BANK_BYTES, width)
        group = threads // (32 // (part // BANK_BYTES))
        words = np.unique(group.astype(np.int64) << 32 | address.astype(np.int64) // part)
        slots = PASS_BYTES // part
        slot, count = np.unique((words >> 32) * slots + (words & 0xFFFFFFFF) % slots, return_counts=True)
        passes: Array = np.zeros(int(group.max()) + 1, np.int64)
        np.maximum.at(passes, slot // slots, count)
        total, ideal = int(passes.sum()), int((passes > 0).sum())
        self.counts[f"shared {what} passes"] += total
        self.counts[f"shared {what} ideal passes"] += ideal
        if total > ideal:
            self.conflicts[inst, what] += total - ideal
