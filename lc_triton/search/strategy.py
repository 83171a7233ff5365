"""The search over tiles: which are tried, and which is the fastest. A `Bench` compiles, checks and times them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lc_triton.errors import first_line
from lc_triton.search.crashes import is_lost
from lc_triton.tiles import model
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import Device
from lc_triton.tiles.space import variants
from lc_triton.tiles.task import Task

FIRST = 24  # the model's best, tried first
PARENTS = 3  # of those, the fastest, whose neighbours are tried too
FINALISTS = 4  # are timed a second time, in turn, with the model's choice
TOGETHER = 8  # are compiled at once: few enough that the time limit is kept, and the GPU does not idle long
TRIAL_ROUNDS, FINAL_ROUNDS = 5, 40


class Disagreement(Exception):
    """A candidate's numbers are not those of the definition."""


class LostGPU(Exception):
    """The GPU cannot be used by this process any more, since one of some tiles ran."""

    def __init__(self, tiles: Sequence[TileConfig], error: Exception) -> None:
        super().__init__(first_line(error))
        self.tiles, self.error = list(tiles), error


class Bench(Protocol):
    """Compiles, checks and times the tiles of one task."""

    def compile(self, configs: Sequence[TileConfig]) -> None:
        """Build tiles in parallel and run none; a tile that cannot be built fails in `check`."""

    def check(self, config: TileConfig) -> None:
        """Raise `Disagreement` for wrong results, or the error of a kernel that cannot run."""

    def time(self, configs: Sequence[TileConfig], rounds: int) -> list[list[float]]:
        """Microseconds of a launch, `rounds` times for each tile, the tiles in turn."""


@dataclass
class Outcome:
    """The result of a search.

    Args:
        times: of the tiles that ran and agreed, microseconds.
        wrong: tiles that disagreed with the definition, and by how much.
        failed: tiles that could not be built or run, and why.
        finals: of the finalists, timed side by side; empty when the search was cut short.
    """

    times: dict[TileConfig, list[float]] = field(default_factory=dict)
    wrong: dict[TileConfig, str] = field(default_factory=dict)
    failed: dict[TileConfig, str] = field(default_factory=dict)
    finals: dict[TileConfig, list[float]] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the search was complete: neither the time limit nor the keyboard ended it."""
        return bool(self.finals)

    @property
    def best_times(self) -> dict[TileConfig, list[float]]:
        """The times that tiles are ranked by: of the finals, or without finals of the trials."""
        return self.finals or self.times

    def median(self, config: TileConfig) -> float:
        """Median of `best_times`, microseconds."""
        return statistics.median(self.best_times[config])

    @property
    def ranking(self) -> list[TileConfig]:
        """The tiles that ran and agreed, the least median first."""
        return sorted(self.best_times, key=self.median)

    @property
    def tried(self) -> int:
        """How many tiles were built."""
        return len(self.times) + len(self.wrong) + len(self.failed)


def search(
    task: Task,
    device: Device,
    bench: Bench,
    seconds: float,
    *,
    known: Sequence[TileConfig] = (),
    left_out: Collection[TileConfig] = (),
    outcome: Outcome | None = None,
    clock: Callable[[], float] = time.monotonic,
    on_trial: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:
    """Time the model's best candidates, then the neighbours of the fastest, then the finalists side by side.

    Args:
        task: the kernel.
        device: what it runs on.
        bench: compiles, checks and times.
        seconds: after so many no further candidate is begun, once one has been timed.
        known: tiles to try before the model's, such as the one in use.
        left_out: tiles that are not tried.
        outcome: filled as the search goes on, so that an interrupted caller has what was measured.
        clock: seconds.
        on_trial: called after each candidate.

    Raises:
        LostGPU: a tile's kernel ended this process's use of the GPU; `outcome` has what was measured before.

    Example:
        >>> from lc_triton.core.geometry import Geometry
        >>> from lc_triton.tiles.device import by_name
        >>> class Equal:
        ...     def compile(self, configs): pass
        ...     def check(self, config): pass
        ...     def time(self, configs, rounds): return [[1.0] * rounds for _ in configs]
        >>> task = Task("forward", Geometry.make((8, 8), 16, 16, 3), 32, "float16", "float16")
        >>> search(task, by_name("h200"), Equal(), 60).finished
        True
    """
    outcome = outcome if outcome is not None else Outcome()
    deadline = clock() + seconds

    def out_of_time() -> bool:
        return bool(outcome.times) and clock() >= deadline

    ranked = model.ranked(task, device)
    first = list(dict.fromkeys([*known, *(config for _, config in ranked[:FIRST])]))
    first = [config for config in first if config not in left_out]
    _try(first, bench, outcome, out_of_time, on_trial)
    near = (variant for parent in outcome.ranking[:PARENTS] for variant in variants(task, device, parent))
    tried = {*first, *left_out}
    _try([config for config in dict.fromkeys(near) if config not in tried], bench, outcome, out_of_time, on_trial)
    if outcome.times and not out_of_time():
        choice = ranked[0][1]
        finalists = outcome.ranking[:FINALISTS]
        finalists += [choice] if choice in outcome.times and choice not in finalists else []
        try:
            outcome.finals = dict(zip(finalists, bench.time(finalists, FINAL_ROUNDS), strict=True))
        except Exception as error:
            if is_lost(error):
                raise LostGPU(finalists, error) from error
            raise
    return outcome


def _try(
    configs: Sequence[TileConfig],
    bench: Bench,
    outcome: Outcome,
    out_of_time: Callable[[], bool],
    on_trial: Callable[[Outcome], None],
) -> None:
    """Build some together, check and time each, until all are done or time is out."""
    for i in range(0, len(configs), TOGETHER):
        if out_of_time():
            return
        bench.compile(configs[i : i + TOGETHER])
        for config in configs[i : i + TOGETHER]:
            if out_of_time():
                return
            try:
                bench.check(config)
                (outcome.times[config],) = bench.time([config], TRIAL_ROUNDS)
            except Disagreement as error:
                outcome.wrong[config] = str(error)
            except Exception as error:  # the compiler or the driver refuses the tile
                if is_lost(error):
                    raise LostGPU([config], error) from error
                outcome.failed[config] = first_line(error)
            on_trial(outcome)
