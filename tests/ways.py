"""The ways that the CPU path has through a layer, whatever the layer's size: which of its rules is to apply."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import pytest

from lc_triton._cpu import blocks, matmul, small

_MANY = 1 << 30


@dataclass(frozen=True)
class Way:
    """How a layer is taken: at once, or in blocks of so many bytes, and by which of the rules.

    Args:
        at_once: as a small layer.
        block_bytes: of a block; None for the usual.
        most_bytes: of a buffer that grows with the batch; None for the usual.
        by_windows: the input gradient, not by rows.
        few_samples: and its products with samples as rows.
        batch_innermost: what is copied, and the input gradient by rows.
        by_rows: rows of windows share what is copied.
    """

    at_once: bool = False
    block_bytes: int | None = None
    most_bytes: int | None = None
    by_windows: bool = False
    few_samples: bool = False
    batch_innermost: bool = False
    by_rows: bool = False

    @property
    def rules(self) -> dict[tuple[ModuleType, str], int | range]:
        """What the constants of the rules have to be."""
        rules: dict[tuple[ModuleType, str], int | range] = {
            (small, "MOST_NUMBERS"): _MANY if self.at_once else 0,
            (small, "MOST_FLAT_NUMBERS"): _MANY if self.at_once else 0,
            (matmul, "SHORT_COPIED_ROW"): _MANY if self.batch_innermost else 0,
            (matmul, "INNERMOST_BATCHES"): range(_MANY if self.batch_innermost else 0),
            (matmul, "SHORT_ROW"): _MANY if self.by_windows else 0,
            (matmul, "SHORT_ONLY_ROW"): _MANY if self.by_windows else 0,
            (matmul, "FEW_NUMBERS"): _MANY if self.by_windows else 0,
            (matmul, "FEW_SAMPLES"): _MANY if self.few_samples else 0,
            (matmul, "LEAST_SHARED"): 0 if self.by_rows else _MANY,
        }
        if self.block_bytes is not None:
            rules |= {
                (blocks, "BLOCK_BYTES"): self.block_bytes,
                (blocks, "BLOCK_CACHES"): 0,
                (blocks, "INPUT_GRAD_BYTES"): self.block_bytes,
                (blocks, "TURN_BYTES"): self.block_bytes,
            }
        if self.most_bytes is not None:
            rules[blocks, "MOST_BYTES"] = self.most_bytes
        return rules

    def take(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Until the patches are undone."""
        for (module, name), value in self.rules.items():
            monkeypatch.setattr(module, name, value)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """For as long as the block runs."""
        with pytest.MonkeyPatch.context() as monkeypatch:
            self.take(monkeypatch)
            yield
