"""The files Keras writes, opened by what they are: .h5 with or without a model, .weights.h5, .keras."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lc_triton.errors import KerasFileError, first_line
from lc_triton.keras.saved import hdf5, spec

ZIP_MAGIC = b"PK\x03\x04"
WEIGHTS = "model.weights.h5"


@dataclass(frozen=True)
class Saved:
    """An open file: what it holds, and its model where it holds one."""

    path: Path
    contents: hdf5.Contents
    model: spec.ModelSpec | None


@contextmanager
def opened(path: Path) -> Iterator[Saved]:
    """A file of Keras's, open to be read.

    Raises:
        KerasFileError: no such file, or one that is damaged, something else, or claims more than it can hold.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise KerasFileError(path=path, reason=error.strerror or first_line(error)) from error
    if head.startswith(ZIP_MAGIC):
        with _zipped(path) as saved:
            yield saved
    elif head == hdf5.MAGIC:
        with hdf5.opened(path, path) as contents:
            text = contents.model
            model = None if text is None else spec.parse(text, path, spec.major(contents.version or 2))
            yield Saved(path, contents, model)
    else:
        reason = "it is neither HDF5 (.h5, .weights.h5) nor a zip archive (.keras)"
        raise KerasFileError(path=path, reason=reason)


@contextmanager
def _zipped(path: Path) -> Iterator[Saved]:
    """A .keras archive: its parts are read by name, and nothing is written where the archive says."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / WEIGHTS
        try:
            with zipfile.ZipFile(path) as archive:
                model = _model(archive, path)
                _copy(archive, WEIGHTS, copy, path)
        except KerasFileError:
            raise
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
            EOFError,
            OSError,
            ValueError,
            KeyError,
        ) as error:
            raise KerasFileError(path=path, reason=f"the archive is damaged ({first_line(error)})") from error
        with hdf5.opened(copy, path) as contents:
            yield Saved(path, contents, model)


def _model(archive: zipfile.ZipFile, path: Path) -> spec.ModelSpec:
    metadata = _text(archive, "metadata.json", path, required=False)
    return spec.parse(_text(archive, "config.json", path), path, _version(metadata))


def _version(metadata: bytes) -> int:
    # Read loosely: the version only chooses between the meanings of a few names.
    _, _, rest = metadata.partition(b'"keras_version"')
    return spec.major(rest.strip(b': "').decode("latin-1"))


def _text(archive: zipfile.ZipFile, name: str, path: Path, *, required: bool = True) -> bytes:
    if name not in archive.namelist():
        if required:
            raise KerasFileError(path=path, reason=f"the archive has no {name}, which every Keras model has")
        return b""
    info = archive.getinfo(name)
    if info.file_size > spec.MOST_BYTES:
        raise KerasFileError(path=path, reason=f"{name} claims {info.file_size} bytes, above {spec.MOST_BYTES}")
    return archive.read(info)


def _copy(archive: zipfile.ZipFile, name: str, to: Path, path: Path) -> None:
    """Copy a part out of the archive, for HDF5 jumps about in it; a part that expands like a bomb is refused."""
    if name not in archive.namelist():
        raise KerasFileError(path=path, reason=f"the archive has no {name}: weights in other formats cannot be read")
    info = archive.getinfo(name)
    if info.file_size > path.stat().st_size * hdf5.MOST_EXPANSION:
        raise KerasFileError(path=path, reason=f"{name} claims {info.file_size} bytes, more than the archive can hold")
    with archive.open(info) as part, to.open("wb") as file:
        shutil.copyfileobj(part, file, 1 << 20)
