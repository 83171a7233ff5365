"""Memory that block after block, and call after call, writes to."""

from __future__ import annotations

import math
import threading
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

# Of one buffer, kept for the next call of the same thread: a few megabytes allocated anew cost as many page faults as
# the products written to them cost time (1.5 of 7.5 ms in an input gradient of 25 x 25 x 16 sites at batch 32).
MOST_KEPT_BYTES = 16 << 20

_kept = threading.local()


def outside_inference_mode() -> AbstractContextManager[Any]:
    """What is made in inference mode cannot be written to outside of it.

    No context where there is nothing to leave: torch's, left by a signal's exception on its way in or out, restores the
    gradient mode when that exception is freed, long after the call.
    """
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


@lru_cache(maxsize=4096)
def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a contiguous tensor."""
    return tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))


class Buffer:
    """A growing piece of memory; what one `take` returns is overwritten by the next."""

    def __init__(self, device: torch.device) -> None:
        self._allocate(0, torch.uint8, device)

    def _allocate(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        with outside_inference_mode():
            self.bytes = torch.empty(size, dtype=torch.uint8, device=device)
            self.typed = self.bytes.view(dtype)

    def of(self, dtype: torch.dtype) -> Buffer:
        """The same memory, for tensors of a dtype."""
        if self.typed.dtype != dtype:
            with outside_inference_mode():
                self.typed = self.bytes.view(dtype)
        return self

    def take(self, *shape: int) -> Tensor:
        """A contiguous tensor of a shape."""
        numel = math.prod(shape)
        if self.typed.numel() < numel:
            size = -(-numel * self.typed.itemsize // 64) * 64
            self._allocate(size, self.typed.dtype, self.bytes.device)
        return self.typed.as_strided(shape, strides(shape))

    def cast(self, tensor: Tensor) -> Tensor:
        """The tensor itself if it is of the buffer's dtype, else a contiguous copy that is."""
        return tensor if tensor.dtype == self.typed.dtype else self.take(*tensor.shape).copy_(tensor)


class buffers:
    """A `with` block's buffers: on the CPU those that this thread used last, unless they are in use already.

    Args:
        like: a tensor on the buffers' device.
        dtype: of what is taken from them.
        count: how many.
    """

    def __init__(self, like: Tensor, dtype: torch.dtype, count: int) -> None:
        self.device, self.dtype, self.count = like.device, dtype, count
        self.all: list[Buffer] = []

    def __enter__(self) -> list[Buffer]:
        if self.device.type == "cpu":
            self.all, _kept.buffers = getattr(_kept, "buffers", []), []
        while len(self.all) < self.count:
            self.all.append(Buffer(self.device))
        return [buffer.of(self.dtype) for buffer in self.all[: self.count]]

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cpu":
            _kept.buffers = [buffer for buffer in self.all if buffer.bytes.numel() <= MOST_KEPT_BYTES]
