"""The command line: `python -m benchmarks run`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.rows import Row
from benchmarks.run import run
from benchmarks.suites import SUITES, suite
from lc_triton._files import write_atomically
from lc_triton._geometry import check_int, check_name
from lc_triton.errors import LocalConvError
from lc_triton.search.run import check_seconds
from lc_triton.tiles import paths, workloads
from lc_triton.tiles.key import DTYPES


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


def main() -> int:
    """Run a command; 2 for wrong input, 1 where lc_triton's own results are wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="lc_triton beside its peers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("run", help="check and time every contender on this machine's CPU")
    command.add_argument("--suite", default="cpu", metavar="NAME", help="cpu (default), or published: every layer")
    command.add_argument("--workload", nargs="+", metavar="NAME", help="instead: names, or shapes like 63x63x16,k9,f16")
    command.add_argument("--batches", nargs="+", type=int, metavar="B", help="of --workload (default: its own)")
    command.add_argument("--dtypes", nargs="+", default=["float32"], metavar="DTYPE")
    command.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    command.add_argument("--seconds", type=float, default=5.0, help="for the rounds of a row and mode (default: 5)")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    options = parser.parse_args()
    try:
        check_seconds("--seconds", options.seconds)
        for dtype in options.dtypes:
            check_name("dtype", dtype, DTYPES)
        if options.workload is None:
            check_name("--suite", options.suite, SUITES)
            pairs = suite(options.suite)
        else:
            pairs = list(chosen(options.workload, options.batches))
    except LocalConvError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    rows = [Row(*pair, dtype, options.threads) for pair in pairs for dtype in options.dtypes]
    results = run(rows, options.seconds)
    write_atomically(options.out, (json.dumps(results, indent=1) + "\n").encode())
    return int(any("skipped" in row["contenders"]["lc_triton"] for row in results["rows"]))


if __name__ == "__main__":
    sys.exit(main())
