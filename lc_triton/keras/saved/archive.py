"""The files Keras writes, opened by what they are: .h5 with or without a model, .weights.h5, .keras."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from lc_triton.errors import ArgumentTypeError, KerasFileError, first_line
from lc_triton.keras.saved import hdf5, spec

# A model's `to_json()`: as text, as a mapping, or the path of its file.
Config: TypeAlias = str | Path | Mapping[str, Any] | None

ZIP_MAGIC = b"PK\x03\x04"
WEIGHTS = "model.weights.h5"

# How the configuration of a file of weights is given.
CONFIG = "as config= (--config on the command line)"


@dataclass(frozen=True)
class Saved:
    """An open file: what it holds, and the configuration of its model where it holds one.

    `keras` is the major version of the Keras that wrote it; None if only the configuration may say so.
    """

    path: Path
    contents: hdf5.Contents
    config: str | bytes | None
    keras: int | None

    def model(self) -> spec.ModelSpec | None:
        """The model.

        Raises:
            KerasFileError: a configuration that is not understood.
        """
        return None if self.config is None else spec.parse(self.config, self.path, self.keras)

    def layers(self) -> tuple[spec.LayerSpec, ...]:
        """The layers that the configuration names, which need not be understood; none without one."""
        return () if self.config is None else spec.outline(self.config, self.keras)

    def with_config(self, config: Config) -> Saved:
        """A file of weights alone with the configuration of the model whose they are."""
        if config is None:
            return self
        if self.config is not None:
            raise ArgumentTypeError(name="config", value=config, allowed="None for a file that holds its model")
        if not isinstance(config, (str, Path, Mapping)):
            raise ArgumentTypeError(name="config", value=config, allowed="None, a mapping, a text or a path")
        text = "" if isinstance(config, Mapping) else _given(config)
        try:
            text = text or json.dumps(config)
            json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            reason = f"its configuration is not understood ({first_line(error)})"
            raise KerasFileError(path=self.path, reason=reason) from None
        return replace(self, config=text, keras=None)


def checked_path(path: object) -> Path:
    """The path of a file.

    Raises:
        ArgumentTypeError: it is neither a str nor a path.
    """
    try:
        return Path(path)  # type: ignore[arg-type]  # a wrong type is reported below
    except TypeError:
        raise ArgumentTypeError(name="path", value=path, allowed="a str or a pathlib.Path") from None


@contextmanager
def opened(path: Path) -> Iterator[Saved]:
    """A file of Keras's, open to be read.

    Raises:
        KerasFileError: no such file, or one that is damaged, something else, or claims more than it can hold.
    """
    tensorflow = _of_tensorflow(path)
    if tensorflow:
        raise KerasFileError(path=path, reason=f'it is {tensorflow}: load it in Keras 2 and model.save("x.h5")')
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
            yield Saved(path, contents, contents.model, spec.major(contents.version or 2))
    elif head.lstrip().startswith(b"{"):
        reason = "it is a configuration in JSON, without weights: it goes beside a file of weights, {option}"
        raise KerasFileError(path=path, reason=reason.format(option=CONFIG))
    else:
        reason = "it is neither HDF5 (.h5, .weights.h5) nor a zip archive (.keras)"
        raise KerasFileError(path=path, reason=reason)


def _of_tensorflow(path: Path) -> str:
    """What TensorFlow wrote there, if it did: its folders and checkpoints hold graphs, and need TensorFlow."""
    if (path / "saved_model.pb").exists() or (path / "keras_metadata.pb").exists() or path.name == "saved_model.pb":
        return "a SavedModel of TensorFlow"
    checkpoint = path.suffix == ".index" or ".data-0" in path.name or path.name == "checkpoint"
    if checkpoint or Path(f"{path}.index").exists() or (path / "checkpoint").exists():
        return "a checkpoint of TensorFlow"
    return ""


def _given(config: str | Path) -> str:
    if isinstance(config, Path) or not config.lstrip().startswith("{"):
        try:
            return Path(config).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise KerasFileError(path=config, reason=str(error)) from error
    return config


@contextmanager
def _zipped(path: Path) -> Iterator[Saved]:
    """A .keras archive: its parts are read by name, and nothing is written where the archive says."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / WEIGHTS
        try:
            with zipfile.ZipFile(path) as archive:
                config, keras = _config(archive, path)
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
            yield Saved(path, contents, config, keras)


def _config(archive: zipfile.ZipFile, path: Path) -> tuple[bytes, int]:
    metadata = _text(archive, "metadata.json", path, required=False)
    return _text(archive, "config.json", path), _version(metadata)


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
