"""The tiles of one kernel, compiled and simulated: which are tried, and which is the fastest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lc_triton.core.problem import Problem
from lc_triton.errors import first_line
from lc_triton.search.strategy import FIRST, PARENTS
from lc_triton.simulator import constants_of, simulate
from lc_triton.tiles import model
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import Device
from lc_triton.tiles.space import variants
from lc_triton.tiles.task import Task

if TYPE_CHECKING:
    from lc_triton.launch.disassembly import Disassembly

# The simulated microseconds of a tile, or an exception that says why it cannot be used.
SimulateTile = Callable[[Task, Device, TileConfig], float]


class UnsuitableTileError(Exception):
    """A tile that compiles to a kernel that should not, or could not, be launched."""


@dataclass
class Found:
    """The result of one kernel's search.

    Args:
        times: simulated microseconds of each tile.
        failed: tiles that could not be compiled or simulated, or should not be launched, and why.
        finished: whether every candidate was tried.
    """

    times: dict[TileConfig, float] = field(default_factory=dict)
    failed: dict[TileConfig, str] = field(default_factory=dict)
    finished: bool = False

    @property
    def ranking(self) -> list[TileConfig]:
        """The tiles that could be simulated, the fastest first; equals in the order of the model."""
        return sorted(self.times, key=self.times.__getitem__)

    @property
    def tried(self) -> int:
        """How many tiles were compiled."""
        return len(self.times) + len(self.failed)


def search(
    task: Task,
    device: Device,
    simulate_tile: SimulateTile,
    go_on: Callable[[Found], bool] = lambda _: True,
    known: Sequence[TileConfig] = (),
) -> Found:
    """Simulate the model's best candidates, then the neighbours of the fastest.

    Args:
        task: the kernel.
        device: what it would run on.
        simulate_tile: the simulated microseconds of a tile.
        go_on: asked before each tile; the first tile that can be simulated is always waited for.
        known: tiles to try before the model's, such as the best of a search that was cut short.

    Example:
        >>> from lc_triton.core.geometry import Geometry
        >>> from lc_triton.tiles.device import by_name
        >>> task = Task("forward", Geometry.make((8, 8), 16, 16, 3), 32, "float16", "float16")
        >>> search(task, by_name("h200"), lambda task, device, config: 5.0).finished
        True
    """
    found = Found()

    def try_all(configs: list[TileConfig]) -> bool:
        for config in configs:
            if config in found.times or config in found.failed:
                continue
            if found.times and not go_on(found):
                return False
            try:
                found.times[config] = simulate_tile(task, device, config)
            except Exception as error:  # the compiler refuses the tile, or its code is not for a launch
                found.failed[config] = first_line(error)
        return True

    if not try_all([*known, *(config for _, config in model.ranked(task, device)[:FIRST])]):
        return found
    near = [
        variant
        for parent in found.ranking[:PARENTS]
        for variant in variants(task, device, parent)
        if not variant.descriptor  # the simulator does not know how long boxes take
    ]
    found.finished = try_all(near)
    return found


def compile_and_simulate(task: Task, device: Device, config: TileConfig) -> float:
    """The simulated microseconds of a launch with a tile, compiled for the device; imports triton.

    Raises:
        UnsuitableTileError: registers spill, shared memory does not suffice, or Triton compiles the kernel wrongly.
        Exception: the tile cannot be compiled or simulated.
    """
    from lc_triton.launch.build import build
    from lc_triton.launch.disassembly import disassemble
    from lc_triton.launch.layout import update_of
    from lc_triton.launch.plan import kernel_of

    problem = Problem(task.geometry, backend="triton", precision=task.precision)
    dtype, weight_dtype = getattr(torch, task.dtype), getattr(torch, task.weight_dtype)
    types: dict[str, Any] = {"dtype": dtype, "weight_dtype": weight_dtype, "batch": task.batch}
    state_dtype = None if task.state_dtype is None else getattr(torch, task.state_dtype)
    types |= {"update": update_of(task), "state_dtype": state_dtype}
    try:
        compiled = build(task.pass_name, problem, config, device.arch, **types)
    finally:
        kernel_of(task.pass_name, task.geometry).device_caches.clear()  # thousands of kernels would not fit in memory
    code = disassemble(compiled)
    check_suitable(compiled.asm["ptx"], code, device)
    return simulate(task, config, code, constants_of(device)).microseconds


def check_suitable(ptx: str, code: Disassembly, device: Device) -> None:
    """Check that a kernel may be launched.

    Raises:
        UnsuitableTileError: with the reason.
    """
    from lc_triton.launch.ptx_scan import marks

    if found := marks(ptx):
        raise UnsuitableTileError(f"Triton compiles it wrongly ({found[0]})")
    if code.spills:
        raise UnsuitableTileError("registers are spilled")
    if code.shared_bytes > device.shared_bytes:
        raise UnsuitableTileError("shared memory does not suffice")
