"""What the tensors of a call are checked for, beside its plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lc_triton.core.dtypes import check_floating
from lc_triton.core.storage import check_memory
from lc_triton.core.tracing import shape_of
from lc_triton.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    BiasShapeError,
    ChannelError,
    DeviceMismatchError,
    DtypeError,
    RankError,
    SpatialSizeError,
    first_line,
)
from lc_triton.ops.plan import Plan

STORED = (torch.int8, torch.uint8, torch.float8_e4m3fn)  # of weights that `quantize_weights` made


def split_shape(shape: tuple[int, ...], ndim: int, data_format: str, name: str = "x") -> tuple[tuple[int, ...], int]:
    """The spatial sizes and channels of a batched or unbatched x, by its shape."""
    if len(shape) not in (ndim + 1, ndim + 2):
        sizes = {1: "L", 2: "H, W", 3: "D, H, W"}[ndim]
        layout = f"C, {sizes}" if data_format == "channels_first" else f"{sizes}, C"
        raise RankError(
            name=name,
            allowed=f"{ndim + 2} dimensions (B, {layout}) or {ndim + 1} ({layout}) for {ndim} spatial dimension(s)",
            shape=tuple(shape),
        )
    shape = tuple(shape)[-ndim - 1 :]
    return (shape[1:], shape[0]) if data_format == "channels_first" else (shape[:-1], shape[-1])


def check_device(device: Any) -> None:
    """Refuse what torch makes no tensors on here; None means torch's default."""
    try:
        torch.empty(0, device=device)
    except Exception as error:  # of any kind: no such device, none of its kind here, or no device at all
        allowed = f"a device that torch can use here ({first_line(error)})"
        raise ArgumentValueError(name="device", value=device, allowed=allowed) from None


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no floating-point tensor, or has no memory any more."""
    if not isinstance(value, Tensor):
        remedy = f": torch.as_tensor({name}) makes one of an array" if hasattr(value, "__array__") else ""
        raise ArgumentTypeError(name=name, value=value, allowed=f"a torch.Tensor{remedy}")
    if value.layout is not torch.strided or value.is_nested:
        raise ArgumentTypeError(name=name, value=value, allowed="a dense torch.Tensor")
    check_floating(name, value.dtype)
    check_memory(name, value)


def check_input(x: Tensor, plan: Plan) -> None:
    """Refuse an input of another rank, channels or spatial size than the plan was made for."""
    name, (wanted_spatial, wanted_channels) = plan.operand, plan.input_sizes
    check_tensor(name, x)
    spatial, channels = split_shape(shape_of(x), plan.source.ndim, plan.data_format, name)
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


def check_weight(weight: object) -> None:
    """Refuse what is no floating-point tensor, and filters of few bits without their scale."""
    if isinstance(weight, Tensor) and weight.dtype in STORED:
        allowed = (
            "a weight that quantize_weights made needs its scale: local_conv(..., weight_scale=layer.weight_scale)"
        )
        raise DtypeError(name="weight", value=str(weight.dtype).removeprefix("torch."), allowed=allowed)
    check_tensor("weight", weight)


def check_parameters(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> None:
    """Refuse a weight or bias of another shape than the plan's, or of another device than x."""
    check_weight(weight)
    if (shape := shape_of(weight)) != plan.weight_shape:
        plan.geometry.check_weight(shape)
    if bias is not None:
        check_tensor("bias", bias)
        position, channel = plan.bias_shapes
        if (shape := shape_of(bias)) not in (position, channel):
            raise BiasShapeError(position=position, channel=channel, shape=tuple(shape))
    check_devices(plan.operand, x, weight, bias)


def check_devices(operand: str, x: Tensor, weight: Tensor, bias: Tensor | None, **more: Tensor) -> None:
    """Refuse tensors of different devices."""
    others = weight, *more.values()
    if any(tensor.device != x.device for tensor in others) or (bias is not None and bias.device != x.device):
        named = {operand: x, "weight": weight, "bias": bias, **more}
        raise DeviceMismatchError(devices=", ".join(f"{k} on {t.device}" for k, t in named.items() if t is not None))
