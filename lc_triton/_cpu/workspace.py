"""Buffers that blocks and calls use again."""

from __future__ import annotations

import math
import threading
from contextlib import nullcontext

import torch
from torch import Tensor

# The most bytes of a buffer that is kept for the thread's next call: page faults of a few megabytes allocated anew took
# 1.5 of the 7.5 ms of an input gradient of 25 x 25 x 16 sites at batch 32.
MOST_KEPT_BYTES = 16 << 20
# The most views that are kept with a buffer.
MOST_VIEWS = 64

_kept = threading.local()


class Buffer:
    """A growing piece of memory; what one `take` returns is overwritten by the next."""

    def __init__(self, device: torch.device) -> None:
        self.bytes, self.size, self.dtype = torch.empty(0, dtype=torch.uint8, device=device), 0, torch.uint8
        self.taken: dict[tuple[int, ...], Tensor] = {}

    def of(self, dtype: torch.dtype) -> Buffer:
        """The same memory, for tensors of a dtype."""
        if self.dtype != dtype:
            self.dtype, self.taken = dtype, {}
        return self

    def take(self, *shape: int) -> Tensor:
        """A contiguous tensor of a shape."""
        found = self.taken.get(shape)  # a tenth of the time that a view takes
        if found is None:
            # Tensors of inference mode cannot be written to outside of it. Where it is off, no context is entered:
            # if a signal handler raises while it is entered or left, it restores the gradient mode only when that
            # exception is freed, long after the call.
            with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
                numel = math.prod(shape)
                size = numel * self.dtype.itemsize
                if self.size < size:
                    self.bytes, self.size, self.taken = self.bytes.new_empty(-(-size // 64) * 64), size, {}
                elif len(self.taken) >= MOST_VIEWS:
                    self.taken = {}
                found = self.taken[shape] = self.bytes.view(self.dtype)[:numel].view(shape)
        return found

    def cast(self, tensor: Tensor) -> Tensor:
        """The tensor itself if it is of the buffer's dtype, else a contiguous copy that is."""
        return tensor if tensor.dtype == self.dtype else self.take(*tensor.shape).copy_(tensor)


class buffers:
    """A `with` block's eight buffers on the device of a tensor, to take tensors of a dtype from.

    On the CPU they are those that this thread used last, unless they are in use already.
    """

    def __init__(self, like: Tensor, dtype: torch.dtype) -> None:
        self.device, self.dtype = like.device, dtype

    def __enter__(self) -> list[Buffer]:
        self.all: list[Buffer] = []
        if self.device.type == "cpu":
            self.all, _kept.buffers = getattr(_kept, "buffers", []), []
        if len(self.all) < 8 or self.all[0].dtype != self.dtype:  # they have one dtype
            more = [Buffer(self.device) for _ in range(len(self.all), 8)]
            self.all = [buffer.of(self.dtype) for buffer in self.all + more]
        return self.all

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cpu":
            _kept.buffers = [buffer for buffer in self.all if buffer.size <= MOST_KEPT_BYTES]
