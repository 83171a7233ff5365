"""A call's plan, made once a shape, and what runs it: checks, autocast and layout, then the face."""

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
from lc_triton.core.memory_format import FACES, Form
from lc_triton.core.problem import Problem
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
from lc_triton.ops import _node, autograd
from lc_triton.ops.tracing import shape_of


@dataclass(frozen=True)
class Plan:
    """Everything about a call but its tensors: made once a shape, looked up afterwards.

    `source` is the layer as asked for; `geometry` is what the faces see: with a padding mode other than zeros, the
    input is padded by `pad` before them. A transposed layer has the geometry of the layer it is the adjoint of.
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
    # What the faces are told, by backend and precision: found again without hashing the geometry.
    problems: dict[tuple[str, str], Problem] = field(default_factory=dict, init=False, compare=False, repr=False)
    # The spatial size and the channels of input and output, and the shapes of weight and bias: made at once, for what
    # is made at the first look stands in a compiler's way.
    takes: tuple[tuple[int, ...], int] = field(init=False, compare=False, repr=False)
    gives: tuple[tuple[int, ...], int] = field(init=False, compare=False, repr=False)
    weight_shape: tuple[int, ...] = field(init=False, compare=False, repr=False)
    bias_shapes: tuple[tuple[int, ...], tuple[int, ...]] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        geo = self.source
        sites, positions = (geo.in_spatial, geo.in_channels), (geo.out_spatial, geo.out_channels)
        takes, gives = (positions, sites) if self.transposed else (sites, positions)
        made = {"takes": takes, "gives": gives, "weight_shape": geo.weight_shape}
        made["bias_shapes"] = (*gives[0], gives[1]), (gives[1],)
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def __reduce__(self) -> Any:
        # A copy makes its problems anew: they hold what was compiled for them.
        return type(self), tuple(getattr(self, f.name) for f in fields(self) if f.init)

    @property
    def data_format(self) -> str:
        """Where x's channels lie."""
        return "channels_first" if self.channels_first else "channels_last"

    @property
    def operand(self) -> str:
        """What errors call the input: y where it is what a locally connected layer gives."""
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
    name, (wanted_spatial, wanted_channels) = plan.operand, plan.takes
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
    if x.shape[there] == plan.takes[1]:
        return f"move its channels from dimension {there} to {here}: {plan.operand}.movedim({there}, {here})"
    return f"make a layer for {channels}"


def run(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """The operator for a plan that fits x's spatial size and channels."""
    _check_parameters(x, weight, bias, plan)
    device = x.device.type
    if autocast_enabled(device):
        x, weight, bias = _autocast(x, weight, bias, torch.get_autocast_dtype(device))
    check_dtypes(plan.operand, x, weight, bias)

    form, backend = form_of(x, plan), resolve(device)
    if backend == "reference":
        from lc_triton.ops import reference

        definition = reference.transpose if plan.transposed else reference.forward
        y = definition(as_faces_take_it(x, plan), weight, bias, plan.geometry, plan.activation)
    else:
        kind = backend, precision_of(x.dtype)
        if torch.compiler.is_compiling():  # a dictionary that changes is a side effect
            problem = Problem(plan.geometry, plan.activation, *kind, plan.whole)
        else:
            problem = problem_of(plan, *kind)
        if _node.fits(x, weight, bias):
            return _as_one_step(x, weight, bias, plan, problem, form)
        y = (autograd.transpose if plan.transposed else autograd.forward)(
            as_faces_take_it(x, plan), weight, bias, problem
        )
    # As `as_asked`, but in this frame: a compiler that gave up on it would compile that one alone, and fail on tensors
    # that a transform has in hand.
    if isinstance(plan.after, str):  # here, so that y keeps the strides it is promised with
        y = AFTER_KERNEL[plan.after](y, dim=-1)
    if plan.channels_first:
        y = y.movedim(y.ndim - 1, 1)
    if not form.batched:
        y = y.squeeze(0)
    return plan.after(y) if callable(plan.after) else y


def _as_one_step(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, problem: Problem, form: Form) -> Tensor:
    """The output with a graph: one step of it, beside those of a padding or an activation that are torch's."""
    takes = FACES if plan.pad else form
    gives = FACES if isinstance(plan.after, str) else form
    # The transposed layers' face stores no pre-activation: torch applies what needs it.
    behind = plan.transposed and problem.activation.saves == "z"
    step = _node.Step(problem.linear() if behind else problem, takes, gives, plan.transposed)
    y = _node.node(step, as_faces_take_it(x, plan) if plan.pad else x, weight, bias)
    if behind:
        y = problem.activation(y)
    if gives is not form:
        return as_asked(y, plan, batched=form.batched)
    return plan.after(y) if callable(plan.after) else y


def form_of(x: Tensor, plan: Plan) -> Form:
    """How x comes."""
    return Form(plan.channels_first, x.ndim == plan.geometry.ndim + 2)


def as_faces_take_it(x: Tensor, plan: Plan) -> Tensor:
    """An input as a batch, channels last, with padding other than zeros around it."""
    x = form_of(x, plan).to_faces(x)
    return _pad(x, plan) if plan.pad else x


def as_asked(y: Tensor, plan: Plan, *, batched: bool) -> Tensor:
    """An output of the faces in the plan's format, and what comes behind them."""
    if isinstance(plan.after, str):
        y = AFTER_KERNEL[plan.after](y, dim=-1)
    y = Form(plan.channels_first, batched).from_faces(y)
    return plan.after(y) if callable(plan.after) else y


def problem_of(plan: Plan, backend: str, precision: str) -> Problem:
    """What the faces are told of a plan."""
    problem = plan.problems.get((backend, precision))
    if problem is None:
        problem = _problem(plan.geometry, plan.activation, backend, precision, plan.whole)
        plan.problems[backend, precision] = problem
    return problem


@lru_cache(maxsize=4096)
def _problem(
    geometry: Geometry, activation: Activation, backend: str, precision: str, whole: Geometry | None
) -> Problem:
    """The same for all plans of a geometry, so that they share what was chosen and compiled for it."""
    return Problem(geometry, activation, backend, precision, whole)


def precision_of(dtype: torch.dtype) -> str:
    """Torch's own setting for float32 products: "tf32" or "ieee"."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


precision_of._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as `_backend.resolve` is


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
