"""Builds, checks and times tiles on a GPU."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch

from lc_triton.search import scratch
from lc_triton.search.accuracy import Judge
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.task import Task

MAX_SETS = 256
WARM_SECONDS = 0.03
# Shorter than this, the events' own cost would show.
LEAST_US = 200.0


class GpuBench:
    """The tiles of one task on one GPU.

    Launches use so many sets of tensors in turn that none is still in the L2 cache at its next launch, as in a network
    whose other layers ran in between. They are replayed as one CUDA graph, which excludes the host's time.

    Args:
        task: the kernel.
        gpu: index of the GPU.
    """

    def __init__(self, task: Task, gpu: int) -> None:
        self._task = task
        self._device = torch.device("cuda", gpu)
        # The caller may be in the middle of a backward, under autocast or in inference mode.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cuda", enabled=False):
            first = scratch.make(task, self._device)
            self._judge = Judge(task, first)
        sets = _sets(task, gpu)
        self._sets = [first] + [{k: v.clone() for k, v in first.items()} for _ in range(sets - 1)]
        self._stream = torch.cuda.Stream(self._device)

    def compile(self, configs: Sequence[TileConfig]) -> None:
        """Build tiles in parallel and run none; a tile that cannot be built fails in `check`."""

        def build(config: TileConfig) -> None:
            with suppress(Exception), torch.cuda.device(self._device):
                scratch.bind(self._task, self._sets[0], config)

        with ThreadPoolExecutor(min(len(configs), os.cpu_count() or 1)) as threads:
            list(threads.map(build, configs))

    def check(self, config: TileConfig) -> None:
        """Raise `Disagreement` for wrong results, or the error of a kernel that cannot run."""
        with torch.inference_mode(False), torch.no_grad():
            self._judge.check(config)

    def time(self, configs: Sequence[TileConfig], rounds: int) -> list[list[float]]:
        """Microseconds of a launch, `rounds` times for each tile, the tiles in turn."""
        torch.cuda.synchronize(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            graphs = [self._captured(config) for config in configs]
            self._warm()
            # The first replay shows how many replays make an interval that is long enough to measure.
            repeats = [math.ceil(LEAST_US / replay(graph, 1)) for graph in graphs]
            times: list[list[float]] = [[] for _ in configs]
            for _ in range(rounds):
                for graph, repeat, taken in zip(graphs, repeats, times, strict=True):
                    taken.append(replay(graph, repeat) / (repeat * len(self._sets)))
        return times

    def _captured(self, config: TileConfig) -> torch.cuda.CUDAGraph:
        """One launch on each set, as a graph."""
        graph = torch.cuda.CUDAGraph()
        # The rules of a capture apply to this thread only: others may be loading data.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for tensors in self._sets:
                scratch.run(self._task, tensors, config)
        finally:
            graph.capture_end()
        return graph

    def _warm(self) -> None:
        """Multiply until the GPU's clocks have risen: they fall while tiles compile."""
        a = torch.ones(2048, 2048, dtype=torch.float16, device=self._device)
        end = time.perf_counter() + WARM_SECONDS
        while time.perf_counter() < end:
            for _ in range(10):
                torch.mm(a, a)
            torch.cuda.synchronize(self._device)


def _sets(task: Task, gpu: int) -> int:
    """The number of sets whose bytes are twice the L2 cache, within half of the free memory."""
    one = max(1, scratch.nbytes(task))
    cache = torch.cuda.get_device_properties(gpu).L2_cache_size
    free, _ = torch.cuda.mem_get_info(gpu)
    return max(1, min(math.ceil(2 * cache / one), free // 2 // one, MAX_SETS))


def replay(graph: torch.cuda.CUDAGraph, repeat: int) -> float:
    """Microseconds of `repeat` replays of a graph."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeat):
        graph.replay()
    end.record()
    end.synchronize()
    return max(1e3 * float(start.elapsed_time(end)), 1e-3)
