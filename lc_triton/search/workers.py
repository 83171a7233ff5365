"""Searches of several kernels at a time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event

import torch

from lc_triton.search.simulated import Found, SimulateTile, search
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import Device
from lc_triton.tiles.task import Task


@dataclass
class Progress:
    """What the processes of a search share.

    Args:
        deadline: of all, on the machine's monotonic clock.
        jobs: kernels at a time.
        kernels: to search.
        stop: set when every search is to end.
        begun, tried: kernels that were begun, and tiles that were compiled.
    """

    deadline: float
    jobs: int
    kernels: int
    stop: Event
    begun: Synchronized[int]
    tried: Synchronized[int]

    @classmethod
    def make(cls, deadline: float, jobs: int, kernels: int) -> Progress:
        """At the beginning; processes are started afresh, because torch's threads do not survive a fork."""
        context = multiprocessing.get_context("spawn")
        return cls(deadline, jobs, kernels, context.Event(), context.Value("i", 0), context.Value("i", 0))

    def begin(self) -> float:
        """Count a kernel as begun; the time at which its share of the time that is left is over."""
        with self.begun.get_lock():
            to_come = self.kernels - self.begun.value
            self.begun.value += 1
        now = time.monotonic()
        return now + max(0.0, self.deadline - now) * min(1.0, self.jobs / to_come)


_progress: Progress | None = None


def share(progress: Progress) -> None:
    """Let the searches of this process use a `Progress`."""
    global _progress
    _progress = progress


def processes(jobs: int, progress: Progress) -> Executor:
    """Processes for `search_here`; none outlives this one."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, initializer=_begin_process, initargs=(progress,))


def _begin_process(progress: Progress) -> None:
    share(progress)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that started it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def search_here(task: Task, device: Device, simulate_tile: SimulateTile, known: Sequence[TileConfig] = ()) -> Found:
    """Search one kernel in this process until its share of the time is over.

    What Triton keeps of the compiled tiles is thrown away.
    """
    progress = _progress
    assert progress is not None
    if progress.stop.is_set() or time.monotonic() >= progress.deadline:
        return Found()
    end = progress.begin()

    def counted(task: Task, device: Device, config: TileConfig) -> float:
        with progress.tried.get_lock():
            progress.tried.value += 1
        return simulate_tile(task, device, config)

    with _own_triton_cache():
        return search(task, device, counted, lambda _: not progress.stop.is_set() and time.monotonic() < end, known)


@contextmanager
def _own_triton_cache() -> Iterator[None]:
    before = os.environ.get("TRITON_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["TRITON_CACHE_DIR"]
            else:
                os.environ["TRITON_CACHE_DIR"] = before


class Interrupts:
    """Ctrl-C, which only this process obeys: workers inherit that they ignore it, and end by `Progress.stop`."""

    def __init__(self) -> None:
        self._before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def heed(self) -> None:
        """Raise KeyboardInterrupt here from now on."""
        signal.signal(signal.SIGINT, self._before)


@contextmanager
def interrupts_ignored() -> Iterator[Interrupts]:
    """Ignore Ctrl-C in a block until `heed` is called; processes that start before that ignore it always."""
    interrupts = Interrupts()
    try:
        yield interrupts
    finally:
        interrupts.heed()
