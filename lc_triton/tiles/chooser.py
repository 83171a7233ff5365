"""Choose a launch's tile: by `select`, or by a tuner inside `tuning()`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lc_triton.tiles.config import TileConfig
    from lc_triton.tiles.task import Task

_log = logging.getLogger("lc_triton.dispatch")


class Chooser:
    """Choose the tile of a launch that has none yet: by `select`, or by a tuner inside `asking`.

    Launches keep the tile together with `generation`, which changes when tiles must be chosen anew. There is one
    chooser for the process, because the backward of a layer runs in a thread of autograd's own.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._tuner: Callable[[Task, int], TileConfig] | None = None

    def __call__(self, task: Task, gpu: int) -> TileConfig:
        """The tile for a launch on the GPU with this index."""
        if self._tuner is not None:
            return self._tuner(task, gpu)
        from lc_triton.tiles.device import of_gpu
        from lc_triton.tiles.select import select

        choice = select(task, of_gpu(gpu))
        source = choice.source if choice.path is None else f"{choice.source}, {choice.path}"
        _log.debug("%s: %s (%s)", task, choice.config, source)
        return choice.config

    @contextmanager
    def asking(self, tuner: Callable[[Task, int], TileConfig]) -> Iterator[None]:
        """Let `tuner` choose tiles inside the `with` block."""
        before, self._tuner = self._tuner, tuner
        self.generation += 1
        try:
            yield
        finally:
            self._tuner = before
            self.generation += 1


chooser = Chooser()
