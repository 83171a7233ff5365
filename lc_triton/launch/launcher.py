"""The one place that launches: Triton compiles a kernel once, and later launches go straight to what it compiled."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver

from lc_triton.errors import MiscompiledError
from lc_triton.launch.ptx_scan import marks
from lc_triton.tiles.config import TileConfig

# On AMD's GPUs Triton also specialises for memory that offsets of 32 bits reach.
BY_SIZE = torch.version.hip is not None

# Hashes (Triton's) of kernels whose PTX was scanned and has no mark.
_sound: set[str] = set()


class Launch:
    """A compiled kernel with its grid and constants: a call takes the tensors alone, and reads only their pointers.

    Triton binds, classifies and prints all arguments at each launch to find what it compiled for such ones. A call of
    this class does none of that, so its tensors must have the dtypes and the alignment that it was made for.

    Args:
        kernel: a `@triton.jit` function.
        grid: how many programs.
        config: its warps and stages.
        tensors: the kernel's first arguments, or tensors without memory that have their dtypes.
        constants: the rest of its arguments, numbers and compile-time tuples.
        device: of the tensors.

    Raises:
        MiscompiledError: the installed Triton compiles the kernel wrongly for this tile.
    """

    __slots__ = (
        "_compiled",
        "_constants",
        "_device",
        "_driver",
        "_function",
        "_grid",
        "_interpreted",
        "_metadata",
        "_run",
    )

    def __init__(
        self,
        kernel: Any,
        grid: int,
        config: TileConfig,
        tensors: tuple[Any, ...],
        constants: tuple[Any, ...],
        device: torch.device,
    ) -> None:
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        self._grid, self._constants = grid, constants
        self._device = device.index if device.type == "cuda" else None
        self._interpreted: Any = None
        with torch.cuda.device(-1 if self._device is None else self._device):
            compiled: Any = kernel.warmup(*tensors, *constants, grid=(grid,), **options)
            if not isinstance(compiled, CompiledKernel):  # an interpreted kernel compiles nothing
                self._interpreted = lambda *args: kernel[(grid,)](*args, *constants, **options)
                return
            _scan(kernel, config, compiled)
            self._compiled, self._run = compiled, compiled.run  # which loads the binary on the device
            self._driver = driver.active
        self._function, self._metadata = compiled.function, compiled.packed_metadata

    def __call__(self, *tensors: Any) -> None:
        """Launch on the current stream of the tensors' device."""
        if self._interpreted is not None:
            self._interpreted(*tensors)
            return
        device = self._driver.get_current_device()
        if self._device is not None and device != self._device:  # Triton launches on the current device
            with torch.cuda.device(self._device):
                return self(*tensors)
        enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):  # hooks of a profiler
            self._compiled[self._grid, 1, 1](*tensors, *self._constants)
            return
        stream = self._driver.get_current_stream(device)
        self._run(
            self._grid, 1, 1, stream, self._function, self._metadata, None, None, None, *tensors, *self._constants
        )


def reads_memory_alone(bound: object) -> bool:
    """Whether a bound pass is one launch, which ignores the shapes and strides of its tensors."""
    return isinstance(bound, Launch)


# The launches of one tile on one device, by everything about their arguments that Triton specialises a kernel for.
Launches = dict[tuple[Any, ...], Launch]


def prepare(
    launches: Launches,
    kernel: Any,
    grid: int,
    config: TileConfig,
    tensors: tuple[Any, ...],
    constants: tuple[Any, ...],
    device: torch.device,
) -> Launch:
    """The launch of a kernel on a one-dimensional grid, from `launches` if it is there: arguments as of `Launch`."""
    key = kernel, grid, *map(_kind, tensors), constants
    launch = launches.get(key)
    if launch is None:
        launch = launches[key] = Launch(kernel, grid, config, tensors, constants, device)
    return launch


def _scan(kernel: Any, config: TileConfig, compiled: CompiledKernel) -> None:
    """Refuse a kernel that bears the mark of a miscompilation; each is scanned once, some 5 ms."""
    if compiled.hash in _sound:
        return
    found = marks(compiled.asm.get("ptx", ""))  # AMD's compiler writes none
    if found:
        version, name = triton.__version__, kernel.fn.__name__
        raise MiscompiledError(version=version, kernel=name, tile=config, mark=found[0])
    _sound.add(compiled.hash)


def _kind(arg: Any) -> Any:
    """The type and alignment of a tensor, which decide which kernel it needs; a descriptor's box follows the tile."""
    if not isinstance(arg, Tensor):
        return None if arg is None else type(arg)
    if BY_SIZE:
        return arg.dtype, arg.data_ptr() % 16 == 0, arg.untyped_storage().nbytes() < 2**31
    return arg.dtype, arg.data_ptr() % 16 == 0
