"""The operators as functions: each looks up the plan of a call and runs it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from lc_triton.core.arguments import Ints, as_index, check_name
from lc_triton.core.geometry import DATA_FORMATS, Geometry, spatial_dims
from lc_triton.core.names import ActivationArg, DataFormat, PaddingArg, PaddingModeName, ShareArg
from lc_triton.core.share import parse_share, share_of
from lc_triton.core.tracing import shape_of
from lc_triton.errors import LocalConvError
from lc_triton.ops.checks import check_tensor, check_weight, split_shape
from lc_triton.ops.plan import Plan, Plans
from lc_triton.ops.quantized import check_quantized, run_quantized
from lc_triton.ops.run import is_cacheable, run, run_cached

__all__ = ["local_conv", "local_conv_transpose"]

# The input's name in errors.
OPERANDS = {"conv": "x", "transpose": "y"}


def local_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Ints = 1,
    padding: PaddingArg = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: PaddingModeName | Sequence[PaddingModeName] = "zeros",
    activation: ActivationArg = None,
    data_format: DataFormat = "channels_first",
    share: ShareArg = None,
    weight_scale: Tensor | None = None,
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
        padding_mode: what the padding holds: "zeros", "reflect", "replicate" or "circular", or one of these a
            dimension: ("replicate", "circular") is (height, width).
        activation: None, a name (torch's names and constants; also "swish", "exponential", "hard_sigmoid"), a pair
            such as ("leaky_relu", 0.2), "softmax" or "log_softmax" (over the filters), or a callable run afterwards.
        data_format: "channels_first" or "channels_last".
        share: positions with the same filters, for which the weight has one entry, `(*regions, *kernel, C // groups,
            F)`: None, "rows" `(H_out, 1, ...)`, "columns" `(1, W_out, ...)`, "all" `(1, 1, ...)`, a block of positions
            such as (4, 4), or a period such as ("tile", 2, 2). The bias stays one a position or one a channel.
        weight_scale: for a weight of 8 or 4 bits, as `lc_triton.quantize_weights` makes them: float32, `(*out_spatial,
            F)` for int8 and float8_e4m3fn, `(*out_spatial, ceil(D / 32), F)` for uint8 that holds two filters of 4 bits
            a byte. The sums are scaled before the bias, of any dtype; no gradient goes to the weight.

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
    if has_torch_function((x, weight, bias, weight_scale)) and not torch.compiler.is_compiling():
        found: Tensor = handle_torch_function(
            local_conv,
            (x, weight, bias, weight_scale),
            x,
            weight,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            padding_mode=padding_mode,
            activation=activation,
            data_format=data_format,
            share=share,
            weight_scale=weight_scale,
        )
        return found
    arguments = ("conv", data_format, activation, stride, padding, dilation, padding_mode, share, groups)
    if weight_scale is not None:
        return _run_quantized(x, weight, bias, weight_scale, arguments)
    return _run(x, weight, bias, arguments)


def local_conv_transpose(
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Ints = 1,
    padding: PaddingArg = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    activation: ActivationArg = None,
    data_format: DataFormat = "channels_first",
    output_size: Ints | None = None,
) -> Tensor:
    """Transposed locally connected layer: the adjoint of `local_conv` with the very same weight.

    What the window of a position reads from a site in `local_conv`, the position gives to that site here:
    `<local_conv(x, weight), y> = <x, local_conv_transpose(y, weight)>`. Then come the bias and `activation`.

    Args:
        y: input, `(B, F, *spatial)` or `(F, *spatial)` for channels_first, `(B, *spatial, F)` or `(*spatial, F)` for
            channels_last; float16, bfloat16, float32 or float64, any strides.
        weight: filters `(*spatial, *kernel, C // groups, F)`: F channels come in, C go out. float32 weights may go with
            a 16-bit y.
        bias: `(*out_spatial, C)`, one a site, `(C,)`, one a channel, or None; of weight's dtype.
        stride: sites between the windows of neighbours, an int or one a dimension.
        padding: sites cut from each border of the output: an int, one int or one (low, high) pair a dimension.
        output_padding: sites added at the high end, less than stride: several sizes have the same windows.
        dilation: sites between the taps of a window, an int or one a dimension.
        groups: blocks the channels are split into, each connected within itself.
        activation: as in `local_conv`.
        data_format: "channels_first" or "channels_last".
        output_size: the output's spatial size, an int or one a dimension, instead of output_padding.

    Returns:
        `(B, C, *out_spatial)` with channels-last strides, or `(B, *out_spatial, C)`; without B if y came without.
        Each size is `(size - 1) * stride + (kernel - 1) * dilation + 1 - low - high + output_padding`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: the input gradient of Taigman et al., "DeepFace", CVPR 2014; asked of PyTorch in its issue 15617.

    Example:
        >>> import torch, lc_triton
        >>> y, weight = torch.randn(8, 64, 15, 15), torch.randn(15, 15, 4, 4, 3, 64)
        >>> lc_triton.local_conv_transpose(y, weight, stride=2, activation="relu").shape
        torch.Size([8, 3, 32, 32])
    """
    if has_torch_function((y, weight, bias)) and not torch.compiler.is_compiling():
        found: Tensor = handle_torch_function(
            local_conv_transpose,
            (y, weight, bias),
            y,
            weight,
            bias,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            dilation=dilation,
            groups=groups,
            activation=activation,
            data_format=data_format,
            output_size=output_size,
        )
        return found
    arguments = ("transpose", data_format, activation, stride, padding, output_padding, dilation, output_size, groups)
    return _run(y, weight, bias, arguments)


def call_of_plan(x: Any, weight: Tensor, bias: Tensor | None, plan: Plan) -> Any:
    """A plan's call of the public function, for an x that stands for a tensor, such as a `torch.fx.Proxy`."""
    geometry, after = plan.source, plan.after
    arguments: dict[str, Any] = {
        "stride": geometry.stride,
        "padding": geometry.padding,
        "dilation": geometry.dilation,
        "groups": geometry.groups,
        "activation": after if isinstance(after, str) else plan.activation.argument,
        "data_format": plan.data_format,
    }
    if plan.transposed:
        y = local_conv_transpose(x, weight, bias, output_size=geometry.in_spatial, **arguments)
    else:
        arguments |= {"padding_mode": plan.padding_mode, "share": share_of(geometry)}
        y = local_conv(x, weight, bias, **arguments)
    return after(y) if callable(after) else y


