"""A launch without data: only the addresses of global memory are computed, and counted."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.emulator.machine import Machine
from tests.emulator.machine.state import Array, Guard


class DryMachine(Machine):
    """Counts accesses to global memory. Kernels whose addresses depend on data would be counted wrongly."""

    @property
    def watches_shared(self) -> bool:
        """False: nothing is stored in shared memory."""
        return False

    def load_global(self, guard: Guard, address: Array, item: int, count: int, inst: int) -> Array:
        """Count, and load zeros."""
        threads, a = self.active(guard, address)
        if len(threads):
            self.count_global("load", threads, a, item * count, cached=True)
        return np.zeros((count, 1), f"u{item}")

    def store_global(self, guard: Guard, address: Array, item: int, count: int, values: Any, inst: int) -> None:
        """Count."""
        threads, a = self.active(guard, address)
        if len(threads):
            self.count_global("store", threads, a, item * count)

    def async_copy(
        self, guard: Guard, to: Array, source: Array, width: int, given: Array | None, cached: bool, inst: int
    ) -> None:
        """Count the copies that are not masked."""
        threads, a, count = self.active(guard, source, np.full(1, width) if given is None else given)
        some = np.flatnonzero(count > 0)
        if len(some):
            self.count_global("load", threads[some], a[some], width, cached=cached)

    def load_shared(self, guard: Guard, address: Array, item: int, count: int, inst: int) -> Array:
        """Zeros."""
        return np.zeros((count, 1), f"u{item}")

    def load_matrices(self, guard: Guard, address: Array, count: int, transposed: bool, inst: int) -> list[Array]:
        """Zeros."""
        return [np.zeros(1, np.uint32)] * count

    def multiply(self, shape: str, kind: str, a: Any, b: Any, c: Any) -> Any:
        """The accumulator as it is."""
        return c

    def wgmma(self, guard: Guard, product: Any, a: Any, b: Any, scale: Any, accumulator: Any, inst: int) -> Any:
        """The accumulator as it is."""
        return accumulator

    def store_shared(self, *_: Any) -> None:
        """Nothing."""

    def store_matrices(self, *_: Any) -> None:
        """Nothing."""

    def wait_for_copies(self, *_: Any) -> None:
        """Nothing."""

    def note_register_use(self, *_: Any) -> None:
        """Nothing."""

    def wgmma_commit(self) -> None:
        """Nothing."""

    def wgmma_wait(self, *_: Any) -> None:
        """Nothing."""
