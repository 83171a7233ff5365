"""Strategies of the CPU path, forced on a layer of any size by changing the constants that choose between them."""

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
class CpuStrategy:
    """The size of blocks, and the order of the products.

    Args:
        block_bytes: the bytes of a block; None for the default, by which small layers are one block.
        most_bytes: the most bytes of a buffer that grows with the batch; None for the default.
        few_samples: whether samples are the rows of the input gradient's products, and its sums are not turned.
        few_filters: whether filters are the rows of the weight gradient's products.
        tap_by_tap: whether the products of depthwise layers are computed one tap after the other.
    """

    block_bytes: int | None = None
    most_bytes: int | None = None
    few_samples: bool = False
    few_filters: bool = False
    tap_by_tap: bool = False

    @property
    def constants(self) -> dict[tuple[Any, str], Any]:
        """The module, the name and the value of each constant."""
        constants: dict[tuple[Any, str], Any] = {
            (products, "FEW_SAMPLES"): _MANY if self.few_samples else 0,
            (passes, "TURNED_SAMPLES"): _MANY if self.few_samples else 1,
            (products, "FEW_FILTERS"): _MANY if self.few_filters else 0,
            (elementwise, "AT_ONCE"): 0 if self.tap_by_tap else _MANY,
        }
        if self.block_bytes is not None:
            constants[blocks, "BLOCK_BYTES"] = self.block_bytes
        if self.most_bytes is not None:
            constants[blocks, "MOST_BYTES"] = self.most_bytes
        return constants

    def apply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set the constants until the patches are undone, and drop calls that were bound with other constants."""
        for plan_cache in (functional._plans_of, functional._conv_plan, functional._transpose_plan):
            plan_cache.cache_clear()
        for (module, name), value in self.constants.items():
            monkeypatch.setattr(module, name, value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the strategy within a `with` block."""
        with pytest.MonkeyPatch.context() as monkeypatch:
            self.apply(monkeypatch)
            yield
