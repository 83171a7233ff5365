"""All times of a search, one JSON line a kernel: the data that the analytic model is checked with."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from lc_triton.errors import ConfigFileError
from lc_triton.search.strategy import Outcome
from lc_triton.tiles import model
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import Device
from lc_triton.tiles.task import Task


@dataclass(frozen=True)
class Timing:
    """The tiles of one kernel on one device.

    Args:
        device: its full name.
        task: the kernel.
        medians: microseconds of each tile that ran and agreed.
    """

    device: str
    task: Task
    medians: dict[TileConfig, float]

    @property
    def best(self) -> float:
        """The least median."""
        return min(self.medians.values())

    def choice_ratio(self, device: Device) -> float | None:
        """Time of the model's choice over the least time; None if that tile was not timed."""
        choice = model.choose(self.task, device)
        return self.medians[choice] / self.best if choice in self.medians else None


def check_writable(path: Path) -> None:
    """Make the file if there is none.

    Raises:
        ConfigFileError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise ConfigFileError(path=path, reason=f"it cannot be written ({error})") from error


def append(path: Path, device: Device, task: Task, outcome: Outcome) -> None:
    """Add the line of one search; times of finals count instead of the same tile's trial."""
    times = {**outcome.times, **outcome.finals}
    line = {
        "device": device.full_name,
        "task": task.to_json(),
        "medians": [[asdict(config), statistics.median(taken)] for config, taken in times.items()],
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[Timing]:
    """The timings of a file that `append` wrote.

    Raises:
        ConfigFileError: it cannot be read, or a line is something else.
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise ConfigFileError(path=path, reason=f"it cannot be read ({error})") from error
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            medians = {TileConfig.from_json(config): float(us) for config, us in content["medians"]}
            found.append(Timing(content["device"], Task.from_json(content["task"]), medians))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigFileError(path=path, reason=f"line {number} is no timing ({error})") from error
    return found
