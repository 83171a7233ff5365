"""What is in an HDF5 file: a script, run in a process of its own, that prints it as JSON.

The HDF5 library is C code that crashes, or runs for ever, on some damaged files; nobody vouches for a file, so it is
only ever opened here. Arrays are not copied but located, and read by their place afterwards; those in pieces are
written out as `.npy`. Imports nothing of ours, so that it starts in a moment.
"""

import contextlib
import json
import os
import sys
from typing import Any

import h5py
import numpy as np

# HDF5 does not know the type: Keras's numbers of it are opaque pairs of bytes.
BFLOAT16 = np.dtype("V2")

MOST_DIMENSIONS = 16
MOST_NAMES = 200_000
MEMORY_BYTES = 4 << 30


class NotUsable(Exception):
    """A file that says something it may not."""


def index(path: str, folder: str, expansion: int) -> dict[str, Any]:
    """The model, its version and backend, and the tree of weights of a file.

    `folder` takes arrays in pieces, which may hold `expansion` times as many bytes as they take.
    """
    with h5py.File(path, "r") as root:
        weights: Any = root
        if "model_config" in root.attrs:
            weights = child(root, "model_weights")
            if not isinstance(weights, h5py.Group):
                raise NotUsable("it has a model but no weights")
        version = text(weights, "keras_version") or text(root, "keras_version")
        layers = [name for name in ("layer_names", "layer_names0") if name in weights.attrs]
        part = weights if layers else child(weights, "layers")
        if not isinstance(part, h5py.Group):
            raise NotUsable("it has no layers: it is no file of Keras's weights")
        return {
            "model": text(root, "model_config"),
            "version": version,
            "backend": text(weights, "backend"),
            "named": bool(layers),
            "weights": Traversal(folder, os.path.getsize(path), expansion).group(part),
        }


class Traversal:
    """A traversal of the groups of a file, each once."""

    def __init__(self, folder: str, size: int, expansion: int) -> None:
        self.folder, self.size, self.expansion = folder, size, expansion
        self.visited: set[int] = set()
        self.copied = 0

    def group(self, group: h5py.Group) -> dict[str, Any]:
        """A group's names, its groups and its arrays."""
        address = h5py.h5o.get_info(group.id).addr
        if address in self.visited or len(self.visited) > MOST_NAMES:
            raise NotUsable(f"group {group.name!r} is found twice, or there are too many")
        self.visited.add(address)
        found: dict[str, Any] = {"names": {}, "groups": {}, "arrays": {}}
        for kind in ("layer_names", "weight_names"):
            found["names"][kind] = names(group, kind)
        found["names"]["name"] = [n for n in [text(group, "name")] if n is not None]
        for name in group:
            item = child(group, name)
            if isinstance(item, h5py.Group):
                found["groups"][name] = self.group(item)
            elif isinstance(item, h5py.Dataset):
                found["arrays"][name] = self.array(item)
            else:
                found["arrays"][name] = {"wrong": "is a link to elsewhere"}
        return found

    def array(self, dataset: h5py.Dataset) -> dict[str, Any]:
        """Where an array's numbers are, or what is wrong with them."""
        wrong = self.wrong(dataset)
        if wrong:
            return {"wrong": wrong}
        found = {"shape": list(dataset.shape), "dtype": dataset.dtype.str, "offset": dataset.id.get_offset()}
        if found["offset"] is None:
            found["file"] = f"{self.copied}.npy"
            np.save(os.path.join(self.folder, found["file"]), dataset[()])
            self.copied += 1
        return found

    def wrong(self, dataset: h5py.Dataset) -> str:
        """Why an array is none of real numbers that lie in this very file; nothing if it is one."""
        kind = dataset.dtype
        if kind != BFLOAT16 and (kind.kind not in "fiu" or kind.itemsize > 8):
            return f"is of type {kind}, no numbers of up to 64 bits"
        if dataset.shape is None or len(dataset.shape) > MOST_DIMENSIONS:
            return "has no shape that weights have"
        if dataset.external or dataset.is_virtual:
            return "lies in another file"
        stored, claimed = dataset.id.get_storage_size(), dataset.size * dataset.dtype.itemsize
        if claimed > min(stored, self.size) * (self.expansion if dataset.chunks else 1):
            return f"claims {claimed} bytes, of which the file holds {min(stored, self.size)}"
        offset = dataset.id.get_offset()
        if offset is not None and offset + claimed > self.size:
            return f"claims to end at byte {offset + claimed} of {self.size}"
        return ""


def child(group: h5py.Group, name: str) -> Any:
    """What is called `name` in a group; None where that is a link, which may lead out of the file or in circles."""
    link = group.get(name, getlink=True)
    return group[name] if isinstance(link, h5py.HardLink) else None


def text(group: h5py.Group, name: str) -> "str | None":
    """An attribute of text; None where there is none."""
    value = group.attrs.get(name)
    value = value.decode("utf-8") if isinstance(value, bytes) else value
    if value is not None and not isinstance(value, str):
        raise NotUsable(f"attribute {name!r} is no text")
    return value


def names(group: h5py.Group, name: str) -> list[str]:
    """A list of names among the attributes, which Keras cuts in numbered pieces where it is long."""
    parts = [group.attrs[name]] if name in group.attrs else []
    while not parts or name not in group.attrs:
        if f"{name}{len(parts)}" not in group.attrs:
            break
        parts.append(group.attrs[f"{name}{len(parts)}"])
    found = [n.decode("utf-8") if isinstance(n, bytes) else n for part in parts for n in np.atleast_1d(part)]
    if len(found) > MOST_NAMES or not all(isinstance(n, str) for n in found):
        raise NotUsable(f"{name} is no list of names")
    return [str(n) for n in found]


def main(path: str, folder: str, expansion: str) -> None:
    """Print the index as JSON, or what is wrong with the file."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # a system without limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES + 2 * os.path.getsize(path),) * 2)
    try:
        found = index(path, folder, int(expansion))
    except NotUsable as error:
        found = {"wrong": str(error)}
    except Exception as error:  # any error of the library for a damaged file
        found = {"wrong": f"it is damaged or no HDF5 file ({type(error).__name__}: {str(error)[:200]})"}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