# "conv" or "transpose", the data format, the activation, five arguments that may be sequences, and the groups.
Arguments = tuple[Any, ...]


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: Arguments) -> Tensor:
    """Run an operator by its plan, which shapes and arguments make."""
    after, is_fixed = None, _FIXED.issuperset(map(type, arguments))
    if not is_fixed:
        # A callable stays out of the cached plan, which would keep alive whatever the callable refers to.
        activation = arguments[2]
        if callable(activation) and not isinstance(activation, type):
            arguments, after = (*arguments[:2], None, *arguments[3:]), activation
        is_fixed = all(map(_is_fixed, arguments))
    if is_fixed and is_cacheable(x, weight, bias):
        y = run_cached(x, weight, bias, _plans_of(arguments))
    else:
        y = run(x, weight, bias, _plan_of_tensors(x, weight, arguments))
    return y if after is None else after(y)


def _run_quantized(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, arguments: Arguments) -> Tensor:
    """As `_run`, for a weight of 8 or 4 bits."""
    check_tensor("x", x)
    shape = check_quantized(weight, scale)
    return run_quantized(x, weight, scale, bias, _plan_of_tensors(x, shape, arguments))


@lru_cache(maxsize=4096)
def _plans_of(arguments: Arguments) -> Plans:
    """The plans of all tensors for arguments of which `_is_fixed` is true."""
    return Plans(lambda x, weight: _plan_of_tensors(x, weight, arguments))


def _plan_of_tensors(x: Tensor, weight: Tensor | tuple[int, ...], arguments: Arguments) -> Plan:
    """The plan for any arguments, and for tensors that may belong to a compiler or a tracer; a weight, or its shape."""
    kind, data_format, *more = arguments
    name = OPERANDS[kind]
    check_tensor(name, x)
    if not isinstance(weight, tuple):
        check_weight(weight)
    weight_shape = weight if isinstance(weight, tuple) else shape_of(weight)
    ndim = spatial_dims(weight_shape)
    check_name("data_format", data_format, DATA_FORMATS)
    spatial, channels = split_shape(shape_of(x), ndim, data_format, name)
    if not torch.compiler.is_compiling():
        return _find(kind, weight_shape, spatial, channels, data_format, *more)
    # Dynamic sizes become numbers: filters belong to positions, so a plan is for one size.
    shape = tuple(operator.index(n) for n in weight_shape)
    spatial = tuple(operator.index(n) for n in spatial)
    more = [_specialize(v) for v in more]
    plan: Plan = getattr(_Plans, _place(kind, shape, spatial, operator.index(channels), data_format, *more))
    return plan


