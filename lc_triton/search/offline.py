"""Search tiles without a GPU: candidates are compiled, and their machine code is simulated."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from lc_triton.core.problem import Problem
from lc_triton.errors import first_line
from lc_triton.search.run import BAR, IN_USE
from lc_triton.search.strategy import FIRST, PARENTS
from lc_triton.simulator import VERSION, check_simulated, constants_of, simulate
from lc_triton.tiles import model, store
from lc_triton.tiles.config import PASSES, Pass, TileConfig
from lc_triton.tiles.device import Device
from lc_triton.tiles.entries import Simulated
from lc_triton.tiles.select import select
from lc_triton.tiles.space import variants
from lc_triton.tiles.task import Task

if TYPE_CHECKING:
    from lc_triton.launch.disassembly import Disassembly

REFRESH_SECONDS = 1.0

# The simulated microseconds of a tile, or an exception that says why it cannot be used.
SimulateTile = Callable[[Task, Device, TileConfig], float]
FileOf = Callable[[Pass], Path]


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


@dataclass
class Report:
    """The results of a search without a GPU, by the kernels' labels.

    Args:
        simulated: of each kernel whose tile was written.
        failed: why no tile of a kernel could be simulated.
        not_begun: the time was over before.
        on_file: finished earlier, and left alone.
    """

    simulated: dict[str, Found] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    not_begun: list[str] = field(default_factory=list)
    on_file: list[str] = field(default_factory=list)

    def to_text(self) -> str:
        """A summary in words."""
        cut = sum(not found.finished for found in self.simulated.values())
        lines = [f"{len(self.simulated)} simulated" + (f", {cut} of them cut short" if cut else "")]
        lines += [f"{len(self.on_file)} on file already"] if self.on_file else []
        lines += [f"{len(self.failed)} without a tile that can be simulated"] if self.failed else []
        lines += [f"{len(self.not_begun)} not begun"] if self.not_begun else []
        later = cut or self.not_begun
        return "; ".join(lines) + ("; the same command with --resume goes on" if later else "")


def tune_offline(
    tasks: Mapping[str, Task],
    device: Device,
    file_of: FileOf,
    seconds: float,
    *,
    jobs: int | None = None,
    resume: bool = False,
    simulate_tile: SimulateTile | None = None,
    pool: Callable[[int, Progress], Executor] | None = None,
) -> Report:
    """Search a tile for each task by simulated times, the time left shared evenly among those to come.

    Args:
        tasks: the kernels, by labels to show.
        device: the GPU, which need not be here.
        file_of: the file that a pass's tiles are merged into, each as soon as it is there.
        seconds: for all.
        jobs: kernels at a time, each in a process of its own; by default as many as there are cores.
        resume: leave alone what a finished search with this simulator and kernel source has put on file.
        simulate_tile: how a tile is timed: by default, `compile_and_simulate`.
        pool: makes what runs the searches: by default, processes.

    Raises:
        ArgumentValueError: a device that the simulator does not know, or a dtype.
        ConfigFileError: a file that cannot be written; nothing has been compiled.
        KeyboardInterrupt: after what was simulated has been written.
    """
    constants_of(device)
    for task in tasks.values():
        check_simulated(task)
    for pass_name in dict.fromkeys(task.pass_name for task in tasks.values()):
        store.check_writable(file_of(pass_name))
    report = Report()
    todo, report.on_file = _split(tasks, device, file_of, resume)
    jobs = min(jobs or os.cpu_count() or 1, max(1, len(todo)))
    progress = Progress.make(time.monotonic() + seconds, jobs, len(todo))
    running: dict[Future[Found], str] = {}

    def note(future: Future[Found]) -> None:
        label = running[future]
        _note(report, label, tasks[label], device, file_of, future.result())
        del running[future]

    with tqdm(total=len(todo), bar_format=BAR, disable=None) as bar, _interrupts_ignored() as interrupts:
        executor = (pool or _processes)(jobs, progress)
        try:
            for label in todo:
                future = executor.submit(_search_in_worker, tasks[label], device, simulate_tile or compile_and_simulate)
                running[future] = label
            interrupts.heed()
            while running:
                for future in wait(running, REFRESH_SECONDS, FIRST_COMPLETED).done:
                    note(future)
                    bar.update()
                left = tqdm.format_interval(max(0.0, progress.deadline - time.monotonic()))
                bar.set_postfix_str(f"{progress.tried.value} tiles; {left} left")
        finally:
            progress.stop.set()  # each worker ends with the tile that it is at
            executor.shutdown(cancel_futures=True)
            for future in list(running):
                if not future.cancelled() and future.exception() is None:
                    note(future)
    report.not_begun.sort(key=todo.index)
    return report


def plan(tasks: Mapping[str, Task], device: Device, file_of: FileOf, seconds: float, *, resume: bool) -> str:
    """Describe what `tune_offline` would do; nothing is compiled or written."""
    todo, on_file = _split(tasks, device, file_of, resume)
    lines = [
        f"{len(todo)} kernels to simulate on {device.full_name}" + (f"; {len(on_file)} on file" if on_file else "")
    ]
    for label in todo:
        lines.append(f"  {label}: in use is {IN_USE[select(tasks[label], device).source]}")
    lines.append(f"At most {seconds:g} s, into")
    used = {tasks[label].pass_name for label in todo}
    lines += [f"  {file_of(pass_name)}" for pass_name in PASSES if pass_name in used]
    return "\n".join(lines)


def search(
    task: Task, device: Device, simulate_tile: SimulateTile, go_on: Callable[[Found], bool] = lambda _: True
) -> Found:
    """Simulate the model's best candidates, then the neighbours of the fastest.

    Args:
        task: the kernel.
        device: what it would run on.
        simulate_tile: the simulated microseconds of a tile.
        go_on: asked before each tile; the first tile that can be simulated is always waited for.

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

    if not try_all([config for _, config in model.ranked(task, device)[:FIRST]]):
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
    from lc_triton.launch.passes import KERNELS

    problem = Problem(task.geometry, backend="triton", precision=task.precision)
    dtype, weight_dtype = getattr(torch, task.dtype), getattr(torch, task.weight_dtype)
    try:
        compiled = build(
            task.pass_name, problem, config, device.arch, dtype=dtype, weight_dtype=weight_dtype, batch=task.batch
        )
    finally:
        KERNELS[task.pass_name].device_caches.clear()  # thousands of kernels would not fit in memory
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


