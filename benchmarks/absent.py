"""A GPU that is not there: Triton compiles for it, and its launches are written down. For host time, and for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

DEVICE = 99  # no GPU's number, so that kernels compiled here are never launched on one


class Launch(NamedTuple):
    """What the driver was given."""

    grid: tuple[int, int, int]
    binary: bytes
    args: tuple[Any, ...]


class AbsentGPU:
    """What Triton asks of a driver.

    Args:
        arch: the compute capability it compiles for.
        keep: whether launches are written down.
    """

    def __init__(self, arch: int, keep: bool) -> None:
        self.arch, self.keep = arch, keep
        self.launches: list[Launch] = []
        self.utils = self

    def get_current_device(self) -> int:
        """The device that is not there."""
        return DEVICE

    def get_current_stream(self, device: int) -> int:
        """The stream of it."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self.arch, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Only what Triton checks before a launch."""
        return {"max_shared_mem": 232_448}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[bytes, bytes, int, int, int]:
        """Module, function, registers, spills and most threads; the binary itself is module and function."""
        return binary, binary, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """What launches one kernel, on whichever absent GPU is the active one by then: Triton keeps it."""
        return lambda *args: driver.active.launch(*args)

    def launch(self, x: int, y: int, z: int, stream: int, function: bytes, *rest: Any) -> None:
        """Call the hooks, and write the launch down."""
        (_, metadata, enter, leave), args = rest[:4], rest[4:]
        if enter is not None:
            enter(metadata)
        if self.keep:
            self.launches.append(Launch((x, y, z), function, args))
        if leave is not None:
            leave(metadata)


@contextmanager
def absent_gpu(arch: int = 90, *, keep: bool = True) -> Iterator[AbsentGPU]:
    """Within this block, Triton launches on a GPU that is not there; tensors may lie anywhere."""
    before, gpu = driver._active, AbsentGPU(arch, keep)
    driver.set_active(gpu)
    try:
        yield gpu
    finally:
        driver._active = before
