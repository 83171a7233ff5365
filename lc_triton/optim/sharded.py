"""Weights that are DTensors, sharded over ranks, and tensors placed like them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_PLAIN = Tensor, Parameter


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; there is none before its module is imported."""
    if type(tensor) in _PLAIN:
        return False
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def are_flat_parts(parameters: Iterable[Tensor]) -> bool:
    """Whether these are parameters of `FullyShardedDataParallel` of which each rank has a part.

    Parts of what it flattens have one dimension; unsharded (NO_SHARD), parameters have their shapes.
    """
    flat: list[Any] = [p for p in parameters if getattr(p, "_fsdp_flattened", False)]
    wholes = [getattr(p, "_unpadded_unsharded_size", None) for p in flat]
    if any(whole is not None for whole in wholes):
        return any(p.shape != whole for p, whole in zip(flat, wholes, strict=True) if whole is not None)
    return bool(flat) and all(p.ndim < 2 for p in flat)


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, in the same memory; any other tensor itself."""
    if type(tensor) in _PLAIN or not is_dtensor(tensor):
        return tensor
    whole: Any = tensor
    with torch.no_grad():
        part: Tensor = whole.to_local()
    return part


def as_dtensor_like(part: Tensor, weight: Tensor) -> Tensor:
    """The DTensor, sharded as a weight, of which this rank has a part; the part itself if the weight is no DTensor."""
    if not is_dtensor(weight):
        return part
    whole: Any = weight
    options: dict[str, Any] = {"run_check": False, "shape": whole.shape, "stride": whole.stride()}
    tensor: Tensor = type(whole).from_local(part, whole.device_mesh, whole.placements, **options)
    return tensor


def is_placed_alike(tensor: Tensor, weight: Tensor) -> bool:
    """Whether tensor and weight are both plain, or DTensors with the same mesh and placements."""
    if type(tensor) in _PLAIN:
        return type(weight) in _PLAIN
    if not (is_dtensor(tensor) and is_dtensor(weight)):
        return False
    one, other = _placing(tensor), _placing(weight)
    return one == other


def _placing(tensor: Any) -> tuple[Any, ...]:
    return tensor.device_mesh, tensor.placements