def entry_of(task: Task, device: Device, found: Found) -> Simulated:
    """The entry of a search's best tile; the search has at least one."""
    config, second = [*found.ranking, None][:2]
    assert config is not None
    choice_us = found.times.get(model.choose(task, device))
    return Simulated(
        config=config,
        simulated_us=_rounded(found.times[config]),
        choice_us=None if choice_us is None else _rounded(choice_us),
        roofline=_rounded(1e6 * model.roofline(task, device) / found.times[config]),
        runner_up=second,
        runner_up_us=None if second is None else _rounded(found.times[second]),
        tried=found.tried,
        finished=found.finished,
        date=datetime.now(timezone.utc).date().isoformat(),
        torch=metadata.version("torch"),
        triton=metadata.version("triton"),
        kernel_hash=store.kernel_hash(task.pass_name),
        simulator=VERSION,
        constants=asdict(constants_of(device)),
    )


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


def _processes(jobs: int, progress: Progress) -> Executor:
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


def _search_in_worker(task: Task, device: Device, simulate_tile: SimulateTile) -> Found:
    """Search one kernel until its share of the time is over; Triton's cache is thrown away with each search."""
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
        return search(task, device, counted, lambda _: not progress.stop.is_set() and time.monotonic() < end)


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


class _Interrupts:
    """Ctrl-C, which is for this process: its workers, which inherit that they ignore it, are told to end."""

    def __init__(self) -> None:
        self._before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def heed(self) -> None:
        """Raise KeyboardInterrupt here from now on."""
        signal.signal(signal.SIGINT, self._before)


@contextmanager
def _interrupts_ignored() -> Iterator[_Interrupts]:
    interrupts = _Interrupts()
    try:
        yield interrupts
    finally:
        interrupts.heed()


def _split(tasks: Mapping[str, Task], device: Device, file_of: FileOf, resume: bool) -> tuple[list[str], list[str]]:
    """Those to search, what was cut short coming last, and those on file whose search came to its end."""
    if not resume:
        return list(tasks), []
    constants = asdict(constants_of(device))
    todo: dict[str, bool] = {}
    finished = []
    for label, task in tasks.items():
        entry = store.read(file_of(task.pass_name)).simulated.get(task.key)
        if (
            entry is not None
            and entry.finished
            and entry.kernel_hash == store.kernel_hash(task.pass_name)
            and (entry.simulator, entry.constants) == (VERSION, constants)
        ):
            finished.append(label)
        else:
            todo[label] = entry is not None
    return sorted(todo, key=todo.__getitem__), finished


def _note(report: Report, label: str, task: Task, device: Device, file_of: FileOf, found: Found) -> None:
    """Write the result of a task, print it, and add it to the report."""
    if not found.tried:
        report.not_begun.append(label)
        return
    reasons = Counter(found.failed.values())
    if found.times:
        entry = entry_of(task, device, found)
        store.merge(file_of(task.pass_name), device.full_name, task.pass_name, {task.key: entry})
        report.simulated[label] = found
        text = f"{label}: simulated {entry.simulated_us:.1f} us"
        if entry.choice_us is not None:
            text += f", the model's pick takes {entry.choice_us / entry.simulated_us:.2f} times that"
        text += f"; {entry.roofline:.0%} of the limit; {found.tried} tiles compiled"
    else:
        report.failed[label] = ", ".join([*reasons][:3])
        text = f"{label}: no tile can be simulated, of {found.tried} compiled"
    tqdm.write(text)
    for reason, count in reasons.most_common():
        tqdm.write(f"  {count} failed: {reason}")


def _rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
