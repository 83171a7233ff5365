"""The run itself: phase after phase, each with its share of the time, until the deadline."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.gpu.journal import Journal, Key, read, settled
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.steps import PHASES, Options, Phase, Step
from lc_triton._command import Terminated, restart, sigterm_as_interrupt
from lc_triton.errors import LostGPUError, first_line
from lc_triton.search.crashes import is_lost
from lc_triton.search.strategy import LostGPU

FILE = "results.jsonl"
# A step that outlasts its phase's box is interrupted after so many seconds more, or at the deadline.
GRACE = 10.0
# Where not even an interruption helps (a driver's call does not return), the process ends itself so long after the
# deadline.
LAST = 5.0
# A process that has lost the GPU is replaced by a fresh one if it has so many seconds for it.
LEAST_LEFT = 20.0


class StepTimeout(BaseException):
    """A step outlasted its time; no `Exception`, or a search would take it for the failure of a tile."""


def run(
    options: Options,
    phases: Sequence[Phase],
    machine: Machine,
    deadline: float,
    *,
    resume: bool,
    is_process: bool = False,
) -> int:
    """Do the steps of some phases; 1 where a result was wrong or a step failed, else 0.

    Args:
        options: what is asked for.
        phases: in their order.
        machine: what measures.
        deadline: seconds for all; nothing is begun that is not expected to end before.
        resume: leave alone the steps that the file of results has already.
        is_process: whether this process may replace itself by a fresh one of the same command.
    """
    start = time.monotonic()
    path = options.out / FILE
    done = settled(read(path)) if resume else set()
    journal = Journal(path)
    journal.write(
        {"status": "run", "deadline": deadline, "phases": [p.name for p in phases], "resume": resume, **_now()}
    )
    timer = _end_by_itself(journal, deadline + LAST)
    try:
        with sigterm_as_interrupt():
            wrong, lost = _do_all(options, phases, machine, journal, done, start + deadline)
    except KeyboardInterrupt as stop:
        reason = "SIGTERM" if isinstance(stop, Terminated) else "Ctrl-C"
        journal.write({"status": "end", "reason": reason, **_now()})
        return 143 if isinstance(stop, Terminated) else 130
    finally:
        timer.cancel()
    if lost:
        _replace(journal, start + deadline - time.monotonic(), is_process)
    journal.write({"status": "end", "seconds": round(time.monotonic() - start, 3), **_now()})
    return int(wrong or lost)


def _do_all(
    options: Options,
    phases: Sequence[Phase],
    machine: Machine,
    journal: Journal,
    done: Collection[Key],
    end: float,
) -> tuple[bool, bool]:
    """Do what fits; whether something was wrong or failed, and whether the GPU was lost, which ends it."""
    wrong = False
    for number, phase in enumerate(phases):
        left = end - time.monotonic()
        box_end = end - left + left * phase.share / sum(later.share for later in phases[number:])
        not_begun = []
        for step in phase.steps(options, machine):
            if (phase.name, step.name) in done:
                continue
            now = time.monotonic()
            if now + step.seconds > box_end:
                not_begun.append(step.name)
                continue
            line = _do(phase, step, journal, machine, box_end - now, min(end - now, box_end - now + GRACE))
            wrong = wrong or line["ok"] is False
            if line["status"] == "lost":
                return wrong, True
        if not_begun:
            journal.write({"status": "not begun", "phase": phase.name, "steps": not_begun})
    return wrong, False


def _do(phase: Phase, step: Step, journal: Journal, machine: Machine, box: float, most: float) -> dict[str, Any]:
    """Do a step, and write its line."""
    key = {"phase": phase.name, "step": step.name}
    journal.write({**key, "status": "begun", **_now()})
    start = time.monotonic()
    line: dict[str, Any] = {"ok": None}
    try:
        with _interrupted_after(most):
            line |= step.call(box)
        status = "done"
    except StepTimeout:
        status, line = "timeout", {"ok": None, "reason": f"not done after {most:.0f} s"}
    except Exception as error:
        lost = isinstance(error, (LostGPU, LostGPUError)) or is_lost(error)
        status, line = "lost" if lost else "failed", {"ok": False, "reason": first_line(error)}
        if isinstance(error, LostGPUError):
            line["again"] = True  # the search that it ended leaves out the tile at fault from now on
    line = {**line, **key, "status": status, "seconds": round(time.monotonic() - start, 3)}
    if machine.is_stand_in:
        line["stand_in"] = True
    journal.write(line)
    print(f"{phase.name}: {step.name}: {_word(line)} ({line['seconds']:.1f} s)", flush=True)
    if status in ("timeout", "failed"):
        with suppress(Exception):  # memory of what did not end well
            machine.release()
    return line


def _word(line: dict[str, Any]) -> str:
    reason = f", {line['reason']}" if line.get("reason") else ""
    ok = {True: "ok", False: "WRONG", None: "done"}[line["ok"]]
    return (ok if line["status"] == "done" else line["status"]) + reason


def _now() -> dict[str, str]:
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Raise `StepTimeout` inside the block after so many seconds: between two of Python's instructions."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise StepTimeout

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _end_by_itself(journal: Journal, seconds: float) -> threading.Timer:
    """End the process after so many seconds, whatever it waits for."""

    def end() -> None:
        journal.write({"status": "end", "reason": "a step did not return before the deadline", **_now()})
        os._exit(124)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer


def _replace(journal: Journal, left: float, is_process: bool) -> None:
    """Go on in a fresh process: this one cannot use the GPU any more."""
    journal.write({"status": "lost", "left": round(left, 1), **_now()})
    if not is_process or left < LEAST_LEFT:
        return
    restart("--resume", "--deadline", f"{left:.1f}")


def plan(options: Options, phases: Sequence[Phase], machine: Machine, deadline: float, done: Collection[Key]) -> str:
    """What `run` would do, with the estimated minutes; nothing is measured."""
    lines = [f"{'phase':14}{'steps':>7}{'estimated, min':>16}{'its box, min':>14}{'fit in it':>11}"]
    total = box_total = 0.0
    left = deadline
    for number, phase in enumerate(phases):
        box = left * phase.share / sum(later.share for later in phases[number:])
        steps = [step for step in phase.steps(options, machine) if (phase.name, step.name) not in done]
        estimate, used, fit = sum(step.seconds for step in steps), 0.0, 0
        for step in steps:
            if used + step.seconds <= box:
                used, fit = used + step.seconds, fit + 1
        left -= used
        total, box_total = total + estimate, box_total + used
        lines.append(f"{phase.name:14}{len(steps):>7}{estimate / 60:>16.1f}{box / 60:>14.1f}{fit:>11}")
    lines.append(f"{'in all':14}{'':>7}{total / 60:>16.1f}{box_total / 60:>14.1f}")
    kernels = "from Triton's cache" if options.from_cache else "compiled at their first call: precompile them"
    lines.append(f"Deadline {deadline / 60:.1f} min; kernels are {kernels}. Results go to {options.out / FILE}")
    return "\n".join(lines)


def phases_of(names: Sequence[str] | None) -> tuple[Phase, ...]:
    """The phases with these names, in their order of worth; all by default."""
    from lc_triton.core.arguments import check_name

    known = {phase.name: phase for phase in PHASES}
    for name in names or ():
        check_name("phase", name, known)
    return tuple(phase for phase in PHASES if names is None or phase.name in names)


def command(out: Path, deadline: float, arguments: Any) -> int:
    """`python -m benchmarks gpu`.

    Args:
        out: the folder of results.
        deadline: seconds for all.
        arguments: the other options of the command line.
    """
    import torch

    from benchmarks.gpu.machine import StandIn, opened
    from lc_triton.ahead import manifest
    from lc_triton.core.arguments import check_name
    from lc_triton.errors import ArgumentValueError, PrecompileError
    from lc_triton.search.run import check_seconds
    from lc_triton.tiles.device import by_name, of_gpu

    check_seconds("--deadline", deadline)
    check_seconds("--seconds", arguments.seconds)
    check_name("--rows", arguments.rows, ("worth", "published"))
    phases = phases_of(arguments.phases)
    stand_in = None if arguments.stand_in is None else by_name(arguments.stand_in)
    from_cache = False
    with suppress(PrecompileError, ImportError):
        from triton import knobs

        from_cache = not manifest.differences(Path(knobs.cache.dir))
    options = Options(out, arguments.rows, arguments.seconds, from_cache)
    if arguments.dry_run:
        done = settled(read(out / FILE)) if arguments.resume else set()
        print(plan(options, phases, StandIn(stand_in or of_gpu(0)), deadline, done))
        return 0
    if stand_in is None and not torch.cuda.is_available():
        allowed = "a device's name here, such as h100: torch finds no GPU"
        raise ArgumentValueError(name="--stand-in", value=None, allowed=allowed)
    with opened(stand_in) as machine:
        return run(options, phases, machine, deadline, resume=arguments.resume, is_process=True)
