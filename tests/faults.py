"""Processes killed at any moment: python -m tests.faults --kills 200

A child writes a file again and again, each time with other content, and is killed with SIGKILL after a random time.
What it leaves must be read as one of the contents it wrote, every time. Another child trains, and goes on from its last
checkpoint each time it was killed: the weights that it ends with must be those of a run that nobody killed, to the bit.
Needs os.fork.
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
from torch import nn

from lc_triton import FusedAdamW, LocalConv2d
from lc_triton.core.files import load_torch, save_torch
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
    """A function that writes the i-th content, and one that reads the content that is there, or None.

    A child is killed after at most `longest_s`, in which it writes several times.
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
    assert len(times) < 2  # a merge writes all entries or none
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
    """Kill a writer so many times; return how often it had written something."""
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


# The steps of a training, and the steps between two checkpoints: those since the last one are repeated after a kill.
STEPS, STEPS_A_CHECKPOINT = 40, 3


def train(path: Path) -> None:
    """Train to the end from the checkpoint at `path`, if there is one."""
    torch.manual_seed(0)
    net = nn.Sequential(
        LocalConv2d(3, 8, 3, input_size=(10, 10), activation="relu"), nn.Dropout(), LocalConv2d(8, 4, 3, input_size=8)
    )
    optimizer = FusedAdamW(net, lr=0.01, states="bfloat16", l2=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    begin = 0
    if path.exists():
        saved = load_torch(path)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["generator"])  # the generator of dropout
        begin = saved["steps"]
    for step in range(begin, STEPS):
        x = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        schedule.step()
        steps = step + 1
        if steps % STEPS_A_CHECKPOINT == 0 or steps == STEPS:
            states = {"net": net, "optimizer": optimizer, "schedule": schedule}
            saved = {name: of.state_dict() for name, of in states.items()}
            save_torch(path, {**saved, "generator": torch.get_rng_state(), "steps": steps})


def _train_in_child(path: Path) -> int:
    """Start a process that trains to the end, with exit status 0 on success; return its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        train(path)
        status = 0
    finally:
        os._exit(status)


def kill_training(kills: int, folder: Path, seed: int = 0) -> int:
    """Kill a training so many times, then let it end; return how often it resumed from a checkpoint."""
    r, resumed, last = random.Random(seed), 0, folder / "killed.pt"
    train(folder / "first.pt")  # in this process, so that a child does not import and allocate as a first run does
    begin = time.monotonic()
    os.waitpid(_train_in_child(folder / "whole.pt"), 0)
    longest_s = time.monotonic() - begin  # timed here, as the machine may be busy
    want = load_torch(folder / "whole.pt")

    def check() -> None:
        got = load_torch(last)
        assert got["steps"] == STEPS
        assert all(torch.equal(got["net"][name], want["net"][name]) for name in want["net"])
        states = (saved["optimizer"]["state"].values() for saved in (got, want))
        for one, other in zip(*states, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in other)

    for _ in range(kills):
        resumed += last.exists()
        child = _train_in_child(last)
        time.sleep(r.uniform(0, longest_s))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "the training failed by itself"
        if last.exists() and load_torch(last)["steps"] == STEPS:
            check()
            last.unlink()
    resumed += last.exists()
    train(last)
    check()
    return resumed


def main() -> None:
    """Kill each writer, and a training, many times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    for name in WRITERS:
        with tempfile.TemporaryDirectory() as folder:
            found = kill(name, options.kills, Path(folder), options.seed)
            left = [p for p in Path(folder).iterdir() if p.name.startswith(".")]
        assert len(left) <= 1, left  # of the last killed writer; the next write of the file would remove it
        print(
            f"{name}: {options.kills} kills, readable each time, {found} with content, {len(left)} temporary files left"
        )
    with tempfile.TemporaryDirectory() as folder:
        kills = max(3, options.kills // 3)  # each is several steps, not one write
        resumed = kill_training(kills, Path(folder), options.seed)
    print(f"training: {kills} kills, went on from a checkpoint {resumed} times, right to the bit")


if __name__ == "__main__":
    main()
