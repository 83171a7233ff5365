"""The command line: `lc-triton demo | tune | fit | precompile | inspect | configs | convert | env`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lc_triton._command import Terminated, restart, sigterm_as_interrupt
from lc_triton._version import __version__
from lc_triton.errors import LocalConvError, LostGPUError

if TYPE_CHECKING:
    from lc_triton.tiles.config import Pass
    from lc_triton.tiles.device import Device
    from lc_triton.tiles.task import Task
    from lc_triton.tiles.workloads import Workload


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    That is 0; 1 where something could not be done, as the output says; 2 for wrong input, with one line on stderr; 130
    for an interruption, 143 for SIGTERM; 141 where nothing reads the output any more.
    """
    parser = argparse.ArgumentParser(
        prog="lc-triton", description="Locally connected layers for PyTorch, fused in Triton."
    )
    parser.add_argument("--version", action="version", version=f"lc-triton {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_tune(commands)
    _add_fit(commands)
    _add_precompile(commands)
    _add_inspect(commands)
    _add_configs(commands)
    _add_convert(commands)
    _add_env(commands)
    options = argparse.Namespace(after_interrupt="")
    try:
        parser.parse_args(arguments, options)
        options.is_process = arguments is None  # and so can be started once more, with what it was started with
        status = options.call(options) or 0
        sys.stdout.flush()  # here, where a closed pipe is expected
        return status
    except LocalConvError as error:
        print(f"lc-triton: {error}", file=sys.stderr)
        return 1 if isinstance(error, LostGPUError) else 2
    except BrokenPipeError:  # whoever read the output has enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return 141
    except OSError as error:  # a disk that is full, a folder that may not be written: nothing half-written is left
        print(f"lc-triton: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\nlc-triton: interrupted{options.after_interrupt}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="train a locally connected network on handwritten digits, beside a convolution and a dense layer",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=40, help="passes over the training images")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="float32", help="float32, float64, or by autocast float16, bfloat16")
    parser.add_argument("--out", type=Path, default=Path("lc-triton-demo"), help="folder for what it writes")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batch order and dropout")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--nproc", type=int, default=1, help="processes that share the locally connected layers")
    parser.set_defaults(call=_demo, after_interrupt="; the same command with --resume goes on")


def _demo(options: argparse.Namespace) -> int:
    from functools import partial

    from lc_triton.demo import Settings, ranks, run

    names = ("epochs", "batch_size", "device", "dtype", "out", "seed", "resume", "nproc")
    settings = Settings(**{name: getattr(options, name) for name in names})
    if settings.nproc > 1:
        return ranks.launch(partial(run, settings), settings.nproc)
    run(settings)
    return 0


def _add_tune(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "tune", help="find the best tile of each kernel on the GPU here, or by simulation, and keep it on file"
    )
    parser.add_argument("--workloads", type=Path, metavar="FILE", help="layers to tune (default: published networks)")
    parser.add_argument("--workload", nargs="+", metavar="NAME", help="only these of them")
    parser.add_argument(
        "--shapes", nargs="+", metavar="SHAPE", help="layers such as 63x63x16,k9,f16,s1,p0,d1,g1 instead"
    )
    parser.add_argument(
        "--faces", nargs="+", dest="passes", metavar="PASS", help="of forward, input_grad, weight_grad (default: all)"
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        default=["bfloat16"],
        metavar="DTYPE",
        help="of float16, bfloat16 (default), float32, tf32, float64, or x/weight such as bfloat16/float32",
    )
    parser.add_argument("--batches", nargs="+", type=int, metavar="B", help="samples (default: each workload's own)")
    parser.add_argument("--budget", type=float, default=1800.0, metavar="SECONDS", help="for all (default: 1800)")
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="a folder, or a .json file for one pass (default: your own tiles)"
    )
    parser.add_argument("--gpu", type=int, default=0, metavar="INDEX", help="which GPU (default: 0)")
    parser.add_argument("--timings", type=Path, metavar="FILE", help="add every time of every tile to this file too")
    parser.add_argument("--resume", action="store_true", help="leave alone what is on file and finished")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured and written; needs no GPU")
    parser.add_argument("--offline", action="store_true", help="compile and simulate tiles instead; needs no GPU")
    parser.add_argument("--device", metavar="NAME", help="with --offline: h100 or h200")
    parser.add_argument("--jobs", type=int, metavar="N", help="with --offline: kernels at a time (default: all cores)")
    parser.add_argument("--done", nargs="+", default=[], help=argparse.SUPPRESS)  # by the process before this one
    parser.set_defaults(call=_tune, after_interrupt="")


