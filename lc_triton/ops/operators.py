"""The passes as custom operators of torch, for compilers, exporters and dispatch modes.

Their schemas spell a problem out in integers and names. The functions here have the signatures of those in `dispatch`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, library
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lc_triton.core.activations import Activation
from lc_triton.core.dtypes import check_dtypes, check_floating
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.errors import ArgumentValueError
from lc_triton.ops import dispatch

_LAYER = (
    "int[] in_spatial, int[] kernel, int[] stride, int[] dilation, int[] padding, int groups, int in_channels, "
    "int out_channels, str activation, float constant, str backend, str precision"
)
# Last, and with a default, so that a program that was saved without it runs.
_REGIONS = "int[] regions=[]"
SCHEMAS = {
    "forward": f"(Tensor x, Tensor weight, Tensor? bias, {_LAYER}, bool store_z, {_REGIONS}) -> (Tensor, Tensor)",
    "input_grad": f"(Tensor g, Tensor weight, Tensor? bias, {_LAYER}, {_REGIONS}) -> Tensor",
    "weight_grad": (
        f"(Tensor x, Tensor g, {_LAYER}, ScalarType dtype, bool with_bias, {_REGIONS}) -> (Tensor, Tensor)"
    ),
}
_LAYER_ARGS = _LAYER.count(",") + 1
for _name, _schema in SCHEMAS.items():
    library.define(f"lc_triton::{_name}", _schema)

LayerArgs = tuple[Any, ...]


def problem_to_args(problem: Problem) -> LayerArgs:
    """The arguments of an operator that describe a problem, but the last one."""
    geo, act = problem.geometry, problem.activation
    padding = [side for pair in geo.padding for side in pair]
    sizes = [list(v) for v in (geo.in_spatial, geo.kernel, geo.stride, geo.dilation)]
    channels = geo.groups, geo.in_channels, geo.out_channels
    return (*sizes, padding, *channels, act.name, act.constant, problem.backend, problem.precision)


def regions_to_arg(problem: Problem) -> list[int]:
    """The last argument of an operator: the regions of a problem."""
    return [number for pair in problem.geometry.regions for number in pair]


def problem_from_args(layer: Sequence[Any], more: int = 0) -> tuple[Any, ...]:
    """The problem that the arguments after the tensors describe, and the `more` arguments that describe no problem.

    The same arguments give the same object. Torch leaves out a last argument that has its default.
    """
    described, rest = layer[:_LAYER_ARGS], layer[_LAYER_ARGS:]
    regions = rest[more] if len(rest) > more else ()
    problem = _problem(*(tuple(v) if isinstance(v, (list, tuple)) else v for v in (*described, regions)))
    return problem, *rest[:more]


@lru_cache(maxsize=4096)
def _problem(
    in_spatial: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: tuple[int, ...],
    groups: int,
    in_channels: int,
    out_channels: int,
    activation: str,
    constant: float,
    backend: str,
    precision: str,
    regions: tuple[int, ...],
) -> Problem:
    pairs = tuple(zip(padding[::2], padding[1::2], strict=True))
    shared = tuple(zip(regions[::2], regions[1::2], strict=True))
    geometry = Geometry(in_spatial, kernel, stride, dilation, pairs, groups, in_channels, out_channels, shared)
    return Problem(geometry, Activation(activation, constant), backend, precision)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, *, store_z: bool = False
) -> tuple[Tensor, Tensor | None]:
    """As `dispatch.forward`."""
    _tell_torch()
    y, z = torch.ops.lc_triton.forward(x, weight, bias, *problem_to_args(problem), store_z, regions_to_arg(problem))
    return y, z if store_z else None


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """As `dispatch.input_grad`."""
    _tell_torch()
    dx: Tensor = torch.ops.lc_triton.input_grad(g, weight, bias, *problem_to_args(problem), regions_to_arg(problem))
    return dx


def weight_grad(
    x: Tensor, g: Tensor, problem: Problem, dtype: torch.dtype, *, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """As `dispatch.weight_grad`."""
    _tell_torch()
    layer = *problem_to_args(problem), dtype, with_bias, regions_to_arg(problem)
    dw, db = torch.ops.lc_triton.weight_grad(x, g, *layer)
    return dw, db if with_bias else None


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape than the layer's, or of a dtype that is not floating-point.

    A traced program runs without the checks that precede the operator.
    """
    check_floating(name, tensor.dtype)
    if tensor.shape != shape:
        raise ArgumentValueError(name=f"the shape of {name}", value=tuple(tensor.shape), allowed=f"{tuple(shape)} here")


def _check_sites(name: str, x: Tensor, spatial: tuple[int, ...], channels: int) -> None:
    _check_shape(name, x, (*x.shape[:1], *spatial, channels))


