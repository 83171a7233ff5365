"""Search tiles of many kernels without a GPU, within a time limit, and file each result at once."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

from lc_triton.search.run import BAR, IN_USE
from lc_triton.search.simulated import Found, SimulateTile, compile_and_simulate
from lc_triton.search.workers import Progress, interrupts_ignored, processes, search_here
from lc_triton.simulator import VERSION, check_simulated, constants_of
from lc_triton.tiles import model, store
from lc_triton.tiles.config import PASSES, Pass, TileConfig
from lc_triton.tiles.device import Device
from lc_triton.tiles.entries import Simulated
from lc_triton.tiles.select import select
from lc_triton.tiles.task import Task

REFRESH_SECONDS = 1.0
FileOf = Callable[[Pass], Path]


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

    with tqdm(total=len(todo), bar_format=BAR, disable=None) as bar, interrupts_ignored() as interrupts:
        executor = (pool or processes)(jobs, progress)
        try:
            for label in todo:
                task = tasks[label]
                known = _known(task, device, file_of(task.pass_name))
                future = executor.submit(search_here, task, device, simulate_tile or compile_and_simulate, known)
                running[future] = label
            interrupts.heed()
            while running:
                done = wait(running, REFRESH_SECONDS, FIRST_COMPLETED).done
                for future in [future for future in running if future in done]:
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
        kernel_hash=store.kernel_hash_of(task),
        simulator=VERSION,
        constants=asdict(constants_of(device)),
    )


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
            and entry.kernel_hash == store.kernel_hash_of(task)
            and (entry.simulator, entry.constants) == (VERSION, constants)
        ):
            finished.append(label)
        else:
            todo[label] = entry is not None
    return sorted(todo, key=todo.__getitem__), finished


def _known(task: Task, device: Device, path: Path) -> list[TileConfig]:
    """The tiles that earlier searches of the same kernel source have found for the same sizes, its own first.

    Those of the other 16-bit type, whose kernels have nearly the same instructions, and of other GPUs of the
    architecture, whose folders lie beside that of the file.
    """
    other = {"float16": "bfloat16", "bfloat16": "float16"}
    types = other.get(task.dtype, task.dtype), other.get(task.weight_dtype, task.weight_dtype)
    alike = task, replace(task, dtype=types[0], weight_dtype=types[1])
    arch = path.parent.parent
    others = sorted(arch.glob(f"*/{path.name}")) if arch.name == device.arch_name else []
    files = dict.fromkeys([path, *others])
    found = [store.read_or_warn(file).simulated.get(each.key) for file in files for each in alike]
    kernel_hash = store.kernel_hash_of(task)
    return [*dict.fromkeys(entry.config for entry in found if entry is not None and entry.kernel_hash == kernel_hash)]


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
