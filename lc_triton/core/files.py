"""Files that are whole at every moment, and files that are read without trust."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from lc_triton.errors import first_line

# Age from which another machine's temporary file counts as abandoned: whether its writer runs cannot be seen from here.
# A clock that went backwards makes files seem younger, which only keeps them longer.
ABANDONED_SECONDS = 7 * 24 * 3600


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write a file to, which replaces `path` afterwards.

    A reader, or a crash at any moment, sees the old file or the new one; an error leaves the old one. Temporary
    files of killed writers of the same path are removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(path)
    temporary = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:16]}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@cache
def _machine() -> str:
    """Eight digits for the scope of process ids: one boot of a machine, and on Linux one container."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:8]


def _remove_left_behind(path: Path) -> None:
    """Remove temporary files of a path whose writers are gone; what cannot be removed stays."""
    name = re.compile(rf"\.{re.escape(path.name)}\.([0-9a-f]{{8}})-([0-9]+)-[0-9a-f]{{16}}")
    with suppress(OSError):
        for file in path.parent.iterdir():
            found = name.fullmatch(file.name)
            if found is not None and _is_left_behind(file, *found.groups()):
                file.unlink(missing_ok=True)


def _is_left_behind(file: Path, machine: str, process: str) -> bool:
    if machine != _machine() or os.name != "posix":  # on Windows os.kill with signal 0 sends Ctrl-C
        return time.time() - file.stat().st_mtime > ABANDONED_SECONDS
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # it runs, as another user
    return False


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by a file of `content`."""
    with replaced(path) as temporary:
        temporary.write_bytes(content)


def save_torch(path: Path, content: Any) -> None:
    """Replace `path` by what `torch.save` makes of plain data.

    Raises:
        OSError: the file cannot be written; for a full disk torch's message speaks of an unexpected position.
    """
    import torch

    with replaced(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:
            raise OSError(f"{path} cannot be written ({first_line(error)})") from error


def load_torch(path: Path) -> Any:
    """The plain data that `torch.save` wrote; which error a damaged file raises depends on where the damage is.

    Raises:
        ValueError: a damaged part of the archive; `torch.load` does not check for it.
    """
    import torch

    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"its part {damaged} is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)
