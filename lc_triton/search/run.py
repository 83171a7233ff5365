"""Tune kernels one after another within a time limit, and store each result at once."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lc_triton.errors import ArgumentTypeError, ArgumentValueError, LostGPUError, first_line
from lc_triton.search import crashes, timings
from lc_triton.search.strategy import Bench, LostGPU, Outcome, search
from lc_triton.tiles import model, store
from lc_triton.tiles.config import PASSES, Pass
from lc_triton.tiles.device import Device
from lc_triton.tiles.entries import Measured
from lc_triton.tiles.select import select
from lc_triton.tiles.task import Task

IN_USE = {
    "user": "your measured tile",
    "shipped": "a shipped tile",
    "architecture": "a tile of another GPU of this architecture",
    "simulated": "a simulated tile",
    "model": "the model's tile",
}
# A search gets at least so many seconds: with fewer, too few tiles are timed to be worth checking their results.
LEAST_SECONDS = 10.0
BAR = "{n_fmt}/{total_fmt} kernels |{bar:20}| {elapsed}{postfix}"
MakeBench = Callable[[Task], Bench]


@dataclass
class Report:
    """The results of tuning, by the kernels' labels.

    Args:
        measured: the search of each whose tile was written.
        failed: why no tile of a kernel could be measured.
        not_begun: the time was over before.
        on_file: finished earlier, and left alone.
        lost: the kernel of the tile that ended this process's use of the GPU, if one did.
    """

    measured: dict[str, Outcome] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    not_begun: list[str] = field(default_factory=list)
    on_file: list[str] = field(default_factory=list)
    lost: str | None = None

    @property
    def done(self) -> list[str]:
        """The kernels whose search was begun and ended by itself."""
        return [label for label in (*self.measured, *self.failed) if label != self.lost]

    def to_text(self) -> str:
        """A summary in words."""
        cut = sum(not outcome.finished for outcome in self.measured.values())
        lines = [f"{len(self.measured)} measured" + (f", {cut} of them cut short" if cut else "")]
        lines += [f"{len(self.on_file)} on file already"] if self.on_file else []
        lines += [f"{len(self.failed)} without a tile that works"] if self.failed else []
        lines += [f"{len(self.not_begun)} not begun"] if self.not_begun else []
        later = cut or self.not_begun
        return "; ".join(lines) + ("; the same command with --resume goes on" if later else "")


def check_seconds(name: str, value: float) -> float:
    """A time limit.

    Raises:
        ArgumentTypeError: it is no number.
        ArgumentValueError: it is not above 0.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(name=name, value=value, allowed="a number of seconds")
    if not 0 < value < math.inf:
        raise ArgumentValueError(name=name, value=value, allowed="a number of seconds above 0")
    return float(value)


