"""The plan of a call, made once for each shape, and `run`: checks, autocast, memory format, then the pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lc_triton.core.activations import AFTER_KERNEL, LINEAR, Activation, parse_activation
from lc_triton.core.backend import autocast_enabled, resolve
from lc_triton.core.dtypes import check_dtypes, check_floating
from lc_triton.core.geometry import DATA_FORMATS, PADDING_MODES, Geometry, check_name
from lc_triton.core.memory_format import INTERNAL, MemoryFormat
from lc_triton.core.problem import Problem
from lc_triton.core.tracing import shape_of
from lc_triton.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    BiasShapeError,
    ChannelError,
    DeviceMismatchError,
    PaddingError,
    RankError,
    SpatialSizeError,
    first_line,
)
from lc_triton.ops import autograd


@dataclass(frozen=True)
class Plan:
    """Everything about a call but its tensors: made once for each shape, looked up afterwards.

    `source` is the geometry of the arguments. `geometry` is that of the passes: with a padding mode other than zeros,
    the input is padded by `pad` first. A transposed layer has the geometry of the layer whose adjoint it is.
    """

    source: Geometry
    geometry: Geometry
    activation: Activation
    after: Callable[[Tensor], Tensor] | str | None
    channels_first: bool
    padding_mode: str
    pad: tuple[int, ...]
    transposed: bool = False
    # The geometry of the layer that this is one rank's part of.
    whole: Geometry | None = None
    # The problems of this plan, by backend and precision: a look-up that does not hash the geometry.
    problems: dict[tuple[str, str], Problem] = field(default_factory=dict, init=False, compare=False, repr=False)
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

    def __reduce__(self) -> Any:
        # A copy makes new problems: they hold compiled kernels.
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
        padding_mode: str = "zeros",
        activation: Any = None,
        data_format: str = "channels_first",
        *,
        transposed: bool = False,
    ) -> Plan:
        """The plan for a geometry with zeros padding; padding_mode, activation and data_format are checked here."""
        check_name("padding_mode", padding_mode, PADDING_MODES)
        check_name("data_format", data_format, DATA_FORMATS)
        act = parse_activation(activation)
        fused, after = (act, None) if isinstance(act, Activation) else (LINEAR, act)
        source = geometry
        pad: tuple[int, ...] = ()
        if padding_mode != "zeros" and any(map(any, geometry.padding)):
            _check_padding_mode(geometry, padding_mode)
            pad = tuple(side for pair in reversed(geometry.padding) for side in pair)
            geometry = geometry.padded()
        return cls(source, geometry, fused, after, data_format == "channels_first", padding_mode, pad, transposed)


def _check_padding_mode(geometry: Geometry, mode: str) -> None:
    """Torch pads by reflection at most size - 1, in a circle at most size."""
    for size, pair in zip(geometry.in_spatial, geometry.padding, strict=True):
        limit = {"reflect": size - 1, "circular": size, "replicate": None}[mode]
        if limit is not None and max(pair) > limit:
            raise PaddingError(
                value=geometry.padding,
                reason=f"is too wide for padding_mode={mode!r}: an input of size {size} allows at most {limit} a side; "
                "pad less or use padding_mode='zeros'",
            )


def split_shape(x: Tensor, ndim: int, data_format: str, name: str = "x") -> tuple[tuple[int, ...], int]:
    """The spatial sizes and channels of a batched or unbatched x."""
    if x.ndim not in (ndim + 1, ndim + 2):
        sizes = {1: "L", 2: "H, W", 3: "D, H, W"}[ndim]
        layout = f"C, {sizes}" if data_format == "channels_first" else f"{sizes}, C"
        raise RankError(
            name=name,
            allowed=f"{ndim + 2} dimensions (B, {layout}) or {ndim + 1} ({layout}) for {ndim} spatial dimension(s)",
            shape=tuple(shape_of(x)),
        )
    shape = tuple(shape_of(x))[-ndim - 1 :]
    return (shape[1:], shape[0]) if data_format == "channels_first" else (shape[:-1], shape[-1])


def check_device(device: Any) -> None:
    """Refuse what torch makes no tensors on here; None means torch's default."""
    try:
        torch.empty(0, device=device)
    except Exception as error:  # of any kind: no such device, none of its kind here, or no device at all
        allowed = f"a device that torch can use here ({first_line(error)})"
        raise ArgumentValueError(name="device", value=device, allowed=allowed) from None


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no floating-point tensor."""
    if not isinstance(value, Tensor):
        remedy = f": torch.as_tensor({name}) makes one of an array" if hasattr(value, "__array__") else ""
        raise ArgumentTypeError(name=name, value=value, allowed=f"a torch.Tensor{remedy}")
    if value.layout is not torch.strided or value.is_nested:
        raise ArgumentTypeError(name=name, value=value, allowed="a dense torch.Tensor")
    check_floating(name, value.dtype)


def check_input(x: Tensor, plan: Plan) -> None:
    """Refuse an input of another rank, channels or spatial size than the plan was made for."""
    name, (wanted_spatial, wanted_channels) = plan.operand, plan.input_sizes
    check_tensor(name, x)
    spatial, channels = split_shape(x, plan.source.ndim, plan.data_format, name)
    if channels != wanted_channels:
        raise ChannelError(
            name=name,
            got=channels,
            expected=wanted_channels,
            shape=tuple(shape_of(x)),
            data_format=plan.data_format,
            remedy=_remedy_for_channels(x, plan, channels),
        )
    if spatial != wanted_spatial:
        raise SpatialSizeError(name=name, got=spatial, expected=wanted_spatial)


def _remedy_for_channels(x: Tensor, plan: Plan, channels: int) -> str:
    """What to do about an input of other channels; most often they lie in another dimension."""
    first, last = x.ndim - plan.source.ndim - 1, x.ndim - 1
    there, here = (last, first) if plan.channels_first else (first, last)
    if x.shape[there] == plan.input_sizes[1]:
        return f"move its channels from dimension {there} to {here}: {plan.operand}.movedim({there}, {here})"
    return f"make a layer for {channels}"


def run(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """The operator for a plan that fits x's spatial size and channels."""
    _check_parameters(x, weight, bias, plan)
    device = x.device.type
    if autocast_enabled(device):
        x, weight, bias = _autocast(x, weight, bias, torch.get_autocast_dtype(device))
    check_dtypes(plan.operand, x, weight, bias)

    input_format, backend = input_format_of(x, plan), resolve(device)
    if backend == "reference":
        from lc_triton.ops import reference

        definition = reference.transpose if plan.transposed else reference.forward
        y = definition(to_internal(x, plan), weight, bias, plan.geometry, plan.activation)
    else:
        kind = backend, precision_of(x.dtype)
        if torch.compiler.is_compiling():  # a dictionary that changes is a side effect
            problem = Problem(plan.geometry, plan.activation, *kind, plan.whole)
        else:
            problem = problem_of(plan, *kind)
        if autograd.can_use_single_node(x, weight, bias):
            return _run_single_node(x, weight, bias, plan, problem, input_format)
        y = (autograd.transpose if plan.transposed else autograd.forward)(to_internal(x, plan), weight, bias, problem)
    # `from_internal` written out: a compiler that gives up on this frame would compile that function by itself, and
    # fail on tensors of a transform.
    if isinstance(plan.after, str):  # here, so that y keeps the strides it is promised with
        y = AFTER_KERNEL[plan.after](y, dim=-1)
    if plan.channels_first:
        y = y.movedim(y.ndim - 1, 1)
    if not input_format.batched:
        y = y.squeeze(0)
    return plan.after(y) if callable(plan.after) else y


