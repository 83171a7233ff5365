"""The phases of a run, the most important first, and the steps of each with their estimated seconds."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import BMM, CONTENDERS, MODES, OURS
from benchmarks.gpu import smoke
from benchmarks.gpu.check import LayOut, find_mismatch, make_data
from benchmarks.gpu.machine import Machine
from benchmarks.regimes import REGIMES
from benchmarks.rows import Row
from benchmarks.suites import suite
from lc_triton._version import __version__
from lc_triton.tiles import model, store
from lc_triton.tiles.config import PASSES, Pass
from lc_triton.tiles.task import Task, types_of

DTYPES = ("bfloat16", "bfloat16/float32")
# Ours first: all other numbers are compared with it.
TIMED = (OURS, "F.unfold + bmm", BMM, "F.unfold + einsum", "Tensor.unfold + einsum")
# Estimates, in seconds: a kernel that must be compiled, one from Triton's cache, and a step beside its kernels.
COMPILE_S, CACHED_S, STEP_S = 4.0, 0.1, 0.5
SEARCH_S = 15.0
COPY_BYTES, MATMUL_SIZE = 4 << 30, 8192
COUNTERS = ("dram__bytes_read.sum", "dram__bytes_write.sum", "lts__t_bytes.sum", "smsp__cycles_active.avg")


@dataclass(frozen=True)
class Options:
    """The options of a run.

    Args:
        out: the folder of results.
        rows: "worth" or "published".
        seconds: for the rounds of a row, contender and mode.
        from_cache: whether kernels come from Triton's cache, for the estimates.
    """

    out: Path
    rows: str = "worth"
    seconds: float = 0.3
    from_cache: bool = False

    def estimate(self, kernels: int) -> float:
        """Seconds of a step with so many kernels."""
        return STEP_S + kernels * (CACHED_S if self.from_cache else COMPILE_S)


@dataclass(frozen=True)
class Step:
    """One thing to do, and the seconds it is expected to take; `call` gets the seconds left and returns a line."""

    name: str
    seconds: float
    call: Callable[[float], dict[str, Any]]


@dataclass(frozen=True)
class Phase:
    """Steps with a share of the time.

    Args:
        name: for --phases.
        share: of the whole time; what a phase leaves over goes to those behind it.
        steps: made when the phase begins.
    """

    name: str
    share: float
    steps: Callable[[Options, Machine], Iterator[Step]] = field(repr=False)


def _environment(options: Options, machine: Machine) -> Iterator[Step]:
    yield Step("versions", 0.5, lambda left: versions(machine))
    yield Step("nvidia-smi", 1.0, lambda left: _output(["nvidia-smi"]))
    yield Step("Triton's cache", 0.5, lambda left: _cache())


def versions(machine: Machine) -> dict[str, Any]:
    """What the numbers of a run belong to."""
    gpu = machine.gpu
    return {
        "lc_triton": __version__,
        "commit": commit(),
        "kernels": {pass_name: store.kernel_hash(pass_name) for pass_name in PASSES},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": metadata.version("triton"),
        "gpu": gpu.full_name,
        "arch": gpu.arch_name,
        "multiprocessors": gpu.multiprocessors,
        "free_bytes": machine.free_bytes(),
        "cpus": os.cpu_count(),
        "tools": {name: shutil.which(name) for name in ("git", "cc", "ncu", "compute-sanitizer")},
    }


def commit() -> str:
    """The revision of the checkout: LC_TRITON_COMMIT where git is not, as in an unpacked archive."""
    given = os.environ.get("LC_TRITON_COMMIT")
    if given:
        return given
    root = Path(__file__).parents[2]
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def _output(command: list[str]) -> dict[str, Any]:
    if shutil.which(command[0]) is None:
        return {"ok": None, "reason": f"{command[0]} is not here"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return {"ok": done.returncode == 0, "text": done.stdout[-4000:]}


def _cache() -> dict[str, Any]:
    """Whether kernels that were compiled ahead will be used."""
    from triton import knobs

    from lc_triton.ahead import manifest
    from lc_triton.errors import PrecompileError

    folder = Path(knobs.cache.dir)
    try:
        return {"folder": str(folder), "differences": manifest.differences(folder)}
    except PrecompileError as error:
        return {"folder": str(folder), "differences": [str(error)]}


def _hazards(options: Options, machine: Machine) -> Iterator[Step]:
    for name, check in smoke.hazards():
        kernels = smoke.SCANNED if "indices" in name else 1
        yield Step(name, options.estimate(kernels), partial(_checked_by, check, machine))


def _checked_by(check: smoke.Check, machine: Machine, left: float) -> dict[str, Any]:
    return check(machine)


def _smoke(options: Options, machine: Machine) -> Iterator[Step]:
    for name, check in smoke.layers():
        yield Step(name, options.estimate(4), partial(_checked_by, check, machine))


def chosen_rows(options: Options, device: str = "cuda") -> list[Row]:
    """The layers to time, one of each regime first, and for "published" every layer behind them."""
    pairs = [(regime.workload, regime.batch) for regime in REGIMES]
    dtypes: tuple[str, ...] = DTYPES[:1]
    if options.rows == "published":
        pairs, dtypes = [*pairs, *suite("published")], DTYPES
    pairs = list(dict.fromkeys(pairs))
    return [Row(workload, batch, dtype, 1, device) for dtype in dtypes for workload, batch in pairs]


def tasks(options: Options, machine: Machine) -> dict[str, Task]:
    """The kernels of these rows, those first that a better tile could save most."""
    from lc_triton.search.run import worth

    found = {
        f"{row.workload} b{row.batch} {row.dtype} {pass_name}": Task(
            pass_name, row.task.geometry, row.batch, *types_of(row.dtype)
        )
        for row in chosen_rows(options)
        for pass_name in PASSES
    }
    return dict(sorted(found.items(), key=lambda item: -worth(item[1], machine.gpu)))


def _correctness(options: Options, machine: Machine) -> Iterator[Step]:
    """Each kernel that the model picks, beside the definition; without the layers that fill the GPU."""
    for label, task in tasks(options, machine).items():
        if task.geometry.weight_numel < 1 << 30:
            yield Step(label, options.estimate(1), partial(_judge, task, machine))


def _judge(task: Task, machine: Machine, left: float) -> dict[str, Any]:
    from lc_triton.search import scratch
    from lc_triton.search.accuracy import Judge
    from lc_triton.search.strategy import Disagreement

    config = model.choose(task, machine.gpu)
    if machine.is_stand_in:
        made = {name: machine.tensor(shape, dtype) for name, (shape, dtype) in scratch.layout(task).items()}
        scratch.run(task, made, config)
        return {"ok": None, "tile": str(config)}
    try:
        Judge(task, scratch.make(task, machine.device)).check(config)
    except Disagreement as error:
        return {"ok": False, "tile": str(config), "reason": str(error)}
    return {"ok": True, "tile": str(config)}


def _ceilings(options: Options, machine: Machine) -> Iterator[Step]:
    yield Step("copy", 2.0, lambda left: _copy(machine, options.seconds))
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        yield Step(f"matmul {name}", 2.0, partial(_matmul, machine, dtype, options.seconds))


def _copy(machine: Machine, seconds: float) -> dict[str, Any]:
    source = machine.tensor((COPY_BYTES // 4,), torch.float32)
    target = torch.empty_like(source)
    found = machine.device_time(lambda turn: target.copy_(source), 1, seconds)
    rate = None if found is None else 2 * COPY_BYTES / found["median_us"] * 1e6
    return {"bytes_per_s": rate, "time": found}


def _matmul(machine: Machine, dtype: torch.dtype, seconds: float, left: float) -> dict[str, Any]:
    a, b = (machine.tensor((MATMUL_SIZE, MATMUL_SIZE), dtype) for _ in range(2))
    found = machine.device_time(lambda turn: torch.mm(a, b), 1, seconds)
    return {"flops_per_s": None if found is None else 2 * MATMUL_SIZE**3 / found["median_us"] * 1e6, "time": found}


def _rows(options: Options, machine: Machine) -> Iterator[Step]:
    for row in chosen_rows(options, str(machine.device)):
        for name in TIMED:
            if CONTENDERS[name].refuses(row) is None:
                estimate = options.estimate(6 if name == OURS else 0) + 5 * options.seconds
                label = f"{row.workload} b{row.batch} {row.dtype} | {name}"
                yield Step(label, estimate, partial(time_row, row, name, options, machine))


def time_row(row: Row, name: str, options: Options, machine: Machine, left: float) -> dict[str, Any]:
    """One contender of one row: right first, then its times by the GPU's clock and by the host's, and its memory."""
    ready, wrong = _checked(row, name, machine)
    task = row.task
    found: dict[str, Any] = {"workload": row.workload, "batch": row.batch, "dtype": row.dtype, "contender": name}
    found |= {"ok": None if machine.is_stand_in else wrong is None, "reason": wrong}
    roofline = 1e6 * model.roofline(task, machine.gpu)
    found |= {"bytes": task.least_bytes, "flops": task.flops, "roofline_us": roofline, "sets": len(ready.sets)}
    found["modes"] = {}
    for mode in MODES if wrong is None else ():
        call = partial(ready.call, mode)
        found["modes"][mode] = {
            "device": machine.device_time(call, len(ready.sets), options.seconds),
            "eager": machine.eager_time(call, len(ready.sets), options.seconds),
            "peak_bytes": machine.peak_bytes(partial(call, 0)),
        }
    del ready
    machine.release()
    return found


def _checked(row: Row, name: str, machine: Machine) -> tuple[Any, str | None]:
    """A contender with its tensors, and what is wrong with its results; these are freed before it is timed."""
    contender, data = CONTENDERS[name], make_data(row, machine)
    ready: Any = contender.ready(row, data)
    results = ready.results()
    lay_out: LayOut | None = None if name == OURS else contender.lay_out
    return ready, machine.check(lambda: find_mismatch(row, data, results, lay_out))


def _tuning(options: Options, machine: Machine) -> Iterator[Step]:
    for label, task in tasks(options, machine).items():
        if task.geometry.weight_numel < 1 << 30:
            yield Step(label, SEARCH_S, partial(_tune, label, task, options, machine))


def _tune(label: str, task: Task, options: Options, machine: Machine, left: float) -> dict[str, Any]:
    """A search of some seconds; its tiles and all times go beside the results, a stand-in's nowhere."""
    from lc_triton.search.run import tune
    from lc_triton.search.strategy import Outcome, search

    if machine.is_stand_in:
        outcome: Outcome | None = search(task, machine.gpu, machine.bench(task), SEARCH_S)
    else:

        def file_of(pass_name: Pass) -> Path:
            return store.file_of(options.out / "tiles", machine.gpu.arch_name, machine.gpu.folder, pass_name)

        log, budget = options.out / "timings.jsonl", min(left, SEARCH_S)
        report = tune({label: task}, machine.gpu, machine.bench, file_of, budget, log=log)
        outcome = report.measured.get(label)
        if outcome is None:
            return {"ok": False, "reason": report.failed.get(label)}
    assert outcome is not None
    best, choice = outcome.ranking[0], model.choose(task, machine.gpu)
    return {
        "ok": None if machine.is_stand_in else not outcome.wrong,
        "tried": outcome.tried,
        "finished": outcome.finished,
        "best": str(best),
        "best_us": None if machine.is_stand_in else outcome.median(best),
        "model_us": outcome.median(choice) if choice in outcome.best_times and not machine.is_stand_in else None,
        "wrong": {str(config): reason for config, reason in outcome.wrong.items()},
        "failed": {str(config): reason for config, reason in outcome.failed.items()},
    }


