"""The ways that the CPU path has through a layer, whatever the layer's size: which of its rules is to apply."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from lc_triton import functional
from lc_triton._cpu import blocks, elementwise, passes, products

_MANY = 1 << 30


@dataclass(frozen=True)
class Way:
    """How a layer is taken: in blocks of so many bytes, and by which of the rules.

    Args:
        block_bytes: of a block; None for the usual, one block for small layers.
        most_bytes: of a buffer that grows with the batch; None for the usual.
        few_samples: the input gradient's products with samples as rows, and its sums not turned.
        few_filters: the weight gradient's products with filters as rows.
        tap_by_tap: the products of depthwise layers one tap after the other.
    """

    block_bytes: int | None = None
    most_bytes: int | None = None
    few_samples: bool = False
    few_filters: bool = False
    tap_by_tap: bool = False

    @property
    def rules(self) -> dict[tuple[Any, str], Any]:
        """What the constants of the rules have to be."""
        rules: dict[tuple[Any, str], Any] = {
            (products, "FEW_SAMPLES"): _MANY if self.few_samples else 0,
            (passes, "TURNED_SAMPLES"): _MANY if self.few_samples else 1,
            (products, "FEW_FILTERS"): _MANY if self.few_filters else 0,
            (elementwise, "AT_ONCE"): 0 if self.tap_by_tap else _MANY,
        }
        if self.block_bytes is not None:
            rules[blocks, "BLOCK_BYTES"] = self.block_bytes
        if self.most_bytes is not None:
            rules[blocks, "MOST_BYTES"] = self.most_bytes
        return rules

    def take(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Until the patches are undone. Calls that were bound before would go on as they are: they are forgotten."""
        for plans in (functional._plans_of, functional._conv_plan, functional._transpose_plan):
            plans.cache_clear()
        for (module, name), value in self.rules.items():
            monkeypatch.setattr(module, name, value)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """For as long as the block runs."""
        with pytest.MonkeyPatch.context() as monkeypatch:
            self.take(monkeypatch)
            yield
