"""The command line: `python -m benchmarks COMMAND`, from run to compare; `--help` names all."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import CONTENDERS, MOST_BYTES, OURS
from benchmarks.drawn import drawn_rows
from benchmarks.peers import PEERS
from benchmarks.rows import Row
from benchmarks.suites import RANDOM, SUITES, suite
from lc_triton.core.arguments import check_int, check_name
from lc_triton.core.files import write_atomically
from lc_triton.errors import ArgumentValueError, LocalConvError
from lc_triton.search.run import check_seconds
from lc_triton.tiles import paths, workloads
from lc_triton.tiles.task import types_of

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
GPU_DOCUMENT = DOCUMENT.parent / "dev" / "gpu-model.md"


def chosen(names: Sequence[str], batches: Sequence[int] | None) -> Iterator[tuple[str, int]]:
    """The (workload, batch) pairs of names and shapes."""
    known = workloads.read(paths.shipped_workloads())
    for name in names:
        if "," in name:
            workload = workloads.parse_shape(name, batches or [32])
        else:
            workload = known[check_name("workload", name, known)]
        for batch in batches or workload.batches:
            yield name, check_int("--batches", batch, 1)


def _device(options: argparse.Namespace) -> str:
    device = check_name("--device", options.device, tuple(MOST_BYTES))
    if device == "cuda" and not torch.cuda.is_available():
        raise ArgumentValueError(name="--device", value="cuda", allowed="cpu here: torch finds no GPU")
    return device


def rows(options: argparse.Namespace) -> list[Row]:
    """The rows that the options of a command name."""
    check_seconds("--seconds", options.seconds)
    check_int("--threads", options.threads, 1)
    device = _device(options)
    for dtype in options.dtypes:
        if types_of(dtype)[2] == "tf32" and device == "cpu":
            raise ArgumentValueError(name="--dtypes", value=dtype, allowed="tf32 with --device cuda only")
    drawn = options.workload is None and check_name("--suite", options.suite, (*SUITES, RANDOM)) == RANDOM
    if options.seed is not None and not drawn:
        raise ArgumentValueError(name="--seed", value=options.seed, allowed=f"given with --suite {RANDOM} only")
    if drawn:
        if device != "cpu":
            raise ArgumentValueError(name="--device", value=device, allowed=f"cpu with --suite {RANDOM}")
        seed = check_int("--seed", options.seed or 0, 0)
        return [row for dtype in options.dtypes for row in drawn_rows(seed, dtype, options.threads)]
    if options.workload is None:
        pairs = suite(options.suite)
    else:
        pairs = list(chosen(options.workload, options.batches))
    return [Row(*pair, dtype, options.threads, options.device) for pair in pairs for dtype in options.dtypes]


def _run(options: argparse.Namespace) -> int:
    from benchmarks.run import run, summary

    for name in options.contenders or ():
        check_name("contender", name, CONTENDERS)
    timed = rows(options)
    contenders = options.contenders or (PEERS if options.suite == RANDOM and not options.workload else CONTENDERS)
    measured: list[dict[str, Any]] = []
    for results in run(timed, options.seconds, [OURS, *contenders]):
        write_atomically(options.out, (json.dumps(results, indent=1) + "\n").encode())
        measured = results["rows"]
    print(summary(measured))
    return int(any("skipped" in row["contenders"][OURS] for row in measured))


def _optimizer(options: argparse.Namespace) -> int:
    from benchmarks import optimizers

    for name in options.contenders or ():
        check_name("contender", name, optimizers.TRAINERS)
    names = list(dict.fromkeys([optimizers.FUSED, *(options.contenders or optimizers.TRAINERS)]))
    measured: list[dict[str, Any]] = []
    for results in optimizers.run(rows(options), options.seconds, names):
        write_atomically(options.out, (json.dumps(results, indent=1) + "\n").encode())
        measured = results["rows"]
    print(optimizers.table(measured))
    return int(any("skipped" in row["contenders"][optimizers.FUSED] for row in measured))


def _gpu(options: argparse.Namespace) -> int:
    from benchmarks.gpu import run

    return run.command(options.out, options.deadline, options)


def _overhead(options: argparse.Namespace) -> int:
    from benchmarks.overhead import overhead
    from benchmarks.run import about

    results = {"about": about("cpu"), "overhead": overhead()}
    write_atomically(options.out, (json.dumps(results, indent=1) + "\n").encode())
    print(json.dumps(results["overhead"], indent=1))
    return 0


def _host_time(options: argparse.Namespace) -> int:
    from benchmarks.host_time import host_time

    for name, microseconds in host_time().items():
        print(f"{name:24s} {microseconds:8.2f}")
    return 0


def _accuracy(options: argparse.Namespace) -> int:
    from benchmarks.accuracy import accuracy, missed
    from benchmarks.run import about

    results = {"about": about(_device(options)), "accuracy": accuracy(options.device)}
    write_atomically(options.out, (json.dumps(results, indent=1) + "\n").encode())
    past = missed(results["accuracy"])
    print(json.dumps(past, indent=1) if past else f"all {len(results['accuracy'])} rows are within their bars")
    return int(bool(past))


def _report(options: argparse.Namespace) -> int:
    from benchmarks.report import report

    print("\n".join(f"Written: {path}" for path in report(options.files, options.document)))
    return 0


def _regimes(options: argparse.Namespace) -> int:
    from benchmarks import regimes

    regimes.write(options.document)
    print(f"Written: {options.document}")
    return 0


def _step(options: argparse.Namespace) -> int:
    from benchmarks import step

    step.write(options.document)
    print(f"Written: {options.document}")
    return 0


def _states(options: argparse.Namespace) -> int:
    from benchmarks import states

    states.write(options.document)
    print(f"Written: {options.document}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from benchmarks.compare import compare

    return int(not compare((options.a, options.b), rows(options), options.seconds))


def main() -> int:
    """Run a command; 2 for wrong input, 1 where lc_triton's results are wrong or slower than they were."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="lc_triton beside its peers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    what = argparse.ArgumentParser(add_help=False)
    what.add_argument(
        "--suite", default="cpu", metavar="NAME", help="cpu (default), growth, random, or published: every layer"
    )
    what.add_argument("--seed", type=int, metavar="S", help="of --suite random: which layers are drawn (default: 0)")
    what.add_argument("--workload", nargs="+", metavar="NAME", help="instead: names, or shapes like 63x63x16,k9,f16")
    what.add_argument("--batches", nargs="+", type=int, metavar="B", help="of --workload (default: its own)")
    what.add_argument(
        "--dtypes", nargs="+", default=["float32"], metavar="DTYPE", help="or tf32, or x/weight as under autocast"
    )
    what.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    what.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    what.add_argument("--seconds", type=float, default=5.0, help="for the rounds of a row and mode (default: 5)")

    command = commands.add_parser("run", parents=[what], help="check and time every contender")
    command.add_argument("--contenders", nargs="+", metavar="NAME", help="beside lc_triton (default: everyone)")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    command.set_defaults(run=_run)
    command = commands.add_parser("optimizer", parents=[what], help="check and time training steps with an optimizer")
    command.add_argument("--contenders", nargs="+", metavar="NAME", help="beside FusedAdamW (default: everyone)")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    command.set_defaults(run=_optimizer)
    command = commands.add_parser("gpu", help="all that is to be learnt on a GPU, in order of worth, until a deadline")
    command.add_argument("--deadline", type=float, required=True, metavar="SECONDS", help="for all")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="for results.jsonl, timings and tiles")
    command.add_argument("--rows", default="worth", metavar="WHICH", help="worth (default): one a regime; or published")
    command.add_argument("--phases", nargs="+", metavar="PHASE", help="only these (default: all)")
    command.add_argument("--seconds", type=float, default=0.3, help="for the rounds of one timing (default: 0.3)")
    command.add_argument("--resume", action="store_true", help="leave alone what DIR has the results of")
    command.add_argument("--dry-run", action="store_true", help="print the plan and its minutes; needs no GPU")
    command.add_argument("--stand-in", metavar="DEVICE", help="compile for an h100, say, and run all but for numbers")
    command.set_defaults(run=_gpu)
    command = commands.add_parser("overhead", help="time imports, first calls and the host's part of a call")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    command.set_defaults(run=_overhead)
    command = commands.add_parser("host-time", help="time the host's part of a GPU call, on a stand-in driver")
    command.set_defaults(run=_host_time)
    command = commands.add_parser("accuracy", help="measure errors beside torch's own, while sums grow")
    command.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    command.set_defaults(run=_accuracy)
    command = commands.add_parser(
        "report",
        help="write the tables and pictures of docs/performance.md, docs/dev/benchmarks.md and docs/accuracy.md",
    )
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what run, overhead and accuracy wrote")
    command.add_argument("--document", type=Path, default=DOCUMENT, metavar="FILE")
    command.set_defaults(run=_report)
    command = commands.add_parser("regimes", help="write the table of what the model predicts for a GPU")
    command.add_argument("--document", type=Path, default=GPU_DOCUMENT, metavar="FILE")
    command.set_defaults(run=_regimes)
    command = commands.add_parser("step", help="write the table of simulated training steps with an optimizer")
    command.add_argument("--document", type=Path, default=DOCUMENT, metavar="FILE")
    command.set_defaults(run=_step)
    command = commands.add_parser("states", help="measure what small states of AdamW cost in accuracy")
    command.add_argument("--document", type=Path, default=DOCUMENT.with_name("optimizer.md"), metavar="FILE")
    command.set_defaults(run=_states)
    command = commands.add_parser(
        "compare", parents=[what], help="time two states of lc_triton in turns; 1 where B is more than 5%% slower"
    )
    command.add_argument("a", metavar="A", help="a results file, a git revision, or . for the files here")
    command.add_argument("b", metavar="B", help="as A")
    command.set_defaults(run=_compare)
    options = parser.parse_args()
    try:
        status: int = options.run(options)
    except (LocalConvError, OSError, json.JSONDecodeError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