def _check_parameters(
    name: str, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, bias_shape: tuple[int, ...]
) -> None:
    _check_shape("weight", weight, geometry.weight_shape)
    if bias is not None:
        _check_shape("bias", bias, bias_shape if bias.ndim > 1 else bias_shape[-1:])
    check_dtypes(name, x, weight, bias)


def _run_forward(x: Tensor, weight: Tensor, bias: Tensor | None, *layer: Any) -> tuple[Tensor, Tensor]:
    problem, store_z = problem_from_args(layer, 1)
    geo = problem.geometry
    _check_sites("x", x, geo.in_spatial, geo.in_channels)
    _check_parameters("x", x, weight, bias, geo, geo.bias_shape)
    y, z = dispatch.forward(x, weight, bias, problem, store_z=store_z)
    return y, x.new_empty(0) if z is None else z


def _run_input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, *layer: Any) -> Tensor:
    (problem,) = problem_from_args(layer)
    geo = problem.geometry
    _check_sites("g", g, geo.out_spatial, geo.out_channels)
    _check_parameters("g", g, weight, bias, geo, (*geo.in_spatial, geo.in_channels))
    return dispatch.input_grad(g, weight, bias, problem)


def _run_weight_grad(x: Tensor, g: Tensor, *layer: Any) -> tuple[Tensor, Tensor]:
    problem, dtype, with_bias = problem_from_args(layer, 2)
    geo = problem.geometry
    _check_sites("x", x, geo.in_spatial, geo.in_channels)
    _check_shape("g", g, (*x.shape[:1], *geo.out_spatial, geo.out_channels))
    dw, db = dispatch.weight_grad(x, g, problem, dtype, with_bias=with_bias)
    return dw, dw.new_empty(0) if db is None else db


def fake_forward(x: Tensor, weight: Tensor, bias: Tensor | None, *layer: Any) -> tuple[Tensor, Tensor]:
    """Empty results of `forward`, by which compilers and exporters know their shapes."""
    problem, store_z = problem_from_args(layer, 1)
    y = x.new_empty((x.shape[0], *problem.geometry.bias_shape))
    return y, torch.empty_like(y) if store_z else x.new_empty(0)


def fake_input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, *layer: Any) -> Tensor:
    """An empty result of `input_grad`."""
    geo = problem_from_args(layer)[0].geometry
    return g.new_empty((g.shape[0], *geo.in_spatial, geo.in_channels))


def fake_weight_grad(x: Tensor, g: Tensor, *layer: Any) -> tuple[Tensor, Tensor]:
    """Empty results of `weight_grad`."""
    problem, dtype, with_bias = problem_from_args(layer, 2)
    geo = problem.geometry
    return x.new_empty(geo.weight_shape, dtype=dtype), x.new_empty(geo.bias_shape if with_bias else 0, dtype=dtype)


for _name, _run, _fake in (
    ("forward", _run_forward, fake_forward),
    ("input_grad", _run_input_grad, fake_input_grad),
    ("weight_grad", _run_weight_grad, fake_weight_grad),
):
    library.impl(f"lc_triton::{_name}", ("cpu", "cuda"), _run)
    library.register_fake(f"lc_triton::{_name}", _fake)


def _flops(tensors: int, more: int) -> Callable[..., int]:
    """2 B P D F, of an operator with so many tensors and arguments that describe no problem."""

    def formula(x_shape: Any, *args: Any, out_shape: Any = None, **_: Any) -> int:
        problem: Problem = problem_from_args(args[tensors - 1 :], more)[0]
        return problem.geometry.flops(int(x_shape[0]))

    return formula


FLOPS: dict[str, Callable[..., int]] = {
    "forward": _flops(tensors=3, more=1),
    "input_grad": _flops(tensors=3, more=0),
    "weight_grad": _flops(tensors=2, more=2),
}


def _tell_torch() -> None:
    """Register the operators with the FLOP counter and DTensor, if the program has imported them."""
    if not torch.compiler.is_compiling():
        _tell_counters()
        if "torch.distributed.tensor" in sys.modules and not _registered:
            from lc_triton.ops import sharding

            sharding.register(problem_from_args)
            _registered.append(True)


_registered: list[bool] = []


def _tell_counters() -> None:
    """Register the operators with torch's FLOP counter, if it is imported: importing it would import triton."""
    counters: Any = sys.modules.get("torch.utils.flop_counter")
    if counters is None:
        return
    for name, formula in FLOPS.items():
        operator = getattr(torch.ops.lc_triton, name)
        if operator not in counters.flop_registry:
            counters.register_flop_formula(operator)(formula)
        for mode in _get_current_dispatch_mode_stack():  # a running counter has an older copy of the registry
            if isinstance(mode, counters._FlopCounterMode):
                mode.counter.flop_registry.setdefault(operator, counters.flop_registry[operator])
