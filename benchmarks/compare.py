"""Two states of lc_triton against each other, in turns."""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders import MODES, OURS
from benchmarks.rows import Data, Row, expected
from benchmarks.run import LEAST_ROUNDS, WARM_UP, Entrant
from lc_triton.errors import ArgumentValueError

SLOWER = 1.05
ROOT = Path(__file__).parents[1]


def compare(states: tuple[str, str], rows: Sequence[Row], seconds: float) -> bool:
    """Time both states on every row, print B / A, and say whether B is nowhere more than 5% slower.

    Two names of one commit are not timed. What looks slower is timed once more, three times as long: other
    work of the machine may have caused it.

    Args:
        states: A and B: a results file (the commit it was measured at), a git revision, or "." for the files here.
        rows: what to time.
        seconds: for a row and mode.
    """
    commits = [None if state == "." else _commit(state) for state in states]
    if commits[0] is not None and commits[0] == commits[1]:
        print(f"A and B are the same commit, {commits[0][:10]}: nothing can differ, and nothing was timed")
        return True
    with tempfile.TemporaryDirectory() as folder:
        trees = [_tree(commit, Path(folder) / name) for commit, name in zip(commits, "AB", strict=True)]
        slower = False
        for row in rows:
            ratios = time_pair(trees, row, seconds)
            if any(ratio > SLOWER for ratio in ratios.values()):
                ratios = time_pair(trees, row, 3 * seconds)
            verdict = "SLOWER" if any(ratio > SLOWER for ratio in ratios.values()) else "ok"
            slower |= verdict != "ok"
            both = "  ".join(f"{mode} {ratio:.3f}" for mode, ratio in ratios.items())
            print(f"{row.workload} b{row.batch} {row.dtype}  B / A: {both}  {verdict}", flush=True)
    return not slower


def time_pair(trees: Sequence[Path], row: Row, seconds: float) -> dict[str, float]:
    """The median ratio of neighbouring turns, B / A."""
    want = expected(row, Data.make(row))
    pair = [_entrant(tree, row, want) for tree in trees]
    ratios: dict[str, float] = {}
    for mode in MODES:
        found: list[float] = []
        for _ in range(WARM_UP):
            for entrant in pair:
                entrant.turn(mode)
        end = time.monotonic() + seconds
        while len(found) < LEAST_ROUNDS or time.monotonic() < end:
            first, second = (entrant.turn(mode) for entrant in pair)
            for state, entrant in zip("AB", pair, strict=True):
                if entrant.skipped is not None:
                    allowed = f"right and runnable: it has no times, for {entrant.skipped}"
                    raise ArgumentValueError(name=f"state {state}", value=row.workload, allowed=allowed)
            found.append(second / first)
        ratios[mode] = statistics.median(found)
    for entrant in pair:
        entrant.close()
    return ratios


def _entrant(tree: Path, row: Row, want: dict[str, object]) -> Entrant:
    """lc_triton of a tree: a spawned process takes over the path as it is when it starts."""
    sys.path.insert(0, str(tree))
    try:
        return Entrant(row, OURS, want)  # type: ignore[arg-type]
    finally:
        sys.path.remove(str(tree))


def _commit(state: str) -> str:
    """The commit that a results file or a git revision names."""
    revision = state
    if Path(state).is_file():
        try:
            revision = json.loads(Path(state).read_text())["about"]["commit"].removesuffix("+changes")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ArgumentValueError(name="state", value=state, allowed="a file of results, with its commit") from None
    done = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        allowed = "a results file whose commit is in this repository, a git revision or '.'"
        raise ArgumentValueError(name="state", value=state, allowed=allowed)
    return done.stdout.strip()


def _tree(commit: str | None, folder: Path) -> Path:
    """A folder that holds lc_triton as it was at a commit; None is for the files here."""
    if commit is None:
        return ROOT
    tree = ["git", "ls-tree", "--name-only", commit, "lc_triton", "autotune_configs"]  # older commits have two folders
    parts = subprocess.run(tree, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    done = subprocess.run(["git", "archive", commit, *parts], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    if not (folder / "lc_triton" / "workloads.json").exists():  # which older commits have among the benchmarks
        shutil.copy(ROOT / "lc_triton" / "workloads.json", folder / "lc_triton")
    path = os.pathsep.join([str(folder), str(ROOT)])
    run = [sys.executable, "-c", "import benchmarks.worker"]
    done = subprocess.run(run, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode().strip().rpartition("\n")[2]
        allowed = f"a commit whose lc_triton these benchmarks can import ({reason})"
        raise ArgumentValueError(name="state", value=commit[:10], allowed=allowed)
    return folder
