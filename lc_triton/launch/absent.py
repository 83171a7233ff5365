"""What Triton compiles for a call, for a GPU that need not be here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from lc_triton.tiles.config import TileConfig


class AbsentDriver:
    """What Triton's JIT asks a driver before it compiles; it can launch nothing.

    Args:
        arch: the compute capability (80, 90, 100, ...), or AMD's name ("gfx942").
    """

    def __init__(self, arch: int | str) -> None:
        self.target = GPUTarget("hip", arch, 64) if isinstance(arch, str) else GPUTarget("cuda", arch, 32)

    def get_current_device(self) -> str:
        """A name that no GPU has: the JIT keeps what it compiles by device."""
        return f"absent {self.target.arch}"

    def get_current_stream(self, device: str) -> int:
        """The default stream."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return self.target


@contextmanager
def compiling_for(arch: int | str) -> Iterator[None]:
    """Within this block, Triton compiles for `arch`; nothing can be launched."""
    before = driver._active
    driver.set_active(AbsentDriver(arch))
    try:
        yield
    finally:
        driver._active = before


def compile_call(kernel: Any, config: TileConfig, arch: int | str, *args: Any) -> Any:
    """The kernel that a launch with these arguments would run, specialised for them by Triton's own JIT.

    Args:
        kernel: a `@triton.jit` function.
        config: its warps and stages.
        arch: what to compile for.
        args: all of the kernel's arguments in order; tensors may lie on the meta device.
    """
    with compiling_for(arch):
        return kernel.warmup(*args, grid=(1,), num_warps=config.num_warps, num_stages=config.num_stages)
