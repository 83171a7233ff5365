"""How a layer's input comes and its output is asked for, and how the faces have both: as a batch, channels last.

Dimensions are counted from the first one: ONNX's exporter by TorchScript writes a negative one as it is.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Form(NamedTuple):
    """Where the channels lie, and whether there is a batch."""

    channels_first: bool
    batched: bool

    def to_faces(self, x: Tensor) -> Tensor:
        """x as the faces have it, a view."""
        x = x if self.batched else x.unsqueeze(0)
        return x.movedim(1, x.ndim - 1) if self.channels_first else x

    def from_faces(self, y: Tensor) -> Tensor:
        """What the faces have in this form, a view."""
        y = y.movedim(y.ndim - 1, 1) if self.channels_first else y
        return y if self.batched else y.squeeze(0)


FACES = Form(channels_first=False, batched=True)
