"""`lc-triton tune`: find the best tile of each kernel, on the GPU here or by simulation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lc_triton._command import restart, sigterm_as_interrupt
from lc_triton.cli.options import (
    Commands,
    add_kernels,
    add_update,
    need_triton,
    select_device,
    select_dtypes,
    select_layers,
    select_passes,
    select_update,
)
from lc_triton.errors import LostGPUError

if TYPE_CHECKING:
    from lc_triton.tiles.config import Pass
    from lc_triton.tiles.device import Device
    from lc_triton.tiles.task import Task


def add(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "tune", help="find the best tile of each kernel on the GPU here, or by simulation, and keep it on file"
    )
    add_kernels(parser, None, "the GPU here")
    add_update(parser)
    parser.add_argument("--budget", type=float, default=1800.0, metavar="SECONDS", help="for all (default: 1800)")
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="a folder, or a .json file for one pass (default: your own tiles)"
    )
    parser.add_argument("--gpu", type=int, default=0, metavar="INDEX", help="which GPU (default: 0)")
    parser.add_argument("--timings", type=Path, metavar="FILE", help="add every time of every tile to this file too")
    parser.add_argument("--resume", action="store_true", help="leave alone what is on file and finished")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured and written; needs no GPU")
    parser.add_argument("--offline", action="store_true", help="compile and simulate tiles instead; needs no GPU")
    parser.add_argument("--jobs", type=int, metavar="N", help="with --offline: kernels at a time (default: all cores)")
    parser.add_argument("--done", nargs="+", default=[], help=argparse.SUPPRESS)  # by the process before this one
    parser.set_defaults(call=run, after_interrupt="")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    import time

    import torch

    from lc_triton.errors import ArgumentValueError
    from lc_triton.search.run import Report, check_seconds, plan, tune
    from lc_triton.search.tuner import check_gpu, gpu_bench
    from lc_triton.tiles.device import of_gpu

    check_seconds("--budget", options.budget)
    if options.offline:
        return _tune_offline(options)
    if options.jobs is not None:
        raise ArgumentValueError(name="--jobs", value=options.jobs, allowed="given beside --offline")
    if options.device is not None and not options.dry_run:
        allowed = "given beside --offline or --dry-run: tiles are measured on the GPU here, see --gpu"
        raise ArgumentValueError(name="--device", value=options.device, allowed=allowed)
    if options.device is not None and options.gpu:
        raise ArgumentValueError(name="--gpu", value=options.gpu, allowed="given without --device")
    tasks = _tasks(options)
    gpus = torch.cuda.device_count()
    if not 0 <= options.gpu < max(1, gpus):
        raise ArgumentValueError(name="--gpu", value=options.gpu, allowed=f"below {max(1, gpus)}")
    device = of_gpu(options.gpu) if options.device is None else select_device(options)
    out, file_of = _out(options, tasks, device)
    if options.dry_run:
        print(plan(tasks, device, file_of, options.budget, resume=options.resume))
        print(f"By the model, {device.full_name} has {device.rates}")
        if not gpus and options.device is None:
            print(f"There is no GPU here: an {device.full_name} stands in for it.")
        return 0
    if device.note:
        print(f"By the model, {device.full_name} has {device.rates}")
    check_gpu()
    need_triton("tune")
    options.after_interrupt = f"; what was measured is in {out}, and --resume goes on"
    report, start = Report(), time.monotonic()
    try:
        with sigterm_as_interrupt():
            tune(
                tasks,
                device,
                lambda task: gpu_bench(task, options.gpu),
                file_of,
                options.budget,
                resume=options.resume,
                done=options.done,
                report=report,
                log=options.timings,
            )
    except KeyboardInterrupt:
        if not report.measured:
            options.after_interrupt = "; nothing was measured"
        raise
    except LostGPUError as lost:
        left = options.budget - (time.monotonic() - start)
        if not options.is_process or left <= 0:
            raise
        tile, done = lost.fields["tile"], [*options.done, *report.done]
        print(f"lc-triton: {tile}: {lost.fields['reason']}; a fresh process goes on without it")
        restart("--budget", f"{left:.3f}", *(["--done", *done] if done else []))
    print(report.to_text())
    if report.measured:
        print(_written_to(out))
    return 1 if report.failed else 0


def _tune_offline(options: argparse.Namespace) -> int:
    from lc_triton.core.arguments import check_int
    from lc_triton.errors import ArgumentValueError
    from lc_triton.search.offline import plan, tune_offline
    from lc_triton.simulator import check_simulated, constants_of

    if options.timings is not None:
        allowed = "given without --offline: such a file holds measured times"
        raise ArgumentValueError(name="--timings", value=str(options.timings), allowed=allowed)
    if options.gpu:
        raise ArgumentValueError(name="--gpu", value=options.gpu, allowed="given without --offline: see --device")
    if options.device is None:
        raise ArgumentValueError(name="--device", value=None, allowed="h100 or h200 beside --offline")
    jobs = None if options.jobs is None else check_int("--jobs", options.jobs, 1)
    device = select_device(options)
    constants_of(device, "--device")
    tasks = _tasks(options)
    for task in tasks.values():
        check_simulated(task, "--dtypes")
    out, file_of = _out(options, tasks, device)
    if options.dry_run:
        print(plan(tasks, device, file_of, options.budget, resume=options.resume))
        return 0
    need_triton("tune --offline")
    try:
        report = tune_offline(tasks, device, file_of, options.budget, jobs=jobs, resume=options.resume)
    except KeyboardInterrupt:
        files = {file_of(task.pass_name) for task in tasks.values()}
        found = f"what was simulated is in {out}, and --resume goes on" if any(map(Path.exists, files)) else "no result"
        print(f"\nlc-triton: interrupted; {found}", file=sys.stderr)
        return 130
    print(report.to_text())
    if report.simulated:
        print(_written_to(out))
    return 1 if report.failed else 0


def _out(options: argparse.Namespace, tasks: dict[str, Task], device: Device) -> tuple[Path, Callable[[Pass], Path]]:
    """Where `tune` writes: the folder or file, and the file of a pass."""
    from lc_triton.errors import ArgumentValueError
    from lc_triton.tiles import paths, store

    out: Path = options.out or paths.user_configs()
    single = out.suffix == ".json"
    if single and len({task.pass_name for task in tasks.values()}) > 1:
        allowed = "a folder, or else one of --faces: a file holds one pass"
        raise ArgumentValueError(name="--out", value=str(out), allowed=allowed)
    return out, lambda pass_name: out if single else store.file_of(out, device.arch_name, device.folder, pass_name)


def _written_to(out: Path) -> str:
    from lc_triton.tiles import paths

    own = out.suffix == ".json" or out.absolute() in (paths.known_user_configs(), paths.shipped_configs())
    hint = "" if own else f"; launches look there under LC_TRITON_CONFIG_DIR={out}"
    return f"Written to {out}{hint}"


def _tasks(options: argparse.Namespace) -> dict[str, Task]:
    """The kernels that the options name, each once, by labels."""
    from lc_triton.tiles import workloads

    layers = select_layers(options, all_by_default=True)
    stored = workloads.tasks(layers, (), select_dtypes(options), select_passes(options))
    tasks = dict(zip(stored, select_update(options, [*stored.values()], [*stored]), strict=True))
    of_update = f"+{options.update}" + (f" in {options.states}" if options.states != "float32" else "")
    return {f"{label}{of_update if task.update else ''}": task for label, task in tasks.items()}
