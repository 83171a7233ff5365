"""The operator as a function: checks, autocast and layout, then the face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lc_triton import _autograd
from lc_triton._activations import AFTER_KERNEL, LINEAR, Activation, ActivationArg, parse_activation
from lc_triton._backend import autocast_enabled, resolve
from lc_triton._geometry import (
    DATA_FORMATS,
    PADDING_MODES,
    Geometry,
    Ints,
    Padding,
    check_name,
    spatial_dims,
)
from lc_triton._problem import Problem
from lc_triton.errors import (
    ArgumentTypeError,
    BiasShapeError,
    ChannelError,
    DeviceMismatchError,
    DtypeError,
    LocalConvError,
    PaddingError,
    RankError,
    SpatialSizeError,
)

__all__ = ["local_conv"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Plan:
    """Everything about a call but its tensors: made once a shape, looked up afterwards.

    `source` is the layer as asked for; `geometry` is what the faces see: with a padding mode other than zeros, the
    input is padded by `pad` before them.
    """

    source: Geometry
    geometry: Geometry
    activation: Activation
    after: Callable[[Tensor], Tensor] | str | None
    channels_first: bool
    padding_mode: str
    pad: tuple[int, ...]

    @property
    def data_format(self) -> str:
        """Where x's channels lie."""
        return "channels_first" if self.channels_first else "channels_last"

    @classmethod
    def make(
        cls,
        geometry: Geometry,
        padding_mode: str = "zeros",
        activation: Any = None,
        data_format: str = "channels_first",
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
        return cls(source, geometry, fused, after, data_format == "channels_first", padding_mode, pad)


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


def local_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    activation: ActivationArg = None,
    data_format: str = "channels_first",
) -> Tensor:
    """Locally connected layer: a convolution whose every output position has filters of its own.

    `z[b,p,f] = sum over taps t, channels c of x[b, site(p,t), c] * weight[p,t,c,f] + bias[p,f]`, then `activation(z)`.

    Args:
        x: input, `(B, C, *spatial)` or `(C, *spatial)` for channels_first, `(B, *spatial, C)` or `(*spatial, C)` for
            channels_last; float16, bfloat16, float32 or float64, any strides.
        weight: filters `(*out_spatial, *kernel, C // groups, F)`; its rank 4, 6 or 8 means 1, 2 or 3 spatial
            dimensions. float32 weights may go with a 16-bit x: they are read as they are.
        bias: `(*out_spatial, F)`, one a position, `(F,)`, one a channel, or None; of weight's dtype.
        stride: step between windows in sites, an int or one a dimension.
        padding: sites added around the input: an int, one int a dimension, one (low, high) pair a dimension, "valid"
            (none), "same" (TensorFlow's SAME, any stride), "keras_same" (Keras 2's LocallyConnected) or "causal" (1-D).
        dilation: sites between the taps of a window, an int or one a dimension.
        groups: blocks the channels and filters are split into, each connected within itself.
        padding_mode: what the padding holds: "zeros", "reflect", "replicate" or "circular".
        activation: None, a name (torch's names and constants; also "swish", "exponential", "hard_sigmoid"), a pair
            such as ("leaky_relu", 0.2), "softmax" or "log_softmax" (over the filters), or a callable run afterwards.
        data_format: "channels_first" or "channels_last".

    Returns:
        y, `(B, F, *out_spatial)` with channels-last strides, or `(B, *out_spatial, F)`; without B if x came without.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: Taigman et al., "DeepFace", CVPR 2014; the layers are Keras 2's LocallyConnected1D and 2D.

    Example:
        >>> import torch, lc_triton
        >>> x, weight = torch.randn(8, 3, 32, 32), torch.randn(30, 30, 3, 3, 3, 64)
        >>> lc_triton.local_conv(x, weight, activation="relu").shape
        torch.Size([8, 64, 30, 30])
    """
    check_tensor("x", x)
    check_tensor("weight", weight)
    ndim = spatial_dims(weight.shape)
    check_name("data_format", data_format, DATA_FORMATS)
    spatial, channels = split_shape(x, ndim, data_format)
    # A callable stays out of the cached plan, which would keep alive whatever the callable refers to.
    after = activation if callable(activation) and not isinstance(activation, type) else None
    key = (
        weight.shape,
        spatial,
        channels,
        _freeze(stride),
        _freeze(padding),
        _freeze(dilation),
        groups,
        padding_mode,
        _freeze(activation) if after is None else None,
        data_format,
    )
    try:
        plan = _plan(*key)
    except TypeError as error:
        if isinstance(error, LocalConvError):
            raise
        plan = None
    if plan is None:  # something in the key cannot be hashed: the checks say what is wrong with it
        plan = _plan.__wrapped__(*key)
    y = run(x, weight, bias, plan)
    return y if after is None else after(y)


@lru_cache(maxsize=4096, typed=True)
def _plan(
    weight_shape: tuple[int, ...],
    spatial: tuple[int, ...],
    channels: int,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    padding_mode: str,
    activation: Any,
    data_format: str,
) -> Plan:
    geometry = Geometry.from_weight(
        weight_shape,
        spatial,
        channels,
        stride=_thaw(stride),
        padding=_thaw(padding),
        dilation=_thaw(dilation),
        groups=groups,
        data_format=data_format,
    )
    return Plan.make(geometry, padding_mode, _thaw(activation), data_format)


