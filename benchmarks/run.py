"""Times every contender of every row, in processes of their own that take turns."""

from __future__ import annotations

import multiprocessing
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.peers import PEERS
from benchmarks.rows import Data, Row, expected
from benchmarks.worker import MODES, OURS, refuses, work

LEAST_ROUNDS, MOST_ROUNDS = 5, 200
PATIENCE = 600.0  # seconds for a contender to get ready


def run(rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    """Everything measured, as JSON.

    Args:
        rows: what to time.
        seconds: for the rounds of a row and mode; there are at least `LEAST_ROUNDS`.
    """
    floor = machine(rows[0].threads)
    measured = []
    for row in tqdm(rows, unit="row", disable=None):
        result = time_row(row, seconds)
        task = row.task
        once = max(task.least_bytes / floor["bytes_per_s"], task.flops / floor["flops"])
        result["floor_ms"] = {"forward": 1e3 * once, "step": 3e3 * once}
        measured.append(result)
        tqdm.write(line(result))
    return {"about": about(), "machine": floor, "rows": measured}


def about() -> dict[str, Any]:
    """What the numbers belong to."""
    root = Path(__file__).parents[1]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": (commit.stdout.strip() or "unknown") + ("+changes" if changed.stdout.strip() else ""),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": metadata.version("torch"),
        "device": "cpu",
    }


def machine(threads: int) -> dict[str, float]:
    """What this machine reaches now: operations a second of a float32 matmul, bytes a second of a copy."""
    torch.set_num_threads(threads)
    a = torch.randn(1024, 1024)
    source = torch.randn(32 << 20)
    target = torch.empty_like(source)
    matmul = min(_timed(lambda: torch.mm(a, a)) for _ in range(20))
    copy = min(_timed(lambda: target.copy_(source)) for _ in range(10))
    return {"flops": 2 * 1024**3 / matmul, "bytes_per_s": 2 * source.nbytes / copy, "threads": threads}


def _timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_row(row: Row, seconds: float) -> dict[str, Any]:
    """Each contender's times, or why it has none."""
    want = expected(row, Data.make(row))
    contenders: dict[str, dict[str, Any]] = {}
    pipes: dict[str, Connection] = {}
    processes = []
    context = multiprocessing.get_context("spawn")
    for name in (OURS, *PEERS):
        reason = refuses(row, name)
        if reason is None:
            pipe, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, row, name, want), daemon=True)
            process.start()
            theirs.close()
            reason = _answer(pipe, process)
            processes.append(process)
        if reason is None:
            pipes[name] = pipe
        contenders[name] = {"skipped": reason} if reason else {mode: [] for mode in MODES}
    for mode in MODES:
        end = time.monotonic() + seconds
        for n in range(MOST_ROUNDS):
            if n > LEAST_ROUNDS + 1 and time.monotonic() > end:
                break
            for name, pipe in pipes.items():
                if "skipped" in contenders[name]:
                    continue
                taken = _time(pipe, mode)
                if isinstance(taken, str):
                    contenders[name] = {"skipped": taken}
                elif n > 1:  # the first two of each mode warm up, and find how many calls to time at once
                    contenders[name][mode].append(taken)
    for name, pipe in pipes.items():
        if "skipped" in contenders[name]:
            continue
        pipe.send(None)
        contenders[name] = {mode: _summary(contenders[name][mode]) for mode in MODES} | {"peak_bytes": pipe.recv()}
    for pipe in pipes.values():
        pipe.close()  # which ends a worker that still waits
    for process in processes:
        process.join()
    return asdict(row) | {"contenders": contenders}


def _time(pipe: Connection, mode: str) -> float | str:
    """Seconds of a call, or how the contender ended."""
    try:
        pipe.send(mode)
        return pipe.recv()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return f"its process ended during {mode}"


def _answer(pipe: Connection, process: Any) -> str | None:
    """None when a contender is right, else why it has no times."""
    try:
        if pipe.poll(PATIENCE):
            return pipe.recv()
    except EOFError:
        process.join()
        return f"its process ended with {process.exitcode}"
    process.kill()
    return f"it was not ready after {PATIENCE:.0f} s"


def _summary(seconds: list[float]) -> dict[str, float]:
    p20, _, _, p80 = statistics.quantiles(seconds, n=5, method="inclusive")
    return {
        "median_ms": 1e3 * statistics.median(seconds),
        "p20_ms": 1e3 * p20,
        "p80_ms": 1e3 * p80,
        "rounds": len(seconds),
    }


def line(result: dict[str, Any]) -> str:
    """A row for people to read: ours, how many times the floor, and how many times faster than the best peer."""
    contenders = result["contenders"]
    text = f"{result['workload']} b{result['batch']} {result['dtype']}"
    ours = contenders[OURS]
    if "skipped" in ours:
        return f"{text}: WRONG, {ours['skipped']}"
    for mode in MODES:
        mine = ours[mode]["median_ms"]
        text += f"  {mode} {mine:.2f} ms = {mine / result['floor_ms'][mode]:.1f} floors"
        peers = {n: c[mode]["median_ms"] for n, c in contenders.items() if n != OURS and "skipped" not in c}
        if peers:
            best = min(peers, key=peers.__getitem__)
            text += f", {peers[best] / mine:.2f}x {best}"
    return text
