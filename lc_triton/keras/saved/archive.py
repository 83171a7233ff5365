"""The files Keras writes, opened by what they are: .h5 with or without a model, .weights.h5, .keras."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lc_triton.errors import KerasFileError, first_line
from lc_triton.keras.saved import hdf5, spec

if TYPE_CHECKING:
    import h5py

ZIP_MAGIC = b"PK\x03\x04"
WEIGHTS = "model.weights.h5"


@dataclass(frozen=True)
class Saved:
    """An open file: the root of its weights, and its model where it holds one."""

    path: Path
    weights: h5py.Group
    model: spec.ModelSpec | None
    backend: str | None = None


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
        with hdf5.opened(str(path), path) as root:
            yield _hdf5(path, root)
    else:
        reason = "it is neither HDF5 (.h5, .weights.h5) nor a zip archive (.keras)"
        raise KerasFileError(path=path, reason=reason)


def _hdf5(path: Path, root: h5py.File) -> Saved:
    text = hdf5.text(root, "model_config")
    weights = root
    if text is not None:
        weights = hdf5.child(root, "model_weights")
        if weights is None:
            raise KerasFileError(path=path, reason="it has a model but no weights")
    version = hdf5.text(weights, "keras_version") or hdf5.text(root, "keras_version")
    model = None if text is None else spec.parse(text, path, spec.major(version or 2))
    return Saved(path, weights, model, hdf5.text(weights, "backend"))


@contextmanager
def _zipped(path: Path) -> Iterator[Saved]:
    """A .keras archive: its parts are read by name, and nothing is written where the archive says."""
    with tempfile.TemporaryFile() as copy:
        try:
            with zipfile.ZipFile(path) as archive:
                model = _model(archive, path)
                _copy(archive, WEIGHTS, copy, path)
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
            EOFError,
            OSError,
            ValueError,
            KeyError,
        ) as error:
            if isinstance(error, KerasFileError):
                raise
            raise KerasFileError(path=path, reason=f"the archive is damaged ({first_line(error)})") from error
        with hdf5.opened(copy, path) as root:
            yield Saved(path, root, model)


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


def _copy(archive: zipfile.ZipFile, name: str, to: IO[bytes], path: Path) -> None:
    """Copy a part into an anonymous file, for HDF5 jumps about in it; a part that expands like a bomb is refused."""
    if name not in archive.namelist():
        raise KerasFileError(path=path, reason=f"the archive has no {name}: weights in other formats cannot be read")
    info = archive.getinfo(name)
    if info.file_size > path.stat().st_size * hdf5.MOST_EXPANSION:
        raise KerasFileError(path=path, reason=f"{name} claims {info.file_size} bytes, more than the archive can hold")
    with archive.open(info) as part:
        shutil.copyfileobj(part, to, 1 << 20)
    to.seek(0)