def _run_single_node(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, problem: Problem, input_format: MemoryFormat
) -> Tensor:
    """The output as one node of the graph, beside the nodes of a padding or an activation of torch's own."""
    output_format = INTERNAL if isinstance(plan.after, str) else input_format
    # The input_grad kernel stores no pre-activation: torch applies an activation that needs it.
    unfused = plan.transposed and problem.activation.saves == "z"
    node = autograd.NodeArguments(
        problem.linear() if unfused else problem,
        INTERNAL if plan.pad else input_format,
        output_format,
        plan.transposed,
    )
    y = autograd.run_single_node(node, to_internal(x, plan) if plan.pad else x, weight, bias)
    if unfused:
        y = problem.activation(y)
    if output_format is not input_format:
        return from_internal(y, plan, batched=input_format.batched)
    return plan.after(y) if callable(plan.after) else y


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
    """The problem of a plan on a backend, made once."""
    problem = plan.problems.get((backend, precision))
    if problem is None:
        problem = _problem(plan.geometry, plan.activation, backend, precision, plan.whole)
        plan.problems[backend, precision] = problem
    return problem


@lru_cache(maxsize=4096)
def _problem(
    geometry: Geometry, activation: Activation, backend: str, precision: str, whole: Geometry | None
) -> Problem:
    """The same problem for all plans of a geometry, so that they share its tiles and compiled kernels."""
    return Problem(geometry, activation, backend, precision, whole)


def precision_of(dtype: torch.dtype) -> str:
    """Torch's own setting for float32 products: "tf32" or "ieee"."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


precision_of._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as `backend.resolve` is


def _check_parameters(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> None:
    """Refuse a weight or bias of another shape than the plan's, or of another device than x."""
    check_tensor("weight", weight)
    if (shape := shape_of(weight)) != plan.weight_shape:
        plan.geometry.check_weight(shape)
    if bias is not None:
        check_tensor("bias", bias)
        position, channel = plan.bias_shapes
        if (shape := shape_of(bias)) not in (position, channel):
            raise BiasShapeError(position=position, channel=channel, shape=tuple(shape))
    _check_devices(plan.operand, x, weight, bias)


def _check_devices(operand: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.device != x.device or (bias is not None and bias.device != x.device):
        named = {operand: x, "weight": weight, "bias": bias}
        raise DeviceMismatchError(devices=", ".join(f"{k} on {t.device}" for k, t in named.items() if t is not None))


def _autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x in autocast's dtype; float64 stays, and so do float32 weights: the kernels round those themselves."""
    if x.dtype == torch.float64 or weight.dtype == torch.float64:
        return x, weight, bias
    x = x.to(dtype)
    if weight.dtype != torch.float32:
        weight = weight.to(dtype)
    return x, weight, bias if bias is None else bias.to(weight.dtype)


def _pad(x: Tensor, plan: Plan) -> Tensor:
    """Reflect, replicate and circular padding by torch's own function, which wants channels first."""
    last = x.ndim - 1
    return F.pad(x.movedim(last, 1), plan.pad, mode=plan.padding_mode).movedim(1, last)