def _counters(options: Options, machine: Machine) -> Iterator[Step]:
    for row in chosen_rows(options, str(machine.device))[: len(REGIMES)]:
        label = f"{row.workload} b{row.batch} {row.dtype}"
        yield Step(f"{label}, kernels", options.estimate(3), partial(_profile, row, machine, ()))
        yield Step(f"{label}, counters", options.estimate(3) + 2, partial(_profile, row, machine, COUNTERS))


def _profile(row: Row, machine: Machine, metrics: tuple[str, ...], left: float) -> dict[str, Any]:
    """The kernels of a training step: their times, or the hardware's counters where this user may read them."""
    ready: Any = CONTENDERS[OURS].ready(row, make_data(row, machine))
    ready.call("step", 0)
    if machine.is_stand_in:
        return {"ok": None, "kernels": []}
    import json

    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity, profile

    config = _ExperimentalConfig(profiler_metrics=list(metrics), profiler_measure_per_kernel=bool(metrics))
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], experimental_config=config) as profiler:
        ready.call("step", 1)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    kernels = [
        {"name": e["name"][:120], "us": e.get("dur")}
        | {key: value for key, value in e.get("args", {}).items() if key in metrics}
        for e in events
        if e.get("ph") == "X" and e.get("cat") in ("kernel", "cuda_profiler_range")
    ]
    del ready
    machine.release()
    reason = None if kernels else "the profiler gave nothing: this user may lack the permission to read counters"
    return {"ok": True if kernels else None, "kernels": kernels, "reason": reason}


def _demo(options: Options, machine: Machine) -> Iterator[Step]:
    yield Step("3 epochs", 20.0, partial(_train, machine))


def _train(machine: Machine, left: float) -> dict[str, Any]:
    from lc_triton.demo import Settings, run

    if machine.is_stand_in:
        return {"ok": None}
    with tempfile.TemporaryDirectory() as folder:
        results = run(Settings(epochs=3, device="cuda", out=Path(folder)))
    networks = {
        name: {key: value for key, value in found.items() if key != "history"}
        for name, found in results["networks"].items()
    }
    return {"ok": networks["locally connected"]["path"] == "Triton kernels", "networks": networks}


PHASES = (
    Phase("environment", 0.02, _environment),
    Phase("hazards", 0.05, _hazards),
    Phase("smoke", 0.10, _smoke),
    Phase("ceilings", 0.02, _ceilings),
    Phase("correctness", 0.12, _correctness),
    Phase("rows", 0.32, _rows),
    Phase("tuning", 0.25, _tuning),
    Phase("counters", 0.06, _counters),
    Phase("demo", 0.06, _demo),
)