def _tune(options: argparse.Namespace) -> int:
    import time

    import torch

    from lc_triton.errors import ArgumentValueError
    from lc_triton.search.run import Report, check_seconds, plan, tune
    from lc_triton.search.tuner import check_gpu, gpu_bench
    from lc_triton.tiles.device import of_gpu

    check_seconds("--budget", options.budget)
    if options.offline:
        return _tune_offline(options)
    for name in ("device", "jobs"):
        if getattr(options, name) is not None:
            raise ArgumentValueError(name=f"--{name}", value=getattr(options, name), allowed="given beside --offline")
    tasks = _tasks(options)
    gpus = torch.cuda.device_count()
    if not 0 <= options.gpu < max(1, gpus):
        raise ArgumentValueError(name="--gpu", value=options.gpu, allowed=f"below {max(1, gpus)}")
    device = of_gpu(options.gpu)
    out, file_of = _out(options, tasks, device)
    if options.dry_run:
        print(plan(tasks, device, file_of, options.budget, resume=options.resume))
        if not gpus:
            print(f"There is no GPU here: an {device.full_name} stands in for it.")
        return 0
    check_gpu()
    _need_triton("tune")
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
    except LostGPUError as lost:
        left = options.budget - (time.monotonic() - start)
        if not options.is_process or left <= 0:
            raise
        tile, done = lost.fields["tile"], [*options.done, *report.done]
        print(f"lc-triton: {tile}: {lost.fields['reason']}; a fresh process goes on without it")
        restart("--budget", f"{left:.3f}", *(["--done", *done] if done else []))
    print(report.to_text())
    print(_written_to(out))
    return 1 if report.failed else 0


def _tune_offline(options: argparse.Namespace) -> int:
    from lc_triton.core.geometry import check_int
    from lc_triton.errors import ArgumentValueError
    from lc_triton.search.offline import plan, tune_offline
    from lc_triton.simulator import check_simulated, constants_of
    from lc_triton.tiles.device import by_name

    if options.timings is not None:
        allowed = "given without --offline: such a file holds measured times"
        raise ArgumentValueError(name="--timings", value=str(options.timings), allowed=allowed)
    if options.gpu:
        raise ArgumentValueError(name="--gpu", value=options.gpu, allowed="given without --offline: see --device")
    if options.device is None:
        raise ArgumentValueError(name="--device", value=None, allowed="h100 or h200 beside --offline")
    jobs = None if options.jobs is None else check_int("--jobs", options.jobs, 1)
    device = by_name(options.device)
    constants_of(device, "--device")
    tasks = _tasks(options)
    for task in tasks.values():
        check_simulated(task, "--dtypes")
    out, file_of = _out(options, tasks, device)
    if options.dry_run:
        print(plan(tasks, device, file_of, options.budget, resume=options.resume))
        return 0
    _need_triton("tune --offline")
    try:
        report = tune_offline(tasks, device, file_of, options.budget, jobs=jobs, resume=options.resume)
    except KeyboardInterrupt:
        print(f"\nlc-triton: interrupted; what was simulated is in {out}, and --resume goes on", file=sys.stderr)
        return 130
    print(report.to_text())
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
    """The kernels that --workloads, --shapes and the rest ask for."""
    from lc_triton.core.geometry import check_name
    from lc_triton.tiles import workloads
    from lc_triton.tiles.config import PASSES

    for pass_name in options.passes or ():
        check_name("face", pass_name, PASSES)
    batches, chosen = _layers(options)
    return workloads.tasks(chosen, batches, options.dtypes, options.passes or PASSES)


