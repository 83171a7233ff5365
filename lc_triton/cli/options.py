"""What several commands share: options that say which layers and kernels, and what these come to."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from lc_triton.tiles.config import Pass
    from lc_triton.tiles.device import Device
    from lc_triton.tiles.workloads import Workload

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def select_layers(options: argparse.Namespace) -> tuple[list[int], list[Workload]]:
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


def add_problem(parser: argparse.ArgumentParser) -> None:
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


def select_problems(options: argparse.Namespace) -> tuple[list[tuple[Workload, int, Pass]], Device]:
    """The kernels and the device that the options of `add_problem` name."""
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


def need_triton(command: str) -> None:
    """Refuse a command that compiles where Triton is not installed."""
    import importlib.util

    from lc_triton.errors import MissingPackageError

    if importlib.util.find_spec("triton") is None:
        raise MissingPackageError(what=command, package="triton (Linux only)", extra="all")
