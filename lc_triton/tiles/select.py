"""Select the tile of a launch: a measured one, a simulated one, or the analytic model's choice; none is timed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lc_triton.tiles import paths, store
from lc_triton.tiles.config import Pass, TileConfig
from lc_triton.tiles.device import Device
from lc_triton.tiles.entries import Measured, Simulated
from lc_triton.tiles.key import ProblemKey
from lc_triton.tiles.limits import may_launch
from lc_triton.tiles.model import choose
from lc_triton.tiles.task import Task

Source = Literal["user", "shipped", "architecture", "simulated", "model"]


@dataclass(frozen=True)
class Choice:
    """A tile, its source, and the entry of a file that it comes from.

    Args:
        config: the tile.
        source: "user" or "shipped", measured on this kind of GPU; "architecture", measured on another GPU of the same
            architecture, and shipped; "simulated", for this kind of GPU; "model", predicted.
        path: the file it came from.
        key: the problem it was measured or simulated for: this one, or the same at half or twice the batch.
        measured: what was measured, or None.
        stale: whether the kernel's code has changed since it was measured.
        simulated: what was simulated, or None.
    """

    config: TileConfig
    source: Source
    path: Path | None = None
    key: ProblemKey | None = None
    measured: Measured | None = None
    stale: bool = False
    simulated: Simulated | None = None


def select(task: Task, device: Device) -> Choice:
    """The tile for a kernel, by the order of `Choice.source`; the same arguments and files give the same answer.

    A tile on file that `limits.may_launch` leaves out is passed over.

    Args:
        task: the kernel.
        device: what it runs on.

    Example:
        >>> from lc_triton.core.geometry import Geometry
        >>> from lc_triton.tiles.device import by_name
        >>> layer = Geometry.make((8, 8), 16, 16, 3)
        >>> select(Task("forward", layer, 32, "float32", "float32"), by_name("a100")).source
        'model'
    """
    files = list(_files(task.pass_name, device))
    keys = _keys(task.key)
    kernel_hash = store.kernel_hash_of(task)
    for source, path in files:
        entries = store.read_or_warn(path)
        for key in keys:
            measured = entries.get(key)
            if measured is not None and may_launch(task, device, measured.config):
                return Choice(measured.config, source, path, key, measured, measured.kernel_hash != kernel_hash)
    for source, path in files:
        if source == "architecture":  # what was simulated for another GPU
            continue
        entries = store.read_or_warn(path)
        for key in keys:
            simulated = entries.simulated.get(key)
            sound = simulated is not None and may_launch(task, device, simulated.config)
            if simulated is not None and sound and simulated.kernel_hash == kernel_hash:
                return Choice(simulated.config, "simulated", path, key, simulated=simulated)
    return Choice(choose(task, device), "model")


def _keys(wanted: ProblemKey) -> tuple[ProblemKey, ...]:
    """The problems whose tiles serve: one for twice the batch, or half of it, is nearer the best than the model's."""
    return wanted, wanted.at(2 * wanted.batch), wanted.at(max(1, wanted.batch // 2))


def _files(pass_name: Pass, device: Device) -> Iterator[tuple[Source, Path]]:
    """The files that may hold a tile, the most specific first."""
    own = paths.known_user_configs()
    if own is not None:
        yield "user", store.file_of(own, device.arch_name, device.folder, pass_name)
    shipped = paths.shipped_configs()
    exact = store.file_of(shipped, device.arch_name, device.folder, pass_name)
    yield "shipped", exact
    for path in sorted((shipped / device.arch_name).glob(f"*/{pass_name}.json")):
        if path != exact:
            yield "architecture", path
