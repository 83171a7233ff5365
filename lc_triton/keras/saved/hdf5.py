"""HDF5 files that nobody vouches for, opened by a process of its own and read by the places it finds."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lc_triton.errors import KerasFileError
from lc_triton.keras.saved.extra import check_extra

MAGIC = b"\x89HDF\r\n\x1a\n"

# Deflate shrinks by at most 1032: what claims more numbers than its bytes could hold is a lie.
MOST_EXPANSION = 1032
# What a file may take to be looked through, and more for a large one whose arrays must be unpacked.
SECONDS = 60.0
BYTES_A_SECOND = 10e6


@dataclass(frozen=True)
class Array:
    """An array in a file: its shape, the type and the place of its numbers, or why they cannot be used.

    `part` is the part of its layer that it belongs to ("cell", say), where the file knows parts; `variable` is what
    Keras called the array, where the file knows that.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: Path
    offset: int | None
    wrong: str = ""
    part: str | None = None
    variable: str = ""

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape, dtype=object)) if self.shape else 1

    def read(self) -> Tensor:
        """The numbers."""
        if self.offset is None:
            array = np.load(self.path, allow_pickle=False)
        else:
            array = np.fromfile(self.path, self.dtype, self.size, offset=self.offset).reshape(self.shape)
        if array.dtype == np.dtype("V2"):
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False).reshape(self.shape))


@dataclass(frozen=True)
class Group:
    """A group in a file: lists of names that Keras keeps with it, its groups and its arrays."""

    names: dict[str, list[str]] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """A file of Keras's: its model's configuration if it holds one, who wrote it, and its weights.

    `named` says that layers go by their names in it, as in older files, and not by class and order.
    """

    model: str | None
    version: str | None
    backend: str | None
    named: bool
    weights: Group


@contextmanager
def opened(file: Path, path: Path) -> Iterator[Contents]:
    """What is in a file, while its arrays can be read; `path` is its name in messages."""
    check_extra("reading Keras's files")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).with_name("index.py")), str(file), folder, str(MOST_EXPANSION)]
        seconds = SECONDS + file.stat().st_size / BYTES_A_SECOND
        try:
            done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            reason = f"it is damaged: the HDF5 library has not come to an end of it in {seconds:.0f} s"
            raise KerasFileError(path=path, reason=reason) from None
        if done.returncode:
            reason = f"it is damaged: the HDF5 library did not survive it (exit status {done.returncode})"
            raise KerasFileError(path=path, reason=reason)
        found = json.loads(done.stdout)
        if "wrong" in found:
            raise KerasFileError(path=path, reason=found["wrong"])
        yield Contents(**{**found, "weights": _group(found["weights"], "", file, Path(folder))})


def _group(found: dict[str, Any], name: str, file: Path, folder: Path) -> Group:
    return Group(
        found["names"],
        {key: _group(value, f"{name}/{key}", file, folder) for key, value in found["groups"].items()},
        {key: _array(value, f"{name}/{key}", file, folder) for key, value in found["arrays"].items()},
    )


def _array(found: dict[str, Any], name: str, file: Path, folder: Path) -> Array:
    if "wrong" in found:
        return Array(name, (), "", file, None, found["wrong"])
    path = folder / found["file"] if "file" in found else file
    return Array(name, tuple(found["shape"]), found["dtype"], path, found["offset"])


def import_h5py(what: str) -> Any:
    """The h5py module, for writing."""
    check_extra(what)
    import h5py

    return h5py
