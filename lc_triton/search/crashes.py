"""Tiles that cost a process its GPU: kept beside the measurements, so that no other search runs them."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from lc_triton.errors import first_line
from lc_triton.tiles import store
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.task import Task

# What CUDA says of errors after which every further call of the process fails. Source: the list of cudaError in the
# CUDA Runtime API, "the process must be terminated and relaunched".
LOST = (
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "launch timed out",
    "hardware stack error",
    "invalid program counter",
    "operation not supported on global/shared address space",
    "device-side assert",
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
)


def is_lost(error: BaseException) -> bool:
    """Whether an error means that this process cannot use the GPU any more.

    Example:
        >>> is_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
        True
        >>> is_lost(RuntimeError("CUDA error: out of memory"))
        False
    """
    text = str(error)
    return ("CUDA" in text or type(error).__name__ == "AcceleratorError") and any(kind in text for kind in LOST)


def file_beside(path: Path) -> Path:
    """The file for a file of measured tiles: "forward.crashes.jsonl" beside "forward.json"."""
    return path.with_suffix(".crashes.jsonl")


def note(path: Path, task: Task, tiles: list[TileConfig], error: BaseException) -> None:
    """Add a line to the file beside a file of measured tiles."""
    line = {
        "task": task.to_json(),
        "tiles": [asdict(tile) for tile in tiles],
        "error": first_line(error),
        "triton": metadata.version("triton"),
        "kernel_hash": store.kernel_hash_of(task),
    }
    with file_beside(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def known(path: Path, task: Task) -> frozenset[TileConfig]:
    """The tiles of a task that were noted for this source of its kernel and this Triton."""
    try:
        lines = file_beside(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    found: set[TileConfig] = set()
    for text in lines:
        try:
            line = json.loads(text)
            same = line["triton"] == metadata.version("triton")
            same = same and line["kernel_hash"] == store.kernel_hash_of(task)
            if same and Task.from_json(line["task"]).key == task.key:
                found.update(TileConfig.from_json(tile) for tile in line["tiles"])
        except (ValueError, KeyError, TypeError):  # the last line of a process that was killed as it wrote
            continue
    return frozenset(found)