def tune(
    tasks: Mapping[str, Task],
    device: Device,
    make_bench: MakeBench,
    file_of: Callable[[Pass], Path],
    seconds: float,
    *,
    resume: bool = False,
    done: Collection[str] = (),
    report: Report | None = None,
    log: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Search a tile for each task, those first whose prediction is farthest from the roofline time.

    The time left is shared evenly among the tasks to come, but each has `LEAST_SECONDS`.

    Args:
        tasks: the kernels, by labels to show.
        device: the GPU.
        make_bench: what times a task's tiles.
        file_of: the file that a pass's measurements are merged into, each as soon as it is there.
        seconds: for all.
        resume: leave alone what a finished search of the same kernel source has put on file.
        done: labels of tasks that are left alone, for a process before this one has searched them.
        report: filled as the searches go on, so that a caller has it after an error.
        log: a file to which every time of every tile is added, see `timings`.
        clock: seconds.

    Raises:
        ConfigFileError: a file that cannot be written; nothing has been timed.
        KeyboardInterrupt: after what was measured has been written.
        LostGPUError: likewise; another process can go on, without the tile that is named.
    """
    for pass_name in dict.fromkeys(task.pass_name for task in tasks.values()):
        store.check_writable(file_of(pass_name))
    if log is not None:
        timings.check_writable(log)
    report = Report() if report is None else report
    todo, report.on_file = split(tasks, device, file_of, resume=resume)
    todo = [label for label in todo if label not in done]
    deadline = clock() + seconds
    with tqdm(total=len(todo), bar_format=BAR, disable=None) as bar:
        for i, label in enumerate(todo):
            left = deadline - clock()
            if left <= 0:
                report.not_begun = todo[i:]
                break

            def show(outcome: Outcome, label: str = label) -> None:
                best = f", best {outcome.median(outcome.ranking[0]):.1f} us" if outcome.times else ""
                rest = tqdm.format_interval(max(0.0, deadline - clock()))
                bar.set_postfix_str(f"{label}: {outcome.tried} tried{best}; {rest} left")

            outcome = Outcome()
            task = tasks[label]
            try:
                share = max(left / (len(todo) - i), min(left, LEAST_SECONDS))
                tune_one(task, device, make_bench, file_of(task.pass_name), share, outcome, clock=clock, on_trial=show)
            except LostGPUError:
                report.lost = label
                raise
            finally:
                _note(report, label, task, outcome, device)
                if log is not None and outcome.times:
                    timings.append(log, device, task, outcome)
            bar.update()
    return report


def plan(
    tasks: Mapping[str, Task], device: Device, file_of: Callable[[Pass], Path], seconds: float, *, resume: bool
) -> str:
    """Describe what `tune` would do; nothing is timed or written."""
    todo, on_file = split(tasks, device, file_of, resume=resume)
    lines = [f"{len(todo)} kernels to measure on {device.full_name}" + (f"; {len(on_file)} on file" if on_file else "")]
    for label in todo:
        choice = select(tasks[label], device)
        count = len(model.ranked(tasks[label], device))
        lines.append(f"  {label}: {count} candidates; in use is {IN_USE[choice.source]}")
    share = f", {max(seconds / len(todo), LEAST_SECONDS):.1f} s a kernel" if todo else ""
    lines.append(f"At most {seconds:g} s{share}, into")
    lines += [
        f"  {file_of(pass_name)}" for pass_name in PASSES if any(tasks[label].pass_name == pass_name for label in todo)
    ]
    return "\n".join(lines)


def worth(task: Task, device: Device) -> float:
    """Seconds between what the model predicts and the roofline time: what a better tile could save at most."""
    return model.ranked(task, device)[0][0] - model.roofline(task, device)


def split(
    tasks: Mapping[str, Task], device: Device, file_of: Callable[[Pass], Path], *, resume: bool
) -> tuple[list[str], list[str]]:
    """The labels of those to search, and with `resume` of those on file whose search came to its end.

    What is worth most comes first; with `resume`, what was cut short comes after what was never begun.
    """
    begun, finished = set(), []
    for label, task in tasks.items() if resume else ():
        entry = store.read(file_of(task.pass_name)).get(task.key)
        if entry is not None and entry.finished and entry.kernel_hash == store.kernel_hash_of(task):
            finished.append(label)
        elif entry is not None:
            begun.add(label)
    todo = sorted(set(tasks) - set(finished), key=list(tasks).index)
    return sorted(todo, key=lambda label: (label in begun, -worth(tasks[label], device))), finished


def tune_one(
    task: Task,
    device: Device,
    make_bench: MakeBench,
    path: Path,
    seconds: float,
    outcome: Outcome,
    *,
    clock: Callable[[], float] = time.monotonic,
    on_trial: Callable[[Outcome], None] = lambda _: None,
) -> None:
    """Search one task's tile, beginning with the one in use, and merge the best into the file, even if interrupted.

    Raises:
        LostGPUError: a tile ended this process's use of the GPU; it is noted beside the file, and left out later.
    """
    known, left_out = select(task, device).config, crashes.known(path, task)
    more: dict[str, Any] = {"known": [known], "left_out": left_out, "outcome": outcome}
    try:
        search(task, device, make_bench(task), seconds, **more, clock=clock, on_trial=on_trial)
    except LostGPU as lost:
        crashes.note(path, task, lost.tiles, lost.error)
        tiles, named = " or ".join(map(str, lost.tiles)), f"{task.pass_name} of {task.geometry}, batch {task.batch}"
        raise LostGPUError(reason=str(lost), tile=tiles, task=named, path=crashes.file_beside(path)) from lost
    except Exception as error:  # no memory for the tensors, say: the next task may be smaller
        outcome.failed[known] = first_line(error)
    finally:
        if outcome.times:
            store.merge(path, device.full_name, task.pass_name, {task.key: measured(task, device, outcome)})


def measured(task: Task, device: Device, outcome: Outcome) -> Measured:
    """The entry of a search's best tile; the search has at least one."""
    config, second = [*outcome.ranking, None][:2]
    assert config is not None
    median = outcome.median(config)
    p20, _, _, p80 = statistics.quantiles(outcome.best_times[config], n=5, method="inclusive")
    seconds = 1e-6 * median
    return Measured(
        config=config,
        median_us=_rounded(median),
        p20_us=_rounded(p20),
        p80_us=_rounded(p80),
        gbytes_per_s=_rounded(1e-9 * task.least_bytes / seconds),
        tflops=_rounded(1e-12 * task.flops / seconds),
        roofline=_rounded(model.roofline(task, device) / seconds),
        runner_up=second,
        runner_up_us=None if second is None else _rounded(outcome.median(second)),
        finished=outcome.finished,
        date=datetime.now(timezone.utc).date().isoformat(),
        torch=metadata.version("torch"),
        triton=metadata.version("triton"),
        kernel_hash=store.kernel_hash_of(task),
    )


def _note(report: Report, label: str, task: Task, outcome: Outcome, device: Device) -> None:
    """Print the result of a task, and add it to the report."""
    reasons = Counter(outcome.failed.values())
    if outcome.times:
        report.measured[label] = outcome
        best, choice = outcome.ranking[0], model.choose(task, device)
        text = f"{label}: {outcome.median(best):.1f} us"
        if choice in outcome.best_times:
            ratio = outcome.median(choice) / outcome.median(best)
            text += f", the model's pick takes {ratio:.2f} times that"
        share = model.roofline(task, device) * 1e6
        text += f"; {share / outcome.median(best):.0%} of the limit; {outcome.tried} tiles tried"
    elif outcome.tried:
        report.failed[label] = ", ".join([*reasons, *outcome.wrong.values()][:3])
        text = f"{label}: no tile works, of {outcome.tried} tried"
    else:
        return
    tqdm.write(text)
    for config, reason in outcome.wrong.items():
        tqdm.write(f"  wrong result: {config}: {reason}")
    for reason, count in reasons.most_common():
        tqdm.write(f"  {count} failed: {reason}")


def _rounded(value: float) -> float:
    """Four significant digits: more were not measured."""
    return float(f"{value:.4g}") if math.isfinite(value) else value
