"""`python -m tests.emulator.check`: executes the PTX of every kernel on the CPU.

The results are compared with the definition in float64, and every access to memory is checked. The exit status is 1 if
anything is wrong. `--out FILE` writes each finished job to the file at once, as a line of JSON; `--resume` leaves
out the jobs that are in the file already. TRITON_CACHE_DIR must be a separate folder: its "cubin" files contain PTX.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

import lc_triton
from tests.emulator import driver
from tests.emulator.execute import execute
from tests.emulator.jobs import ARCHS, PARTS, TYPES, Job, jobs

# Kernels that a process compiled stay in its memory, so a process is replaced after this number of jobs.
JOBS_OF_A_PROCESS = 40
# The results of a job depend on these files and on the job.
SOURCES = ("kernels/*.py", "launch/*.py")


class Outcome(NamedTuple):
    """The result of one job, as a line of the file."""

    job: str
    key: str
    architecture: int
    types: str
    seconds: float
    numbers: int = 0
    launches: tuple[tuple[str, int, float], ...] = ()  # kernel, programs, seconds
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    error: str = ""
    made_of: str = ""

    @property
    def sound(self) -> bool:
        """Whether it ran and nothing is wrong."""
        return not self.faults and not self.error


def key_of(job: Job) -> str:
    """Sixteen hexadecimal digits that identify a job with all its arguments."""
    return hashlib.sha256(repr(job).encode()).hexdigest()[:16]


def run(job: Job) -> Outcome:
    """Execute a job; an error becomes its outcome, and the other jobs still run."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    named: dict[str, Any] = {"job": str(job), "key": key_of(job), "architecture": job.arch, "types": job.types}
    named["made_of"] = repr(job.sound)
    try:
        report = execute(job.sound)
    except Exception as error:
        where = "".join(traceback.format_tb(error.__traceback__, limit=-2))
        text = f"{type(error).__name__}: {str(error)[:300]}\n{where}"
        return Outcome(**named, seconds=time.perf_counter() - started, error=text)
    finally:
        driver.translation_of.cache_clear()
    notes = [f"{kernel}: {note}"[:400] for kernel, found in report.notes.items() for note in found]
    picked = job.name.startswith("model/")  # a tile that is launched: it must fit, with no undefined result
    return Outcome(
        **named,
        seconds=report.seconds,
        numbers=report.compared,
        launches=tuple((kernel, result.programs, result.seconds) for kernel, result in report.results),
        faults=tuple(text[:400] for text in [*report.faults, *([*notes, *report.refused] if picked else [])]),
        notes=() if picked else tuple(notes),
        refused=tuple(report.refused),
    )


