"""Slices of tensors and of shapes, as a configuration of TensorFlow's writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


class Sizes:
    """The shape of a tensor, or a part of it: no tuple, which would be several outputs."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self.sizes = tuple(int(size) for size in sizes)

    def __iter__(self) -> Iterator[int]:
        return iter(self.sizes)

    def __getitem__(self, index: int | slice) -> int | Sizes:
        return Sizes(self.sizes[index]) if isinstance(index, slice) else self.sizes[index]


def constant(value: Any, like: Any) -> Any:
    """A list of numbers as a tensor, like another operand; anything else as it is."""
    if not isinstance(value, (list, tuple)):
        if not isinstance(value, (Tensor, Sizes, int, float)):
            raise ValueError(f"{str(value)[:80]} is given to it, which is no number")
        return value
    return torch.tensor(value, dtype=like.dtype, device=like.device) if isinstance(like, Tensor) else Sizes(value)


def getitem(tensor: Any, slice_spec: Any) -> Any:
    """What `tensor[slice_spec]` is in TensorFlow, steps backwards included."""
    spec = [_index(entry) for entry in (slice_spec if isinstance(slice_spec, list) else [slice_spec])]
    if isinstance(tensor, Sizes):
        if len(spec) != 1 or not isinstance(spec[0], (int, slice)):
            raise ValueError(f"a shape is indexed by {str(slice_spec)[:80]}")
        return tensor[spec[0]]
    axes = sum(entry is not None and entry is not Ellipsis for entry in spec)
    at = next((i for i, entry in enumerate(spec) if entry is Ellipsis), len(spec))
    spec = [*spec[:at], *[slice(None)] * (tensor.ndim - axes), *spec[at + 1 :]]
    axis = 0
    for i, entry in enumerate(spec):
        if isinstance(entry, slice) and entry.step is not None and entry.step < 0:
            tensor, spec[i] = _forwards(tensor, axis, entry)
        axis += entry is not None
    return tensor[tuple(spec)]


def _index(entry: Any) -> Any:
    if isinstance(entry, dict) and entry.get("class_name") == "__ellipsis__":
        return Ellipsis
    if isinstance(entry, dict):
        parts = [entry.get(key) for key in ("start", "stop", "step")]
        if any(part is not None and type(part) is not int for part in parts):
            raise ValueError(f"a slice {str(entry)[:80]} of other things than whole numbers")
        return slice(*parts)
    if entry is None or type(entry) is int or isinstance(entry, Tensor):
        return entry
    raise ValueError(f"an index {str(entry)[:80]} that has no counterpart here")


def _forwards(tensor: Tensor, axis: int, entry: slice) -> tuple[Tensor, slice]:
    """A tensor turned around along an axis, and the slice of it that a slice with a step backwards is."""
    size = tensor.shape[axis]
    start, stop, step = entry.indices(size)
    count = len(range(start, stop, step))
    first = size - 1 - start
    return tensor.flip(axis), slice(first, first + (count - 1) * -step + 1 if count else first, -step)