def _specialize(value: Any, depth: int = 0) -> Any:
    """An argument in which a compiler's dynamic sizes, as in `x.shape[2:]`, are replaced by numbers."""
    if isinstance(value, (list, tuple)) and depth < DEEPEST:
        return tuple(_specialize(v, depth + 1) for v in value)
    return operator.index(value) if type(value) is int else value


class _Plans:
    """The plans of compiled calls, as attributes: a compiler reads them without tracing how they are made."""


def _place(kind: str, *call_args: Any) -> str:
    """The name of a plan among `_Plans`."""
    plan = _find(kind, *call_args)
    name = f"plan_{id(plan)}"
    setattr(_Plans, name, plan)
    return name


_place._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as `backend.resolve` is


def _find(
    kind: str,
    weight_shape: tuple[int, ...],
    spatial: tuple[int, ...],
    channels: int,
    data_format: str,
    *more: Any,
) -> Plan:
    """The plan for the shapes of tensors and for the rest of `Arguments`: made once."""
    *may_be_sequences, groups = more
    key = (weight_shape, spatial, channels, data_format, *map(_freeze, may_be_sequences), _now(groups))
    make: Any = _conv_plan if kind == "conv" else _transpose_plan
    plan: Plan | None
    try:
        plan = make(*key)
    except TypeError as error:
        if isinstance(error, LocalConvError):
            raise
        plan = None
    if plan is None:  # something in the key cannot be hashed: the checks say what is wrong with it
        plan = make.__wrapped__(*key)
    assert plan is not None
    return plan


@lru_cache(maxsize=4096, typed=True)
def _conv_plan(
    weight_shape: tuple[int, ...],
    spatial: tuple[int, ...],
    channels: int,
    data_format: str,
    activation: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    padding_mode: Any,
    share: Any,
    groups: int,
) -> Plan:
    geometry = Geometry.from_weight(
        weight_shape,
        spatial,
        channels,
        stride=_thaw(stride),
        padding=_thaw(padding),
        dilation=_thaw(dilation),
        groups=groups,
        regions=parse_share(_thaw(share), spatial_dims(weight_shape)),
        data_format=data_format,
    )
    return Plan.make(geometry, _thaw(padding_mode), _thaw(activation), data_format)


@lru_cache(maxsize=4096, typed=True)
def _transpose_plan(
    weight_shape: tuple[int, ...],
    spatial: tuple[int, ...],
    channels: int,
    data_format: str,
    activation: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    output_size: Any,
    groups: int,
) -> Plan:
    geometry = Geometry.from_transposed_weight(
        weight_shape,
        spatial,
        channels,
        stride=_thaw(stride),
        padding=_thaw(padding),
        output_padding=_thaw(output_padding),
        dilation=_thaw(dilation),
        groups=groups,
        output_size=_thaw(output_size),
        data_format=data_format,
    )
    return Plan.make(geometry, "zeros", _thaw(activation), data_format, transposed=True)


DEEPEST = 2  # levels of nested sequences in any argument; a list that contains itself has no end
_FIXED = frozenset((int, str, type(None)))


def _is_fixed(value: Any, depth: int = 0) -> bool:
    """Whether an argument can be a cache key: its numbers are all ints. True and 1.0 equal 1, but mean other things."""
    kind = type(value)
    if kind is not tuple or depth >= DEEPEST:
        return kind in _FIXED
    return _FIXED.issuperset(map(type, value)) or all(_is_fixed(v, depth + 1) for v in value)


class _Frozen(tuple[Any, ...]):
    """A sequence argument as a hashable key; entries carry their type, since True == 1 == 1.0 would share a plan."""

    __slots__ = ()


def _freeze(value: Any, depth: int = 0) -> Any:
    if isinstance(value, (list, tuple)) and depth < DEEPEST:
        return _Frozen((type(v), _freeze(v, depth + 1)) for v in value)
    return _now(value)


def _now(value: Any) -> Any:
    """The int that a value stands for now, if it stands for one: a tensor may stand for another later."""
    if type(value) in _FIXED or type(value) in (bool, float):
        return value
    number = as_index(value)
    return value if number is None else number


def _thaw(value: Any) -> Any:
    return tuple(_thaw(v) for _, v in value) if isinstance(value, _Frozen) else value
