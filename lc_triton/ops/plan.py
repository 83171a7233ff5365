"""The plan of a call: everything about it but its tensors, made once for each shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lc_triton.core.activations import AFTER_KERNEL, LINEAR, Activation, parse_activation
from lc_triton.core.arguments import check_name
from lc_triton.core.geometry import DATA_FORMATS, Geometry
from lc_triton.core.memory_format import MemoryFormat
from lc_triton.core.padding_mode import PaddingMode, PadStep, check_padding_mode, split_padding
from lc_triton.core.problem import Problem


@dataclass(frozen=True)
class Plan:
    """Everything about a call but its tensors: made once for each shape, looked up afterwards.

    `source` is the geometry of the arguments. `geometry` is that of the passes: in dimensions with a padding mode other
    than zeros, the input is padded by the steps of `pad` first. A transposed layer has the geometry of the layer whose
    adjoint it is.
    """

    source: Geometry
    geometry: Geometry
    activation: Activation
    after: Callable[[Tensor], Tensor] | str | None
    channels_first: bool
    padding_mode: PaddingMode
    pad: tuple[PadStep, ...]
    transposed: bool = False
    # The geometry of the layer that this is one rank's part of.
    full_geometry: Geometry | None = None
    # The problems of this plan, by backend and precision: a look-up that does not hash the geometry. Made eagerly, as
    # the sizes below.
    problems: dict[tuple[str, str], Problem] = field(default_factory=dict, init=False, compare=False, repr=False)
    # The bound calls of this plan, by everything but values that decides how a call is run: see `ops.run`.
    calls: dict[tuple[Any, ...], Callable[..., Tensor]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    # Spatial size and channels of input and output, and the shapes of weight and bias. Computed eagerly: a lazy
    # attribute is a side effect under torch.compile.
    input_sizes: tuple[tuple[int, ...], int] = field(init=False, compare=False, repr=False)
    output_sizes: tuple[tuple[int, ...], int] = field(init=False, compare=False, repr=False)
    weight_shape: tuple[int, ...] = field(init=False, compare=False, repr=False)
    bias_shapes: tuple[tuple[int, ...], tuple[int, ...]] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        geo = self.source
        sites, positions = (geo.in_spatial, geo.in_channels), (geo.out_spatial, geo.out_channels)
        input_sizes, output_sizes = (positions, sites) if self.transposed else (sites, positions)
        spatial, channels = output_sizes
        computed = {"input_sizes": input_sizes, "output_sizes": output_sizes, "weight_shape": geo.weight_shape}
        computed["bias_shapes"] = (*spatial, channels), (channels,)
        for name, value in computed.items():
            object.__setattr__(self, name, value)
        for kind in itertools.product(("triton", "cpu"), ("ieee", "tf32")):
            self.problems[kind] = _problem(self.geometry, self.activation, *kind, self.full_geometry)

    def plan_for(self, x: Tensor, weight: Tensor) -> Plan:
        """This plan, whatever the tensors."""
        return self

    def __reduce__(self) -> Any:
        # A copy makes new calls: they hold compiled kernels.
        return type(self), tuple(getattr(self, f.name) for f in fields(self) if f.init)

    @property
    def data_format(self) -> str:
        """Where x's channels lie."""
        return "channels_first" if self.channels_first else "channels_last"

    @property
    def operand(self) -> str:
        """The input's name in errors: y for a transposed layer, whose input is a locally connected layer's output."""
        return "y" if self.transposed else "x"

    @classmethod
    def make(
        cls,
        geometry: Geometry,
        padding_mode: PaddingMode = "zeros",
        activation: Any = None,
        data_format: str = "channels_first",
        *,
        transposed: bool = False,
    ) -> Plan:
        """The plan for a geometry with zeros padding; padding_mode, activation and data_format are checked here."""
        padding_mode = check_padding_mode(padding_mode, geometry.ndim)
        check_name("data_format", data_format, DATA_FORMATS)
        act = parse_activation(activation)
        fused, after = (act, None) if isinstance(act, Activation) else (LINEAR, act)
        inner, pad = split_padding(geometry, padding_mode)
        return cls(geometry, inner, fused, after, data_format == "channels_first", padding_mode, pad, transposed)


class Plans:
    """The plans of one function's calls with the same arguments, and their bound calls, as `Plan.calls`.

    Args:
        plan_for: makes or finds the plan of (x, weight).
    """

    def __init__(self, plan_for: Callable[[Tensor, Tensor], Plan]) -> None:
        self.plan_for = plan_for
        self.calls: dict[tuple[Any, ...], Callable[..., Tensor]] = {}


def input_format_of(x: Tensor, plan: Plan) -> MemoryFormat:
    """The memory format of an input."""
    return MemoryFormat(plan.channels_first, x.ndim == plan.geometry.ndim + 2)


def to_internal(x: Tensor, plan: Plan) -> Tensor:
    """An input in the internal format, with padding other than zeros around it."""
    x = input_format_of(x, plan).to_internal(x)
    return _pad(x, plan) if plan.pad else x


def from_internal(y: Tensor, plan: Plan, *, batched: bool) -> Tensor:
    """An output of a pass in the plan's format, with an activation that no kernel fuses."""
    if isinstance(plan.after, str):
        y = AFTER_KERNEL[plan.after](y, dim=-1)
    y = MemoryFormat(plan.channels_first, batched).from_internal(y)
    return plan.after(y) if callable(plan.after) else y


def problem_of(plan: Plan, backend: str, precision: str) -> Problem:
    """The problem of a plan on a backend."""
    return plan.problems[backend, precision]


@lru_cache(maxsize=4096)
def _problem(
    geometry: Geometry, activation: Activation, backend: str, precision: str, full_geometry: Geometry | None
) -> Problem:
    """The same problem for all plans of a geometry, so that they share its tiles and compiled kernels."""
    return Problem(geometry, activation, backend, precision, full_geometry)


def _pad(x: Tensor, plan: Plan) -> Tensor:
    """Reflect, replicate and circular padding by `F.pad`, which takes channels first."""
    last = x.ndim - 1
    x = x.movedim(last, 1)
    for mode, sides in plan.pad:
        x = F.pad(x, sides, mode=mode)
    return x.movedim(1, last)
