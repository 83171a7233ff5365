"""Results as lines of JSON, each on the disk before the next step begins: readable after a kill at any moment."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

Line = dict[str, Any]
Key = tuple[str, str]

# How often a step is begun before it is left out: a process that was killed may not have been its fault.
ATTEMPTS = 2


def read(path: Path) -> list[Line]:
    """The lines of a journal, without one that a killed process wrote in part; none where there is no file."""
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            found.append(line)
    return found


def settled(lines: list[Line]) -> set[Key]:
    """The steps that have a result, or were begun `ATTEMPTS` times without one: what `--resume` leaves alone."""
    begun = Counter((line["phase"], line["step"]) for line in lines if line.get("status") == "begun")
    ended = [line for line in lines if "step" in line and line["status"] != "begun" and not line.get("again")]
    done = {(line["phase"], line["step"]) for line in ended}
    return done | {key for key, times in begun.items() if times >= ATTEMPTS}


class Journal:
    """A file to which lines are added.

    Args:
        path: it, made where there is none; lines that are there stay.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":  # a line that a killed process wrote in part
            os.write(self._file, b"\n")

    def write(self, line: Line) -> None:
        """Add a line by one call of the system, and wait until it is on the disk."""
        os.write(self._file, (json.dumps(line, default=str) + "\n").encode())
        os.fsync(self._file)
