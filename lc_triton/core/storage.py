"""Tensors whose memory was freed, as FullyShardedDataParallel frees parameters between their uses.

Torch's own products read address 0 for them (torch 2.13, CPU), and so would a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from lc_triton.core.tracing import is_observed
from lc_triton.errors import FreedStorageError


def is_freed(tensor: Tensor | None) -> bool:
    """Whether a plain tensor has numbers and no memory for them."""
    if torch.compiler.is_compiling() or (type(tensor) is not Tensor and type(tensor) is not Parameter):
        return False
    try:
        if tensor.data_ptr():
            return False
    except RuntimeError:  # a sparse tensor, or one of a transform
        return False
    # Address 0 is that of empty tensors, of the meta device, and of zeros that torch gives no memory, too.
    return bool(tensor.numel()) and not (tensor.is_meta or tensor._is_zerotensor() or is_observed())


def check_memory(name: str, tensor: Tensor | None) -> None:
    """Refuse a tensor whose memory was freed."""
    if tensor is not None and is_freed(tensor):
        raise FreedStorageError(name=name, shape=tuple(tensor.shape))


def check_saved(tensors: Iterable[Tensor | None]) -> None:
    """Refuse tensors of a backward that were freed since they were saved for it."""
    for tensor in tensors:
        check_memory("a tensor that this backward reads,", tensor)
