"""The machine that measures: a GPU, or a stand-in for one, which compiles and runs everything but gives no numbers."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from lc_triton.search.bench import replay
from lc_triton.search.strategy import Bench
from lc_triton.tiles import model
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import Device, of_gpu
from lc_triton.tiles.task import Task

LEAST_US = 200.0  # of one timed interval: in a shorter one the events' own cost would show
LEAST_ROUNDS, MOST_ROUNDS = 5, 200
WARM_CALLS = 3

Numbers = dict[str, float]


class Machine(Protocol):
    """Where tensors lie, and how what is done with them is timed and compared."""

    device: torch.device
    gpu: Device
    is_stand_in: bool

    def tensor(self, shape: Sequence[int], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        """Normal random numbers, made where they lie; the same from run to run."""

    def seed(self) -> None:
        """Begin the random numbers anew."""

    def check(self, compare: Callable[[], str | None]) -> str | None:
        """What a comparison of numbers says is wrong."""

    def error(self, got: Tensor, want: Tensor) -> float | None:
        """The distance of two tensors over the size of the second; None where there are no numbers."""

    def device_time(self, call: Callable[[int], object], turns: int, seconds: float) -> Numbers | None:
        """Microseconds of a call by the GPU's clock: a CUDA graph of `turns` calls, replayed."""

    def eager_time(self, call: Callable[[int], object], turns: int, seconds: float) -> Numbers | None:
        """Microseconds of a call by the host's clock, many in a row."""

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """What a call allocates at most."""

    def on_stream(self, call: Callable[[], Any]) -> Any:
        """The result of a call on a stream of its own."""

    def graphed(self, call: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The results of the replay of a captured call."""

    def free_bytes(self) -> int:
        """Memory that is free."""

    def release(self) -> None:
        """Give back what is not used any more."""

    def bench(self, task: Task) -> Bench:
        """What a search times tiles by."""


def summary(times: Sequence[float]) -> Numbers:
    """Median and percentiles of some times, in their own unit."""
    p20, _, _, p80 = statistics.quantiles(times, n=5, method="inclusive")
    return {"median_us": statistics.median(times), "p20_us": p20, "p80_us": p80, "rounds": len(times)}


def _all_turns(call: Callable[[int], object], turns: int) -> None:
    for turn in range(turns):
        call(turn)


class Gpu:
    """The GPU with index 0."""

    is_stand_in = False

    def __init__(self) -> None:
        self.device = torch.device("cuda", 0)
        self.gpu = of_gpu(0)
        self._generator = torch.Generator(self.device)

    def tensor(self, shape: Sequence[int], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(tuple(shape), device=self.device, dtype=torch.float32, generator=self._generator)
        return drawn.mul_(scale).to(dtype)

    def seed(self) -> None:
        self._generator.manual_seed(0)

    def check(self, compare: Callable[[], str | None]) -> str | None:
        return compare()

    def error(self, got: Tensor, want: Tensor) -> float | None:
        want = want.to(self.device, torch.float64)
        return float((got.double() - want).norm() / want.norm().clamp(min=1e-30))

    def device_time(self, call: Callable[[int], object], turns: int, seconds: float) -> Numbers | None:
        self.on_stream(lambda: _all_turns(call, turns))  # what is made at a first call is not captured
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            _all_turns(call, turns)
        once = replay(graph, 1)
        repeat = max(1, math.ceil(LEAST_US / once))
        times: list[float] = []
        end = time.monotonic() + seconds
        while len(times) < LEAST_ROUNDS or (time.monotonic() < end and len(times) < MOST_ROUNDS):
            times.append(replay(graph, repeat) / (repeat * turns))
        return summary(times)

    def eager_time(self, call: Callable[[int], object], turns: int, seconds: float) -> Numbers | None:
        for turn in range(WARM_CALLS):
            call(turn % turns)
        times: list[float] = []
        end = time.monotonic() + seconds
        while len(times) < LEAST_ROUNDS or (time.monotonic() < end and len(times) < MOST_ROUNDS):
            torch.cuda.synchronize()
            start = time.perf_counter()
            _all_turns(call, turns)
            torch.cuda.synchronize()
            times.append(1e6 * (time.perf_counter() - start) / turns)
        return summary(times)

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def on_stream(self, call: Callable[[], Any]) -> Any:
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            found = call()
        current.wait_stream(stream)
        return found

    def graphed(self, call: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        self.on_stream(call)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = call()
        for tensor in found.values():
            tensor.fill_(math.nan)
        graph.replay()
        return found

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info()[0])

    def release(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def bench(self, task: Task) -> Bench:
        from lc_triton.search.bench import GpuBench

        return GpuBench(task, 0)


class StandIn:
    """A GPU that is not here: tensors without memory, kernels compiled and launched into nothing, no numbers.

    Args:
        gpu: which.
    """

    is_stand_in = True

    def __init__(self, gpu: Device) -> None:
        self.device, self.gpu = torch.device("meta"), gpu

    def tensor(self, shape: Sequence[int], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def seed(self) -> None:
        pass

    def check(self, compare: Callable[[], str | None]) -> str | None:
        return None

    def error(self, got: Tensor, want: Tensor) -> float | None:
        return None

    def device_time(self, call: Callable[[int], object], turns: int, seconds: float) -> Numbers | None:
        call(0)
        return None

    def eager_time(self, call: Callable[[int], object], turns: int, seconds: float) -> Numbers | None:
        call(0)
        return None

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        call()
        return None

    def on_stream(self, call: Callable[[], Any]) -> Any:
        return call()

    def graphed(self, call: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return call()

    def free_bytes(self) -> int:
        return 1 << 60

    def release(self) -> None:
        pass

    def bench(self, task: Task) -> Bench:
        return Predicting(task, self.gpu)


class Predicting:
    """The bench of a stand-in: compiles nothing, and takes the model's times for times."""

    def __init__(self, task: Task, gpu: Device) -> None:
        self._task, self._gpu = task, gpu

    def compile(self, configs: Sequence[TileConfig]) -> None:
        pass

    def check(self, config: TileConfig) -> None:
        pass

    def time(self, configs: Sequence[TileConfig], rounds: int) -> list[list[float]]:
        return [[1e6 * model.predict(self._task, self._gpu, config)] * rounds for config in configs]


@contextmanager
def opened(stand_in: Device | None) -> Iterator[Machine]:
    """The GPU here, or within the block a stand-in for another."""
    if stand_in is None:
        yield Gpu()
        return
    from lc_triton.ahead.session import collecting

    with collecting(stand_in, None):  # so what it compiles can be used by the GPU that it stands for
        yield StandIn(stand_in)
