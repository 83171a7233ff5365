"""Reads mutated files of Keras: `python -m tests.keras.fuzz --cases 10000`.

Each case is a real file with bytes changed, cut, doubled or zeroed, or a real configuration with values replaced. It
may load, or raise a LocalConvError. Other exceptions, crashes, and too much time or memory are failures; the number of
the case is printed to repeat it.
"""

import argparse
import copy
import json
import random
import resource
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import torch
from torch import nn

import lc_triton
from lc_triton.errors import LocalConvError
from lc_triton.keras import load_model, load_weights
from lc_triton.keras.saved import hdf5

HERE = Path(__file__).parent / "saved"
GRAPHS = ("nested", "masked", "keyed", "operators", "custom")
SMALL = [
    *GRAPHS,
    "local_1_channels_last",
    "local_2_channels_last",
    "local_3_channels_first",
    "sequence",
    "every_layer",
    "penalised",
]
# The HDF5 library never returns on some files, so the reader has a limit of time.
hdf5.SECONDS = 2.0
SECONDS_A_CASE = hdf5.SECONDS + 10
MAX_MEGABYTES = 400

VALUES = [
    None, True, -1, 0, 1, 3, 2**31, 10**30, -1.5, 1e308, "", "relu", "channels_first", "same", "x" * 1000, [], {}, [[]],
    [None], [1, 2, 3, 4, 5], {"class_name": "function", "config": "relu"}, {"class_name": "Policy", "config": None},
]  # fmt: skip


def mutated_bytes(r, content):
    """A file with a few places changed, or a piece lost, doubled, moved or zeroed."""
    data = bytearray(content)
    for _ in range(r.choice([1, 1, 2, 4, 16])):
        kind, at = r.randrange(6), r.randrange(len(data))
        length = min(r.choice([1, 2, 4, 8, 64, 512]), len(data) - at)
        if kind == 0:
            data[at] ^= 1 << r.randrange(8)
        elif kind == 1:
            data[at : at + length] = r.randbytes(length)
        elif kind == 2:
            data[at : at + length] = bytes(length)
        elif kind == 3:
            data[at : at + length] = b"\xff" * length
        elif kind == 4:
            del data[at : at + length]
        else:
            data[at:at] = data[at : at + length]
        if not data:
            return b"\x89HDF\r\n\x1a\n"
    return bytes(data[: r.randrange(len(data))] if r.random() < 0.1 else data)


def mutated_config(r, config):
    """A configuration with one to three of its values replaced, removed or repeated."""
    config = copy.deepcopy(config)
    for _ in range(r.choice([1, 1, 2, 3])):
        places = [(config, "config")]
        for holder, key in places:  # the loop appends to the list
            value = holder[key]
            if isinstance(value, dict):
                places += [(value, k) for k in value]
            elif isinstance(value, list):
                places += [(value, i) for i in range(len(value))]
        holder, key = r.choice(places)
        kind = r.randrange(8)
        if kind == 0 and isinstance(holder, dict):
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 2 and isinstance(holder[key], int):
            holder[key] += r.choice([-1, 1, 1000, 10**6])
        elif kind == 3:
            other = r.choice(places)
            holder[key] = copy.deepcopy(other[0].get(other[1]) if isinstance(other[0], dict) else other[0][other[1]])
        else:
            holder[key] = copy.deepcopy(r.choice(VALUES))
        if "config" not in config:
            config["config"] = None
    return config


def case(number, folder):
    """Run one case, and return its exception or None."""
    r = random.Random(number)
    name = r.choice(SMALL)
    here = folder if name in GRAPHS else HERE
    modules = {"double": lambda layer: torch.neg} if name == "custom" and r.random() < 0.5 else None
    if r.random() < 0.5:
        config = mutated_config(r, json.loads((here / f"{name}.json").read_text()))
        model = load_model(here / f"{name}.weights.h5", config=config, modules=modules)
        lc_triton.regularization_loss(model)
        lc_triton.apply_constraints(model)
        return
    kind = r.choice([kind for kind in ("h5", "keras", "weights.h5") if (here / f"{name}.{kind}").exists()])
    path = folder / f"case.{kind}"
    path.write_bytes(mutated_bytes(r, (here / f"{name}.{kind}").read_bytes()))
    if r.random() < 0.3:
        load_weights(nn.Sequential(nn.Linear(3, 3)), path, strict=False)
    else:
        load_model(path, config=(here / f"{name}.json").read_text() if kind == "weights.h5" else None)


def main():
    """Run many cases; exit 1 at the first failure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = refused = 0
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(HERE / "graphs.zip") as archive:
            archive.extractall(folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(options.first, options.first + options.cases):
            print(f"\rcase {number}", end="", file=sys.stderr, flush=True)  # the last output if the process crashes
            start = time.perf_counter()
            try:
                case(number, Path(folder))
                loaded += 1
            except LocalConvError:
                refused += 1
            except BaseException:
                print(f"\ncase {number} failed: python -m tests.keras.fuzz --first {number} --cases 1", file=sys.stderr)
                raise
            took = time.perf_counter() - start
            if took > SECONDS_A_CASE:
                raise SystemExit(f"\ncase {number} took {took:.0f} s")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n{loaded} loaded, {refused} refused, {grown:.0f} MB more memory at most")
    if grown > MAX_MEGABYTES:
        raise SystemExit("too much memory")


if __name__ == "__main__":
    main()
