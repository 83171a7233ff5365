"""Times every contender of every row, in processes of their own that take turns."""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.contenders import CONTENDERS, MODES, NOT_PEERS, OURS, compiled
from benchmarks.optimizers import TRAINERS
from benchmarks.peers import PEERS
from benchmarks.rows import Data, Results, Row, expected, set_precision, synchronize
from benchmarks.worker import work

LEAST_ROUNDS, MOST_ROUNDS = 5, 200
FEWEST_ROUNDS = 3  # of a contender that takes longer than all others together may
WARM_UP, PROBES = 2, 2
PAUSE = 0.03  # seconds between turns: threads of the contender before spin for a while before they sleep
LEAST_RATIO = 0.9  # of the best eager idiom's speed: rows below are listed
PATIENCE = 600.0  # seconds for a contender to get ready
ROOT = Path(__file__).parents[1]


def run(rows: Sequence[Row], seconds: float, names: Collection[str] = CONTENDERS) -> Iterator[dict[str, Any]]:
    """Everything measured so far, as JSON, after each row: a run that is stopped loses the row it was at.

    Args:
        rows: what to time.
        seconds: for the rounds of a row and mode; there are at least `LEAST_ROUNDS`.
        names: who takes part.
    """
    known, measured = about(rows[0].device), []  # before the first row: if it fails, no measurement is lost
    for row in tqdm(rows, unit="row", disable=None):
        floor = machine(row)
        result = time_row(row, seconds, names) | {"machine": floor}
        task = row.task
        once = max(task.least_bytes / floor["bytes_per_s"], task.flops / floor["flops"])
        result["results_bytes"] = task.least_bytes + task.weight_itemsize * math.prod(task.geometry.bias_shape)
        result["floor_ms"] = {"forward": 1e3 * once, "step": 3e3 * once}
        measured.append(result)
        tqdm.write(line(result))
        yield {"about": known, "rows": measured}


def about(device: str) -> dict[str, Any]:
    """What the numbers belong to."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": (_git("rev-parse", "HEAD") or "unknown") + ("+changes" if _git("status", "--porcelain") else ""),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": metadata.version("torch"),
        **({"triton": metadata.version("triton")} if device == "cuda" else {}),
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
    }


def _git(*args: str) -> str:
    """What git says of this checkout; nothing where there is no git, or no checkout."""
    try:
        found = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return found.stdout.strip()


def _processor() -> str:
    """The CPU's name and the number of its cores."""
    name = platform.processor()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        name = found[1] if found else name
    return f"{name or 'CPU'}, {os.cpu_count()} cores"


def machine(row: Row) -> dict[str, float]:
    """What this machine reaches now: operations a second of a matmul as the row's, bytes a second of a copy."""
    torch.set_num_threads(row.threads)
    set_precision(row)
    size, numbers = (1024, 32 << 20) if row.device == "cpu" else (8192, 256 << 20)
    # 16-bit layers of the CPU are held to float32's rate: not every CPU multiplies 16-bit numbers by itself.
    dtype = torch.float32 if row.device == "cpu" else getattr(torch, row.task.dtype)
    a = torch.randn(size, size, device=row.device).to(dtype)
    source = torch.randn(numbers, device=row.device)
    target = torch.empty_like(source)
    matmul = min(_timed(row, lambda: torch.mm(a, a)) for _ in range(20))
    copy = min(_timed(row, lambda: target.copy_(source)) for _ in range(10))
    return {"flops": 2 * size**3 / matmul, "bytes_per_s": 2 * source.nbytes / copy, "threads": row.threads}


def _timed(row: Row, call: Any) -> float:
    synchronize(row.device)
    start = time.perf_counter()
    call()
    synchronize(row.device)
    return time.perf_counter() - start


class Entrant:
    """A contender in a process of its own, and its times or why it has none."""

    def __init__(self, row: Row, name: str, want: Results) -> None:
        self.name = name
        self.times: dict[str, list[float]] = {mode: [] for mode in MODES}
        self.skipped = (CONTENDERS | TRAINERS)[name].refuses(row)
        if self.skipped is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=work, args=(theirs, row, name, want), daemon=True)
            self.process.start()
            theirs.close()
            self.skipped = self._answer()

    def _answer(self) -> str | None:
        """None when the contender is right, else why it has no times."""
        try:
            if self.pipe.poll(PATIENCE):
                answer: str | None = self.pipe.recv()
                return answer
        except EOFError:
            self.process.join()
            return f"its process ended with {self.process.exitcode}"
        self.process.kill()
        return f"it was not ready after {PATIENCE:.0f} s"

    def turn(self, mode: str) -> float:
        """Seconds of a call; infinite where the contender ended."""
        if self.skipped is None:
            time.sleep(PAUSE)
            try:
                self.pipe.send(mode)
                taken = self.pipe.recv()
                if isinstance(taken, float):
                    return taken
                self.skipped = taken
            except (EOFError, BrokenPipeError, ConnectionResetError):
                self.skipped = f"its process ended during {mode}"
        return math.inf

    def close(self) -> dict[str, Any]:
        """What is written down."""
        result: dict[str, Any] = {"skipped": self.skipped}
        if self.skipped is None:
            self.pipe.send(None)
            result = {mode: _summary(times) for mode, times in self.times.items() if times}
            result["step_bytes"] = self.pipe.recv()
        if hasattr(self, "process"):
            self.pipe.close()  # which ends a worker that still waits
            self.process.join()
        return result