class _Frozen(tuple[Any, ...]):
    """A sequence argument as a hashable key; entries carry their type, since True == 1 == 1.0 would share a plan."""

    __slots__ = ()


def _freeze(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return _Frozen((type(v), _freeze(v)) for v in value)
    return value


def _thaw(value: Any) -> Any:
    return tuple(_thaw(v) for _, v in value) if isinstance(value, _Frozen) else value


def split_shape(x: Tensor, ndim: int, data_format: str) -> tuple[tuple[int, ...], int]:
    """The spatial sizes and channels of a batched or unbatched x."""
    if x.ndim not in (ndim + 1, ndim + 2):
        sizes = {1: "L", 2: "H, W", 3: "D, H, W"}[ndim]
        layout = f"C, {sizes}" if data_format == "channels_first" else f"{sizes}, C"
        raise RankError(
            name="x",
            allowed=f"{ndim + 2} dimensions (B, {layout}) or {ndim + 1} ({layout}) for {ndim} spatial dimension(s)",
            shape=tuple(x.shape),
        )
    shape = tuple(x.shape)[-ndim - 1 :]
    return (shape[1:], shape[0]) if data_format == "channels_first" else (shape[:-1], shape[-1])


def check_floating(name: str, dtype: object) -> None:
    """Refuse a dtype the operator does not take; None means torch's default."""
    if dtype is not None and dtype not in _DTYPES:
        allowed = "allowed are float16, bfloat16, float32 and float64: convert it with .to(dtype)"
        raise DtypeError(name=name, value=str(dtype).removeprefix("torch."), allowed=allowed)


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no floating-point tensor."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(name=name, value=value, allowed="a torch.Tensor")
    check_floating(name, value.dtype)


def check_input(x: Tensor, plan: Plan) -> None:
    """Refuse an x of another rank, channels or spatial size than the plan was made for."""
    check_tensor("x", x)
    source = plan.source
    spatial, channels = split_shape(x, source.ndim, plan.data_format)
    if channels != source.in_channels:
        raise ChannelError(
            got=channels, expected=source.in_channels, shape=tuple(x.shape), data_format=plan.data_format
        )
    if spatial != source.in_spatial:
        raise SpatialSizeError(got=spatial, expected=source.in_spatial)


def run(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """The operator for a plan that fits x's spatial size and channels."""
    geo = plan.geometry
    geo.check_weight(weight.shape)
    if bias is not None:
        check_tensor("bias", bias)
        if bias.shape != geo.bias_shape and bias.shape != geo.bias_shape[-1:]:
            raise BiasShapeError(position=geo.bias_shape, channel=geo.bias_shape[-1:], shape=tuple(bias.shape))
    _check_devices(x, weight, bias)
    device = x.device.type
    if autocast_enabled(device):
        x, weight, bias = _autocast(x, weight, bias, torch.get_autocast_dtype(device))
    _check_dtypes(x, weight, bias)

    batched = x.ndim == geo.ndim + 2
    if not batched:
        x = x.unsqueeze(0)
    if plan.channels_first:
        x = x.movedim(1, -1)
    if plan.pad:
        x = _pad(x, plan)
    backend = resolve(device)
    if backend == "reference":
        from lc_triton import reference

        y = reference.forward(x, weight, bias, geo, plan.activation)
    else:
        y = _autograd.forward(x, weight, bias, _problem(geo, plan.activation, backend, _precision(x.dtype)))
    if plan.channels_first:
        y = y.movedim(-1, 1)
    if not batched:
        y = y.squeeze(0)
    if plan.after is None:
        return y
    if isinstance(plan.after, str):
        return AFTER_KERNEL[plan.after](y, dim=-geo.ndim - 1 if plan.channels_first else -1)
    return plan.after(y)


@lru_cache(maxsize=4096)
def _problem(geometry: Geometry, activation: Activation, backend: str, precision: str) -> Problem:
    return Problem(geometry, activation, backend, precision)


def _precision(dtype: torch.dtype) -> str:
    """Torch's own setting for float32 products: "tf32" or "ieee"."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _check_devices(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.device != x.device or (bias is not None and bias.device != x.device):
        named = {"x": x, "weight": weight, "bias": bias}
        raise DeviceMismatchError(devices=", ".join(f"{k} on {t.device}" for k, t in named.items() if t is not None))


def _check_dtypes(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    def name(tensor: Tensor) -> str:
        return str(tensor.dtype).removeprefix("torch.")

    if weight.dtype != x.dtype and not (weight.dtype == torch.float32 and x.dtype in _HALF):
        allowed = f"with x in {name(x)} it must be {name(x)}" + (" or float32" if x.dtype in _HALF else "")
        raise DtypeError(name="weight", value=name(weight), allowed=allowed + ": convert one of them with .to(dtype)")
    if bias is not None and bias.dtype != weight.dtype:
        allowed = f"it must be of weight's dtype {name(weight)}: convert it with .to(dtype)"
        raise DtypeError(name="bias", value=name(bias), allowed=allowed)


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
    return F.pad(x.movedim(-1, 1), plan.pad, mode=plan.padding_mode).movedim(1, -1)
