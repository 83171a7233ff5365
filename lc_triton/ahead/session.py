"""Compile everything that is launched inside a block into a folder, for a GPU that need not be here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lc_triton.ahead.report import Precompiled
from lc_triton.core.backend import compiling_ahead, interpreting
from lc_triton.errors import MissingTritonError, PrecompileError
from lc_triton.tiles.chooser import chooser
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import Device, assuming
from lc_triton.tiles.select import select
from lc_triton.tiles.task import Task


@contextmanager
def collecting(device: Device, folder: Path | None) -> Iterator[Precompiled]:
    """Compile what is launched on tensors of the meta device inside the block, and write down what it is for.

    Args:
        device: the GPU to compile for.
        folder: where the kernels go; None for the folder that Triton itself would use.

    Raises:
        MissingTritonError: triton is not installed.
        PrecompileError: the kernels are interpreted, so that nothing is compiled.
    """
    import importlib.util

    if importlib.util.find_spec("triton") is None:
        raise MissingTritonError.of("precompile")
    if interpreting():
        reason = "TRITON_INTERPRET=1 interprets the kernels and compiles none: unset it"
        raise PrecompileError(name="kernels cannot be compiled ahead", reason=reason)
    from triton import knobs

    from lc_triton.ahead import manifest
    from lc_triton.launch.absent import absent_gpu
    from lc_triton.launch.host_module import HostModules

    found = Precompiled(Path(folder or knobs.cache.dir).expanduser().absolute(), device)
    found.folder.mkdir(parents=True, exist_ok=True)
    modules, start = HostModules(), time.perf_counter()

    def choose(task: Task, _: int) -> TileConfig:
        found.tiles[task] = select(task, device).config
        return found.tiles[task]

    def count(*args: Any, cache_hit: bool = False, **kwargs: Any) -> None:
        if cache_hit:
            found.on_file += 1
        else:
            found.compiled += 1

    with knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.dir = str(found.folder)
        knobs.compilation.listener = count
        with (
            compiling_ahead(),
            assuming(device),
            chooser.asking(choose),
            absent_gpu(device.arch, keep=False, fresh=True) as gpu,
        ):
            gpu.on_launcher = modules.add_launcher
            yield found
        found.host_module = isinstance(device.arch, int) and modules.build()
    found.seconds = time.perf_counter() - start
    manifest.write(found)
