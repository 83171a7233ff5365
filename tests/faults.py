"""Writers killed at any moment: python -m tests.faults --kills 200

A child writes a file again and again, each time with other content, and is killed with SIGKILL after a random time.
What it leaves must be read as one of the contents it wrote, every time. Needs os.fork.
"""

import argparse
import itertools
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lc_triton.core.geometry import Geometry
from lc_triton.demo import checkpoint
from lc_triton.keras.saved.convert import convert
from lc_triton.keras.saved.load import load_model
from lc_triton.tiles import store
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.entries import Measured
from lc_triton.tiles.task import Task

MODEL = Path(__file__).parent / "keras" / "saved" / "local_1_channels_last.h5"
KEY = Task("forward", Geometry.make((8, 9), 16, 32, 3), 20, "bfloat16", "float32").key
# Invented numbers, which never leave the folder of a test.
MEASURED = Measured(TileConfig(1, 1, 32, 64, 32), 1, 1, 1, 1, 1, 0.5, None, None, True, "", "", "", "")


@dataclass(frozen=True)
class Writer:
    """What a child does for the i-th time, and how what is there afterwards is read: its content, or None.

    It lives for `longest_s` at most, time for several writes.
    """

    write: Callable[[Path, int], None]
    read: Callable[[Path], object]
    longest_s: float = 0.05


def _write_checkpoint(folder: Path, i: int) -> None:
    runs = {"local": {"step": i, "weights": torch.full((50_000,), float(i))}}
    checkpoint.save(folder / "checkpoint.pt", {"seed": 0}, runs)


def _read_checkpoint(folder: Path) -> object:
    if not (folder / "checkpoint.pt").exists():
        return None
    run = checkpoint.load(folder / "checkpoint.pt", {"seed": 0})["local"]
    assert (run["weights"] == run["step"]).all()
    return run["step"] + 1


def _write_tile(folder: Path, i: int) -> None:
    entries = {KEY.at(2 ** (n % 20)): replace(MEASURED, median_us=float(i)) for n in range(20)}
    store.merge(folder / "forward.json", "test", "forward", entries)


def _read_tile(folder: Path) -> object:
    times = {entry.median_us for entry in store.read(folder / "forward.json").values()}
    assert len(times) < 2  # a merge is whole or did not happen
    return times.pop() + 1 if times else None


def _convert(folder: Path, i: int) -> None:
    convert(MODEL, folder / "model.pt")


def _read_converted(folder: Path) -> object:
    if not (folder / "model.pt").exists():
        return None
    got, want = load_model(folder / "model.pt").state_dict(), load_model(MODEL).state_dict()
    assert all(torch.equal(got[name], want[name]) for name in want)
    return True


WRITERS = {
    "checkpoint": Writer(_write_checkpoint, _read_checkpoint),
    "tuning": Writer(_write_tile, _read_tile),
    "conversion": Writer(_convert, _read_converted, longest_s=1.5),
}


def kill(name: str, kills: int, folder: Path, seed: int = 0) -> int:
    """Kill a writer so many times; the number of times that something had been written by then."""
    writer, r, found = WRITERS[name], random.Random(seed), 0
    for _ in range(kills):
        child = os.fork()
        if not child:
            try:
                for i in itertools.count(1):
                    writer.write(folder, i)
            finally:
                os._exit(1)
        time.sleep(r.uniform(0, writer.longest_s))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"{name}: the writer failed by itself"
        found += writer.read(folder) is not None
    return found


def main() -> None:
    """Kill each writer many times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    for name in WRITERS:
        with tempfile.TemporaryDirectory() as folder:
            found = kill(name, options.kills, Path(folder), options.seed)
            left = [p for p in Path(folder).iterdir() if p.name.startswith(".")]
        assert len(left) <= 1, left  # of the last one killed: the next to write the same file would remove it
        print(
            f"{name}: {options.kills} kills, readable each time, {found} with content, {len(left)} temporary files left"
        )


if __name__ == "__main__":
    main()
