"""The memory formats of a layer's input and output, and the internal one of all passes: a batch, channels last.

Dimensions are counted from the first one: ONNX's exporter by TorchScript writes a negative one as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MemoryFormat(NamedTuple):
    """Where the channels lie, and whether there is a batch dimension."""

    channels_first: bool
    batched: bool

    def to_internal(self, x: Tensor) -> Tensor:
        """A tensor of this format in the internal one, a view."""
        x = x if self.batched else x.unsqueeze(0)
        return x.movedim(1, x.ndim - 1) if self.channels_first else x

    def layout(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sizes and strides, in this format, of a tensor that is contiguous with a shape in the internal one."""
        view = self.from_internal(torch.empty(shape, device="meta"))
        return tuple(view.shape), view.stride()

    def from_internal(self, y: Tensor) -> Tensor:
        """A tensor of the internal format in this one, a view."""
        y = y.movedim(y.ndim - 1, 1) if self.channels_first else y
        return y if self.batched else y.squeeze(0)


INTERNAL = MemoryFormat(channels_first=False, batched=True)
