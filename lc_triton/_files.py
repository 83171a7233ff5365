"""Files that are whole at every moment, and files that are read without trust."""

from __future__ import annotations

import os
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lc_triton.errors import first_line


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write a file to, which replaces `path` afterwards.

    A reader, or a crash at any moment, sees the old file or the new one; an error leaves the old one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by a file of `content`."""
    with replaced(path) as temporary:
        temporary.write_bytes(content)


def save_torch(path: Path, content: Any) -> None:
    """Replace `path` by what `torch.save` makes of plain data.

    Raises:
        OSError: it cannot be written; of a full disk torch says in words of its own that a position was unexpected.
    """
    import torch

    with replaced(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:
            raise OSError(f"{path} cannot be written ({first_line(error)})") from error


def load_torch(path: Path) -> Any:
    """What `torch.save` wrote, if it is plain data; anything wrong raises, what depends on where it is wrong.

    Raises:
        ValueError: a part that is damaged, which torch's own reading does not look for.
    """
    import torch

    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"its part {damaged} is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)
