"""The one place that launches: by Triton the first time, afterwards straight to what Triton compiled."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel

from lc_triton.errors import MiscompiledError
from lc_triton.launch.ptx_scan import marks
from lc_triton.tiles.config import TileConfig

# On AMD's GPUs Triton also specialises for memory that offsets of 32 bits reach.
BY_SIZE = torch.version.hip is not None

# Kernels whose PTX was scanned and bears no mark, by the hash that Triton knows them by.
_sound: set[str] = set()

# What was compiled for earlier launches, by everything about their arguments that Triton specialises a kernel for.
Compiled = dict[tuple[Any, ...], CompiledKernel]


def launch(compiled: Compiled, kernel: Any, grid: int, config: TileConfig, *args: Any) -> None:
    """Launch a kernel on a one-dimensional grid, on the device of its first argument.

    Triton binds, classifies and prints all arguments at each launch to find what it compiled for such ones; here that
    is one look-up. What Triton compiles is scanned for known miscompilations before it is launched.

    Args:
        compiled: of earlier launches of the same tile and device; a new kernel goes in.
        kernel: a `@triton.jit` function.
        grid: how many programs.
        config: its warps and stages.
        args: all of the kernel's arguments in order, the constants too.

    Raises:
        MiscompiledError: the installed Triton compiles the kernel wrongly for this tile; nothing was launched.
    """
    key = (kernel, *map(_kind, args))
    with torch.cuda.device_of(args[0]):  # Triton launches on the current device, which need not be the tensor's
        known = compiled.get(key)
        if known is not None:
            known[grid, 1, 1](*args)
            return
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        _scan(kernel, config, kernel.warmup(*args, grid=(grid,), **options))
        fresh = kernel[(grid,)](*args, **options)
    if isinstance(fresh, CompiledKernel):  # an interpreted kernel returns nothing
        compiled[key] = fresh


def _scan(kernel: Any, config: TileConfig, compiled: Any) -> None:
    """Refuse a kernel that bears the mark of a miscompilation; each is scanned once, some 5 ms."""
    if not isinstance(compiled, CompiledKernel) or compiled.hash in _sound:  # an interpreted kernel compiles nothing
        return
    found = marks(compiled.asm.get("ptx", ""))  # AMD's compiler writes none
    if found:
        version, name = triton.__version__, kernel.fn.__name__
        raise MiscompiledError(version=version, kernel=name, tile=config, mark=found[0])
    _sound.add(compiled.hash)


def _kind(arg: Any) -> Any:
    """What of an argument decides which kernel it needs: of a pointer its type and alignment, of a number all of it."""
    if isinstance(arg, Tensor):
        if BY_SIZE:
            return arg.dtype, arg.data_ptr() % 16 == 0, arg.untyped_storage().nbytes() < 2**31
        return arg.dtype, arg.data_ptr() % 16 == 0
    # A tensor descriptor's box follows from the tile.
    return arg if arg is None or isinstance(arg, (int, tuple)) else type(arg)