def sources_hash() -> str:
    """A hash of kernels, launchers and Triton's version; outcomes with another hash are not resumed."""
    folder = Path(lc_triton.__file__).parent
    digest = hashlib.sha256(triton.__version__.encode())
    for pattern in SOURCES:
        for path in sorted(folder.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def read(path: Path) -> dict[str, Outcome]:
    """The outcomes in a file by key, without a last line that is incomplete because the process was killed.

    Raises:
        SystemExit: the file was written for other kernels.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    if not lines:
        return {}
    if json.loads(lines[0]).get("sources") != sources_hash():
        raise SystemExit(f"{path} is of other kernels or another Triton: remove it, or name another file by --out")
    found = {}
    for line in lines[1:]:
        try:
            outcome = Outcome(**json.loads(line))
        except json.JSONDecodeError:
            continue
        found[outcome.key] = outcome
    return found


def table(outcomes: list[Outcome]) -> str:
    """By architecture, types and kernel: launches, programs and time; and the numbers compared."""
    rows: defaultdict[tuple[int, str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    numbers: Counter[tuple[int, str]] = Counter()
    for outcome in outcomes:
        numbers[outcome.architecture, outcome.types] += outcome.numbers
        for kernel, programs, seconds in outcome.launches:
            row = rows[outcome.architecture, outcome.types, kernel]
            row[:] = (total + more for total, more in zip(row, (1, programs, seconds), strict=True))
    lines = [f"{'arch':6}{'types':10} {'kernel':20} launches  programs  ms a program"]
    for (arch, types, kernel), (launches, total, spent) in sorted(rows.items()):
        each = 1000 * spent / max(1, total)
        lines.append(f"sm_{arch:<3}{types:10} {kernel:20} {launches:8.0f} {total:9.0f} {each:13.1f}")
    lines += [f"sm_{arch:<3}{types:10} {n} numbers compared" for (arch, types), n in sorted(numbers.items())]
    return "\n".join(lines)


def run_all(todo: list[Job], workers: int) -> Iterator[Outcome]:
    """Run jobs in processes that are replaced from time to time; yield each outcome when it is ready."""
    context = multiprocessing.get_context("spawn")
    size = JOBS_OF_A_PROCESS * workers
    for start in range(0, len(todo), size):
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures = [pool.submit(run, job) for job in todo[start : start + size]]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:  # the caller stopped
                pool.shutdown(cancel_futures=True)


def report(outcome: Outcome, number: str) -> None:
    """Print a line for an outcome, and what is wrong."""
    ran = " ".join(f"{kernel.removesuffix('_kernel')}:{programs}" for kernel, programs, _ in outcome.launches)
    state = "ok" if outcome.sound else "WRONG"
    print(f"{state} {number} {outcome.job} {outcome.numbers} numbers {outcome.seconds:.1f}s [{ran}]")
    for text in [*outcome.faults, *outcome.notes, *outcome.refused, *filter(None, [outcome.error])]:
        print("     ", text)
    if not outcome.sound:
        print("     ", outcome.made_of)
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    """Run the jobs that the arguments select, and print what is wrong, and a table."""
    parser = argparse.ArgumentParser(prog="tests.emulator.check", description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHS), choices=ARCHS)
    parser.add_argument("--dtypes", nargs="+", default=list(TYPES), choices=list(TYPES))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--filter", default="", help="only jobs whose name has this in it")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th job, from the i-th")
    parser.add_argument("--seconds", type=float, default=0, help="start no job after so long; 0: no limit")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="a file to which each finished job is added")
    parser.add_argument("--resume", action="store_true", help="leave out the jobs that are in the file and were sound")
    args = parser.parse_args(argv)
    first, step = (int(v) for v in args.part.split("/"))
    todo = [j for j in jobs(tuple(args.arch), tuple(args.dtypes), tuple(args.parts)) if args.filter in j.name]
    todo = todo[first::step]
    if args.resume and args.out is None:
        parser.error("--resume needs --out")
    known = read(args.out) if args.resume else {}
    done = [known[key] for job in todo if (key := key_of(job)) in known and known[key].sound]
    finished = {outcome.key for outcome in done}
    left = [job for job in todo if key_of(job) not in finished]
    if args.out is not None:
        lines = [{"sources": sources_hash()}, *(outcome._asdict() for outcome in done)]
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{len(todo)} jobs, {len(done)} of them finished before", flush=True)
    started = time.perf_counter()
    for outcome in run_all(left, args.workers):
        done.append(outcome)
        if args.out is not None:
            with args.out.open("a") as file:
                file.write(json.dumps(outcome._asdict()) + "\n")
        report(outcome, f"{len(done)}/{len(todo)}")
        if args.seconds and time.perf_counter() - started > args.seconds:
            break
    print(table(done))
    wrong, refused = sum(not outcome.sound for outcome in done), sum(len(outcome.refused) for outcome in done)
    launches, numbers = (sum(len(outcome.launches) for outcome in done), sum(outcome.numbers for outcome in done))
    print(
        f"{len(done)} of {len(todo)} jobs, {launches} launches, {numbers} numbers, {wrong} jobs wrong, "
        f"{refused} passes whose tile does not fit the device; {time.perf_counter() - started:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
