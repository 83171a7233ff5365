"""A GPU that need not be here: Triton compiles for it, and its launches are recorded instead of run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from lc_triton.tiles.chooser import chooser
from lc_triton.tiles.config import TileConfig

_count = itertools.count(1)


class RecordedLaunch(NamedTuple):
    """The arguments of one launch, as Triton gives them to the driver."""

    grid: tuple[int, int, int]
    binary: bytes
    args: tuple[Any, ...]


class AbsentGPU:
    """The driver of a GPU that is not here, as Triton's JIT and launcher call it.

    Args:
        arch: the compute capability (80, 90, 100, ...), or AMD's name ("gfx942").
        keep: whether launches are recorded.
        fresh: whether the JIT compiles anew what this process compiled for it before; Triton's cache on disk is used.
    """

    def __init__(self, arch: int | str, *, keep: bool = True, fresh: bool = False) -> None:
        self.target = GPUTarget("hip", arch, 64) if isinstance(arch, str) else GPUTarget("cuda", arch, 32)
        self.keep = keep
        self.name = f"absent {arch}" + (f", {next(_count)}" if fresh else "")
        self.launches: list[RecordedLaunch] = []
        # Called with the source and metadata of each kernel whose launcher is made.
        self.on_launcher: Callable[[Any, Any], None] = lambda source, metadata: None
        self.utils = self

    def get_current_device(self) -> str:
        """A name that no GPU has: the JIT keeps what it compiles by device, and runs none of it on a real one."""
        return self.name

    def get_current_stream(self, device: str) -> int:
        """The default stream."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """The target to compile for."""
        return self.target

    def get_device_properties(self, device: str) -> dict[str, int]:
        """The one property that Triton checks before a launch, as an H100 has it, whatever the architecture."""
        return {"max_shared_mem": 232_448}

    def load_binary(self, name: str, binary: bytes, shared: int, device: str) -> tuple[bytes, bytes, int, int, int]:
        """Module, function, registers, spills and the largest number of threads; module and function are the binary."""
        return binary, binary, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """The launcher of one kernel. It asks for the active GPU at each launch, because Triton keeps the launcher."""
        self.on_launcher(source, metadata)
        return lambda *args: driver.active.launch(*args)

    def launch(self, x: int, y: int, z: int, stream: int, function: bytes, *rest: Any) -> None:
        """Call the launch hooks, and record the launch if `keep` is set."""
        (_, metadata, enter, leave), args = rest[:4], rest[4:]
        if enter is not None:
            enter(metadata)
        if self.keep:
            self.launches.append(RecordedLaunch((x, y, z), function, args))
        if leave is not None:
            leave(metadata)


@contextmanager
def absent_gpu(arch: int | str = 90, *, keep: bool = True, fresh: bool = False) -> Iterator[AbsentGPU]:
    """Within this block, Triton compiles for an absent GPU and launches on it; tensors may lie anywhere.

    Args:
        arch: the compute capability (80, 90, 100, ...), or AMD's name ("gfx942").
        keep: whether launches are recorded.
        fresh: as of `AbsentGPU`.
    """
    gpu = AbsentGPU(arch, keep=keep, fresh=fresh)
    chooser.generation += 1  # calls that were bound before hold kernels of another architecture
    try:
        with _active(gpu):
            yield gpu
    finally:
        chooser.generation += 1


@contextmanager
def _active(gpu: AbsentGPU) -> Iterator[None]:
    """Within this block, Triton asks an absent GPU what to compile for."""
    before = driver._active
    driver.set_active(gpu)
    try:
        yield
    finally:
        driver._active = before


def compile_call(kernel: Any, config: TileConfig, arch: int | str, *args: Any) -> Any:
    """Compile the kernel that a launch with these arguments would run, specialised for them by Triton's own JIT.

    Args:
        kernel: a `@triton.jit` function.
        config: its warps and stages.
        arch: what to compile for.
        args: all of the kernel's arguments in order; tensors may lie on the meta device.
    """
    with _active(AbsentGPU(arch)):
        return kernel.warmup(*args, grid=(1,), num_warps=config.num_warps, num_stages=config.num_stages)
