"""The arguments of a pass beside its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lc_triton.core.activations import LINEAR, Activation
from lc_triton.core.geometry import Geometry


@dataclass(frozen=True)
class Problem:
    """A layer's geometry, its fused activation, and the backend and precision that compute it.

    `backend` is fixed when the forward runs, so that a backward in another thread uses the same one; `precision` is
    torch's own setting for float32 products, "ieee" or "tf32".
    """

    geometry: Geometry
    activation: Activation = LINEAR
    backend: str = "cpu"
    precision: str = "ieee"
    # The layer that this is one rank's part of: strategies and tiles are chosen for that one.
    full_geometry: Geometry | None = None
    # How this problem is launched: (pass, batch, ...) -> tile, grid, ...; shared with `linear()`.
    launches: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    # Made eagerly: code that torch 2.11 compiles cannot make a dataclass whose default is one of our dataclasses.
    _linear: Problem | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        without = None if self.activation is LINEAR else replace(self, activation=LINEAR)
        object.__setattr__(self, "_linear", without)

    @property
    def tuning_geometry(self) -> Geometry:
        """The geometry that strategies and tiles are chosen for."""
        return self.geometry if self.full_geometry is None else self.full_geometry

    def linear(self) -> Problem:
        """The problem of the derivatives: the same without the activation."""
        return self if self._linear is None else self._linear
