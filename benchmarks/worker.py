"""The process of one contender: it checks what the contender computes, then times a call whenever it is asked to."""

from __future__ import annotations

import ctypes
import re
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.contenders import CONTENDERS, MODES, OURS, Ready
from benchmarks.optimizers import TRAINERS
from benchmarks.rows import Data, Results, Row, find_mismatch, set_precision

LEAST_SECONDS = 0.05  # of one timing: shorter calls are repeated, for a process that slept starts slowly
# Calls before those that are timed, at least, unless one takes so many seconds. In a loop of steps, the memory that one
# frees is the next one's; what others used in between, or a virtual machine gave back to its host, must be cleared or
# mapped first, which is up to seven times a step's time.
WARM_CALLS, SLOW_SECONDS = 3, 2.0
LARGEST_KEPT = (32 << 20) - (1 << 12)  # bytes of the largest block that glibc learns from


def work(pipe: Connection, row: Row, name: str, want: Results) -> None:
    """Send None or what is wrong, answer each mode with seconds until it is sent None, then send the peak bytes."""
    with suppress(OSError):  # where memory runs out, a contender ends and not the benchmark
        Path("/proc/self/oom_score_adj").write_text("500")
    try:
        torch.set_num_threads(row.threads)
        # glibc learns from the first large block that is freed not to give memory back to the system at each call: a
        # process that trains has freed one, so every contender starts like that.
        torch.zeros(LARGEST_KEPT, dtype=torch.uint8)
        set_precision(row)
        _answer(pipe, row, name, want)
    except EOFError:
        pass
    except BaseException as error:
        lines = traceback.format_exception_only(error)
        pipe.send(lines[-1].strip() or type(error).__name__)


def _answer(pipe: Connection, row: Row, name: str, want: Results) -> None:
    """As `work`, for a process that is set up; what goes wrong is raised."""
    contender, data = (CONTENDERS | TRAINERS)[name], Data.make(row)
    ready = contender.ready(row, data)
    want = want | {"dw": contender.lay_out(want["dw"], row.task.geometry)}
    pipe.send(find_mismatch(row, ready.results(), want, peer=not name.startswith(OURS)))
    step_bytes = _peak(row.device, lambda: ready.call("step", 0))
    calls = dict.fromkeys(MODES, 1)
    while (mode := pipe.recv()) is not None:
        if _time(ready, mode, 1) < SLOW_SECONDS:
            _time(ready, mode, max(WARM_CALLS, calls[mode]))
        taken = _time(ready, mode, calls[mode]) / calls[mode]
        calls[mode] = max(calls[mode], min(1000, round(LEAST_SECONDS / taken)))
        pipe.send(taken)
    pipe.send(step_bytes)


def _time(ready: Ready, mode: str, calls: int) -> float:
    """Seconds of so many calls."""
    ready.wait()
    start = time.perf_counter()
    for turn in range(calls):
        ready.call(mode, turn)
    ready.wait()
    return time.perf_counter() - start


def _peak(device: str, call: Callable[[], None]) -> int | None:
    """Bytes that a call needs at most beside what the process holds already, results among them; None if unknown.

    On a GPU, what torch allocates: other frameworks' memory is unknown.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) or None
    process = Path("/proc/self")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, or it would not be seen again
        before = _status(process, "VmRSS")
        (process / "clear_refs").write_text("5")  # the peak starts anew
    except (OSError, AttributeError):
        return None
    call()
    return _status(process, "VmHWM") - before


def _status(process: Path, field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    found = re.search(rf"{field}:\s*(\d+) kB", (process / "status").read_text())
    if found is None:
        raise OSError(f"no {field}")
    return 1024 * int(found[1])