def time_row(row: Row, seconds: float, names: Collection[str] = CONTENDERS) -> dict[str, Any]:
    """Each contender's times, or why it has none."""
    want = expected(row, Data.make(row))
    eager = [name for name in names if compiled(name) in names]
    late = {compiled(name) for name in eager}
    entrants = {name: Entrant(row, name, want) for name in CONTENDERS if name in names and name not in late}
    if eager:
        best = min(eager, key=lambda name: min(entrants[name].turn("step") for _ in range(PROBES)))
        if entrants[best].skipped is None:  # torch.compile takes long: only the best is compiled
            entrants[compiled(best)] = Entrant(row, compiled(best), want)
    for mode in MODES:
        take_turns(list(entrants.values()), mode, seconds)
    return asdict(row) | {"contenders": {name: entrant.close() for name, entrant in entrants.items()}}


def take_turns(entrants: Sequence[Entrant], mode: str, seconds: float) -> None:
    """Let each contender time its calls in turns, for so many seconds and at least `LEAST_ROUNDS`."""
    for entrant in entrants:
        for _ in range(WARM_UP):  # and the worker finds how many calls to time at once
            entrant.turn(mode)
    end = time.monotonic() + seconds
    for n in range(MOST_ROUNDS):
        for entrant in entrants:
            slow = sum(entrant.times[mode]) > seconds / 2 and n >= FEWEST_ROUNDS
            if entrant.skipped is None and not slow:
                entrant.times[mode].append(entrant.turn(mode))
        if n + 1 >= LEAST_ROUNDS and time.monotonic() > end:
            break


def _summary(seconds: list[float]) -> dict[str, float]:
    p20, _, _, p80 = statistics.quantiles(seconds, n=5, method="inclusive")
    return {
        "median_ms": 1e3 * statistics.median(seconds),
        "p20_ms": 1e3 * p20,
        "p80_ms": 1e3 * p80,
        "rounds": len(seconds),
    }


def line(result: dict[str, Any]) -> str:
    """A row in one line of text: our times, also over the roofline time, and how many times the best peer takes."""
    contenders = result["contenders"]
    text = f"{result['workload']} b{result['batch']} {result['dtype']}"
    ours = contenders[OURS]
    if "skipped" in ours:
        return f"{text}: WRONG, {ours['skipped']}"
    for mode in MODES:
        mine = ours[mode]["median_ms"]
        text += f"  {mode} {mine:.2f} ms = {mine / result['floor_ms'][mode]:.1f}x roofline"
        peers = {n: c[mode]["median_ms"] for n, c in contenders.items() if n not in NOT_PEERS and "skipped" not in c}
        if peers:
            best = min(peers, key=peers.__getitem__)
            text += f", {peers[best] / mine:.2f}x {best}"
    return text


def summary(results: Sequence[dict[str, Any]]) -> str:
    """How many times faster than the best eager idiom, over all rows, and the rows that are slower."""
    lines = []
    for mode in MODES:
        ratios = {}
        for result in results:
            contenders = {n: c for n, c in result["contenders"].items() if "skipped" not in c}
            idioms = [c[mode]["median_ms"] for n, c in contenders.items() if n in PEERS]
            if idioms and OURS in contenders:
                ratios[f"{result['workload']} b{result['batch']}"] = min(idioms) / contenders[OURS][mode]["median_ms"]
        if ratios:
            mean = statistics.geometric_mean(ratios.values())
            lines.append(f"{mode}: {mean:.2f}x the best eager idiom, geometric mean of {len(ratios)} rows")
            slower = sorted((ratio, name) for name, ratio in ratios.items() if ratio < LEAST_RATIO)
            lines += [f"  {ratio:.2f}x {name}" for ratio, name in slower]
    return "\n".join(lines)