def _layers(options: argparse.Namespace) -> tuple[list[int], list[Workload]]:
    """The batches, and the layers that --workloads, --workload or --shapes name."""
    from lc_triton.core.geometry import check_int, check_name
    from lc_triton.errors import ArgumentValueError
    from lc_triton.tiles import paths, workloads

    batches = [check_int("--batches", b, 1) for b in options.batches or ()]
    if options.shapes:
        if options.workloads or options.workload:
            raise ArgumentValueError(name="--shapes", value=options.shapes, allowed="given without --workloads")
        if not batches:
            raise ArgumentValueError(name="--batches", value=None, allowed="given beside --shapes")
        return batches, [workloads.parse_shape(text, batches) for text in options.shapes]
    known: dict[str, Workload] = {}
    files = options.workloads if isinstance(options.workloads, list) else [options.workloads]
    for file in files:
        known |= workloads.read(file or paths.shipped_workloads())
    for name in options.workload or ():
        check_name("workload", name, known)
    return batches, [known[name] for name in options.workload or known]


def _add_fit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "fit", help="fit the constants of the analytic model to times that tune --timings wrote"
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="what tune --timings wrote")
    parser.add_argument("--device", help="whose numbers to begin with (default: by the name in the files)")
    parser.add_argument("--json", action="store_true", help="one JSON array on standard output, nothing else")
    parser.set_defaults(call=_fit, after_interrupt="")


def _fit(options: argparse.Namespace) -> None:
    from dataclasses import asdict, replace

    from lc_triton.errors import ArgumentValueError
    from lc_triton.search import timings
    from lc_triton.search.fit import fit
    from lc_triton.tiles.device import DEVICES, by_name

    given = None if options.device is None else by_name(options.device)
    known = {device.full_name: device for device in DEVICES.values()}
    groups: dict[str, list[timings.Timing]] = {}
    for path in options.files:
        for timing in timings.read(path):
            groups.setdefault(timing.device, []).append(timing)
    found = []
    for name, group in groups.items():
        if given is None and name not in known:
            raise ArgumentValueError(name="--device", value=None, allowed=f"given for times of {name!r}")
        result = fit(group, replace(given or known[name], full_name=name))
        found.append(asdict(result) | {"device": name})
        if not options.json:
            print(result.to_text())
    if options.json:
        print(json.dumps(found, indent=1))


def _add_precompile(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "precompile", help="compile all kernels of some layers into a folder, for a GPU that need not be here"
    )
    parser.add_argument(
        "--workloads", type=Path, nargs="+", metavar="FILE", help="layers (default: published networks)"
    )
    parser.add_argument("--workload", nargs="+", metavar="NAME", help="only these of them")
    parser.add_argument("--shapes", nargs="+", metavar="SHAPE", help="layers such as 63x63x16,k9,f16 instead")
    parser.add_argument("--batches", nargs="+", type=int, metavar="B", help="samples (default: each workload's own)")
    parser.add_argument(
        "--dtypes", nargs="+", default=["bfloat16"], metavar="DTYPE", help="as of tune; bfloat16/float32 is autocast"
    )
    parser.add_argument("--activations", nargs="+", default=["linear"], metavar="NAME", help="(default: linear)")
    parser.add_argument("--inference", action="store_true", help="no gradients")
    parser.add_argument("--device", default="h100", help="a100, h100 (default), h200, b200, rtx4090 or mi300x")
    parser.add_argument("--out", type=Path, metavar="DIR", help="Triton's cache folder to compile into")
    parser.add_argument("--check", type=Path, metavar="DIR", help="say why Triton here would not use a folder; 1 if so")
    parser.add_argument("--relocate", type=Path, metavar="DIR", help="make a folder that was moved usable where it is")
    parser.set_defaults(call=_precompile, after_interrupt="; what was compiled is found again by the next run")


def _precompile(options: argparse.Namespace) -> int:
    from lc_triton.errors import ArgumentValueError

    _need_triton("precompile")
    if sum(value is not None for value in (options.out, options.check, options.relocate)) != 1:
        raise ArgumentValueError(name="--out", value=options.out, allowed="given, or else --check or --relocate")
    if options.check is not None:
        from lc_triton.ahead import manifest

        reasons = manifest.differences(options.check)
        print("\n".join(reasons) or f"{options.check}: Triton here will use its kernels")
        return int(bool(reasons))
    if options.relocate is not None:
        from lc_triton.ahead import manifest

        print(f"{manifest.relocate(options.relocate)} kernels in {options.relocate} can be used there")
        return 0
    _compile_layers(options)
    return 0


