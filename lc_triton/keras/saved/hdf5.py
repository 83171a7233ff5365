"""HDF5 files that nobody vouches for: nothing outside the file is opened, nothing larger than the file is believed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lc_triton.errors import KerasFileError, LocalConvError, MissingPackageError, first_line

if TYPE_CHECKING:
    import h5py

MAGIC = b"\x89HDF\r\n\x1a\n"

# Deflate shrinks by at most 1032: a dataset that claims more numbers than its bytes could hold is a lie.
MOST_EXPANSION = 1032
MOST_DIMENSIONS = 16
MOST_NAMES = 100_000


def library(what: str) -> Any:
    """The h5py module, imported when a file is read or written."""
    try:
        import h5py
    except ImportError:
        raise MissingPackageError(what=what, package="h5py", extra="keras") from None
    return h5py


@contextmanager
def opened(file: str | IO[bytes], path: object) -> Iterator[h5py.File]:
    """A file opened to be read; whatever is wrong inside it becomes one error."""
    h5py = library("reading Keras's files")
    try:
        with h5py.File(file, "r") as root:
            yield root
    except (LocalConvError, MemoryError):
        raise
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise KerasFileError(path=path, reason=f"it is damaged or no HDF5 file ({first_line(error)})") from error


def child(group: h5py.Group, name: str) -> Any:
    """The group or dataset `name` (a path) inside a group, or None; links that leave the file or lead back are refused."""
    h5py = library("reading Keras's files")
    item: Any = group
    for part in name.split("/"):
        if not isinstance(item, h5py.Group) or part in ("", ".", ".."):
            return None
        link = item.get(part, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{part!r} is a link to elsewhere")
        item = item[part]
    return item


def enter(group: Any, seen: set[int]) -> None:
    """Note a group as visited; one that is found twice would lead round in circles, or to very many copies of itself."""
    h5py = library("reading Keras's files")
    if not isinstance(group, h5py.Group):
        raise ValueError("an array stands where a group should")
    address = h5py.h5o.get_info(group.id).addr
    if address in seen or len(seen) > MOST_NAMES:
        raise ValueError(f"group {group.name!r} is found twice, or there are too many")
    seen.add(address)


def text(group: h5py.Group, name: str) -> str | None:
    """An attribute of text; None where there is none."""
    value = group.attrs.get(name)
    value = value.decode("utf-8") if isinstance(value, bytes) else value
    if value is not None and not isinstance(value, str):
        raise ValueError(f"attribute {name!r} is no text")
    return value


def names(group: h5py.Group, name: str) -> list[str]:
    """A list of names among the attributes, which Keras cuts in numbered pieces where it is long."""
    if name in group.attrs:
        parts = [group.attrs[name]]
    else:
        parts = []
        while f"{name}{len(parts)}" in group.attrs:
            parts.append(group.attrs[f"{name}{len(parts)}"])
    found = [n.decode("utf-8") if isinstance(n, bytes) else n for part in parts for n in np.atleast_1d(part)]
    if len(found) > MOST_NAMES or not all(isinstance(n, str) for n in found):
        raise ValueError(f"{name} is no list of names")
    return found


def check_numbers(dataset: Any) -> None:
    """Refuse what is no array of real numbers that lie in this very file."""
    h5py = library("reading Keras's files")
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError("a group stands where an array should")
    if dataset.dtype.kind not in "fiu" or dataset.dtype.itemsize > 8:
        raise ValueError(f"array {dataset.name!r} is of type {dataset.dtype}, no numbers of up to 64 bits")
    if dataset.shape is None or len(dataset.shape) > MOST_DIMENSIONS:
        raise ValueError(f"array {dataset.name!r} has no shape that weights have")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"array {dataset.name!r} lies in another file")
    stored, claimed = dataset.id.get_storage_size(), dataset.size * dataset.dtype.itemsize
    if claimed > stored * (MOST_EXPANSION if dataset.chunks else 1):
        raise ValueError(f"array {dataset.name!r} claims {claimed} bytes, of which the file holds {stored}")


def read(dataset: h5py.Dataset) -> Tensor:
    """The numbers of an array that was checked."""
    array = np.asarray(dataset[()])
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(np.array(array)) if array.ndim else torch.tensor(array.item())
