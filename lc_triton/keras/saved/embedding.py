"""Vectors looked up by whole numbers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import StrictBool
from torch import Tensor, nn

from lc_triton.keras.saved.arguments import Arguments, Count, Place
from lc_triton.keras.saved.slots import Slot, same_layout
from lc_triton.keras.saved.training import Trained


class Embedding(Trained):
    """The rows of a table that whole numbers name; numbers of another dtype are cut to whole ones, as in Keras."""

    def __init__(self, rows: int, channels: int, *, masks_zero: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.makes_mask = masks_zero
        self.weight = nn.Parameter(torch.empty(rows, channels, dtype=dtype))

    def slots(self) -> list[Slot]:
        """See the base."""
        return same_layout("embeddings", self, "weight")

    def forward(self, x: Tensor) -> Tensor:
        """The vectors `(*x.shape, channels)`."""
        return self.observed(F.embedding(x.long(), self.weight))

    def output_mask(self, inputs: tuple[Tensor, ...], masks: tuple[Tensor | None, ...]) -> Tensor | None:
        """The mask of the vectors: False where the number is 0, if zeros are masked."""
        return inputs[0] != 0 if self.makes_mask else None

    def extra_repr(self) -> str:
        """The sizes."""
        return ", ".join(map(str, self.weight.shape))


class EmbeddingArguments(Arguments):
    """`Embedding`."""

    input_dim: Count
    output_dim: Count
    mask_zero: StrictBool = False
    input_length: Any = None

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return Embedding(self.input_dim, self.output_dim, masks_zero=self.mask_zero, dtype=self.variable_dtype)


CLASSES: dict[str, type[Arguments]] = {"Embedding": EmbeddingArguments}