def _compile_layers(options: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from lc_triton.ahead.models import compile_model
    from lc_triton.ahead.session import collecting
    from lc_triton.layers import LocalConv1d, LocalConv2d, LocalConv3d
    from lc_triton.tiles.device import by_name
    from lc_triton.tiles.task import types_of

    device = by_name(options.device)
    batches, layers = _layers(options)
    for dtype in options.dtypes:
        types_of(dtype)
    calls = [
        (layer, batch, *types_of(dtype), activation)
        for layer in layers
        for batch in batches or layer.batches
        for dtype in options.dtypes
        for activation in options.activations
    ]
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    try:
        with collecting(device, options.out) as made:
            for layer, batch, dtype, weight_dtype, precision, activation in tqdm(calls, unit="layer", disable=None):
                setting.fp32_precision = precision
                geo = layer.geometry
                module = (LocalConv1d, LocalConv2d, LocalConv3d)[geo.ndim - 1](
                    geo.in_channels,
                    geo.out_channels,
                    geo.kernel,
                    input_size=geo.in_spatial,
                    stride=geo.stride,
                    padding=list(geo.padding),
                    dilation=geo.dilation,
                    groups=geo.groups,
                    activation=activation,
                    device="meta",
                    dtype=getattr(torch, weight_dtype),
                )
                shape = batch, geo.in_channels, *geo.in_spatial
                compile_model(module, [shape], getattr(torch, dtype), None, training=not options.inference)
    finally:
        setting.fp32_precision = before
    print(made.to_text())


def _add_problem(parser: argparse.ArgumentParser) -> None:
    """The options that say which kernels."""
    parser.add_argument("--workload", help="a name from --workloads")
    parser.add_argument("--workloads", type=Path, help="a file of workloads (default: published networks)")
    parser.add_argument("--all", action="store_true", help="every workload, at each of its batches")
    parser.add_argument("--batch", type=int, help="samples (default: each of the workload's batches)")
    parser.add_argument("--dtype", default="bfloat16", help="float16, bfloat16 (default), float32 or float64")
    parser.add_argument("--device", default="h200", help="a100, h100, h200 (default), b200, rtx4090 or mi300x")
    passes = "forward, input_grad, weight_grad or all (default)"
    parser.add_argument("--face", dest="pass_name", default="all", help=passes)
    parser.add_argument("--json", action="store_true", help="one JSON array on standard output, nothing else")


def _problems(options: argparse.Namespace) -> tuple[list[tuple[Workload, int, Pass]], Device]:
    from lc_triton.core.geometry import check_int, check_name
    from lc_triton.errors import ArgumentValueError
    from lc_triton.tiles import paths, workloads
    from lc_triton.tiles.config import PASSES
    from lc_triton.tiles.device import by_name
    from lc_triton.tiles.key import DTYPES

    check_name("dtype", options.dtype, DTYPES)
    check_name("face", options.pass_name, (*PASSES, "all"))
    device = by_name(options.device)
    known = workloads.read(options.workloads or paths.shipped_workloads())
    if options.all == (options.workload is not None):
        raise ArgumentValueError(name="--workload", value=options.workload, allowed="given, or else --all")
    if options.workload is not None:
        check_name("workload", options.workload, known)
    passes = PASSES if options.pass_name == "all" else (options.pass_name,)
    batches = None if options.batch is None else (check_int("batch", options.batch, 1),)
    chosen = known.values() if options.all else [known[options.workload]]
    return [(w, b, pass_name) for w in chosen for b in batches or w.batches for pass_name in passes], device


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("inspect", help="compile the chosen kernels for a GPU that need not be here")
    _add_problem(parser)
    parser.set_defaults(call=_inspect, after_interrupt="")


def _inspect(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    problems, device = _problems(options)
    _need_triton("inspect")
    from lc_triton.launch.inspection import inspect

    reports = []
    for workload, batch, pass_name in tqdm(problems, desc="compiling", unit="kernel", disable=None):
        report = inspect(workload, batch, options.dtype, pass_name, device)
        reports.append(report.to_json())
        if not options.json:
            tqdm.write(report.to_text() + "\n")
    if options.json:
        print(json.dumps(reports, indent=1))


def _need_triton(command: str) -> None:
    import importlib.util

    from lc_triton.errors import MissingPackageError

    if importlib.util.find_spec("triton") is None:
        raise MissingPackageError(what=command, package="triton (Linux only)", extra="all")


def _add_configs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("configs", help="list the tiles that would be used, and where they come from")
    _add_problem(parser)
    parser.set_defaults(call=_configs, after_interrupt="")


def _configs(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from lc_triton.tiles.select import select
    from lc_triton.tiles.task import Task

    problems, device = _problems(options)
    rows = []
    for workload, batch, pass_name in problems:
        choice = select(Task(pass_name, workload.geometry, batch, options.dtype, options.dtype), device)
        rows.append(
            {
                "workload": workload.name,
                "batch": batch,
                "dtype": options.dtype,
                "face": pass_name,
                "device": device.full_name,
                "config": asdict(choice.config),
                "source": choice.source,
                "path": None if choice.path is None else str(choice.path),
                "median_us": None if choice.measured is None else choice.measured.median_us,
                "simulated_us": None if choice.simulated is None else choice.simulated.simulated_us,
                "stale": choice.stale,
            }
        )
        if not options.json:
            c = choice.config
            tile = f"{c.rows}x{c.cols} f{c.block_f} b{c.block_b} k{c.block_k} w{c.num_warps} s{c.num_stages}"
            tile += " swapped" if c.swap else "" if c.dot else " reduced"
            tile += (f" split {c.split}" if c.split > 1 else "") + (" boxes" if c.descriptor else "")
            where = f"{choice.path}{', stale: the kernel has changed since' if choice.stale else ''}"
            print(
                f"{workload.name:22}{batch:>6}  {pass_name:12}{tile:34}{choice.source}"
                + (f" ({where})" if choice.path else "")
            )
    if options.json:
        print(json.dumps(rows, indent=1))


def _add_convert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "convert", help="turn a model that Keras saved into a torch module, without Keras or TensorFlow"
    )
    parser.add_argument("model", type=Path, metavar="FILE", help="a .h5, .keras or (with --config) .weights.h5 file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.pt", help="what to write, for load_model")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the model's to_json(), for a file of weights alone"
    )
    parser.add_argument(
        "--check",
        type=Path,
        metavar="FILE.npz",
        help="arrays x and y, inputs and what Keras made of them (x0, x1, ... for several): written only if they agree",
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="REL", help="how far, over the largest y (default: by the model's dtype)"
    )
    parser.set_defaults(call=_convert, after_interrupt="; nothing was written")


def _convert(options: argparse.Namespace) -> int:
    from lc_triton.keras.saved.convert import convert

    report = convert(options.model, options.out, options.config, options.check, options.tolerance)
    print(report.to_text())
    return 0 if report.agrees else 1


def _add_env(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("env", help="print what a bug report needs: versions, devices, what runs where")
    parser.set_defaults(call=_env, after_interrupt="")


def _env(_: argparse.Namespace) -> None:
    from importlib import metadata

    import torch

    from lc_triton.core import backend
    from lc_triton.tiles import paths

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "lc-triton": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        "triton": version("triton"),
        "numpy": version("numpy"),
        "GPUs": ", ".join(gpus) or "none that torch sees",
        "CPU tensors take": backend.resolve("cpu"),
        "CUDA tensors take": backend.resolve("cuda"),
        "shipped tiles": str(paths.shipped_configs()),
        "your tiles": str(
            paths.known_user_configs() or "none: this user has no home folder, and LC_TRITON_CONFIG_DIR names none"
        ),
    }
    for name, value in facts.items():
        print(f"{name + ':':20}{value}")


if __name__ == "__main__":
    sys.exit(main())
