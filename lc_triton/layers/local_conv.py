"""Locally connected layers by torch's convention: nn.Conv1d/2d/3d with filters of its own at every position."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from lc_triton._activations import ActivationArg, parse_activation
from lc_triton._geometry import (
    PADDING_MODES,
    Geometry,
    Ints,
    Padding,
    check_int,
    check_name,
    check_padding,
    int_tuple,
)
from lc_triton.errors import GroupsError
from lc_triton.functional import Plan, check_floating, split_shape
from lc_triton.layers._planned import PlannedLayer

__all__ = [
    "LazyLocalConv1d",
    "LazyLocalConv2d",
    "LazyLocalConv3d",
    "LocalConv1d",
    "LocalConv2d",
    "LocalConv3d",
]

BIAS_KINDS = ("position", "channel")


def _bias_kind(value: object) -> str | None:
    if isinstance(value, bool):
        return "position" if value else None
    return check_name("bias", value, BIAS_KINDS)


class _LocalConvNd(PlannedLayer):
    """What the layers of all dimensions share; `in_channels` and `input_size` are None until a lazy one is built."""

    ndim: ClassVar[int]

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        kernel_size: Ints,
        input_size: Ints | None,
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: str | bool = "position",
        padding_mode: str = "zeros",
        activation: ActivationArg = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        parse_activation(activation)
        check_floating("dtype", dtype)
        bias_kind = _bias_kind(bias)
        super().__init__(activation, with_bias=bias_kind is not None, device=device, dtype=dtype)
        self.bias_kind = bias_kind
        n = self.ndim
        self.in_channels = None if in_channels is None else check_int("in_channels", in_channels, 1)
        self.out_channels = check_int("out_channels", out_channels, 1)
        self.kernel_size = int_tuple("kernel_size", kernel_size, n)
        self.input_size = None if input_size is None else int_tuple("input_size", input_size, n)
        self.stride = int_tuple("stride", stride, n)
        self.padding = check_padding(padding, n)
        self.dilation = int_tuple("dilation", dilation, n)
        self.groups = check_int("groups", groups, 1)
        if self.out_channels % self.groups:
            raise GroupsError(name="out_channels", value=self.out_channels, groups=self.groups)
        self.padding_mode = check_name("padding_mode", padding_mode, PADDING_MODES)
        if self.in_channels is not None and self.input_size is not None:
            self._build(self.input_size, self.in_channels)

    def _build(self, input_size: tuple[int, ...], in_channels: int) -> None:
        geometry = Geometry.make(
            input_size,
            in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        shapes = {"position": geometry.bias_shape, "channel": geometry.bias_shape[-1:], None: None}
        self._fit(geometry, shapes[self.bias_kind])
        self.input_size, self.in_channels = geometry.in_spatial, geometry.in_channels

    def _make_plan(self, geometry: Geometry, activation: ActivationArg) -> Plan:
        return Plan.make(geometry, self.padding_mode, activation, "channels_first")

    @property
    def output_size(self) -> tuple[int, ...] | None:
        """Output positions per dimension; None until the layer is built."""
        return None if self._plan is None else self._plan.source.out_spatial

    def _reset(self, name: str) -> None:
        # As torch's convolutions do: uniform within 1 / sqrt(D), D the window of one position.
        assert self._plan is not None
        bound = 1 / math.sqrt(self._plan.source.window)
        nn.init.uniform_(getattr(self, name), -bound, bound)

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults."""
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}",
            f"input_size={self.input_size}",
            f"stride={self.stride}",
        ]
        none = ((0, 0),) * self.ndim
        if self.padding not in (none, "valid"):
            parts.append(f"padding={self.padding!r}")
        if self.dilation != (1,) * self.ndim:
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias_kind != "position":
            parts.append(f"bias={self.bias_kind or False!r}")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode!r}")
        if self.activation is not None and not isinstance(self.activation, nn.Module):
            parts.append(f"activation={self.activation!r}")
        return ", ".join(parts)


class _LazyLocalConvNd(LazyModuleMixin, _LocalConvNd):
    """A layer that takes in_channels and input_size from its first input, then becomes the plain class."""

    def __init__(self, out_channels: int, kernel_size: Ints, *args: Any, **kwargs: Any) -> None:
        super().__init__(None, out_channels, kernel_size, None, *args, **kwargs)

    def initialize_parameters(self, x: Tensor) -> None:
        """Build for x; parameters loaded from a state dict are kept if they fit."""
        spatial, channels = split_shape(x, self.ndim, "channels_first")
        self._build(spatial, channels)


class LocalConv1d(_LocalConvNd):
    """Locally connected layer over `(B, C, L)`: nn.Conv1d with filters of its own at every output position.

    Args:
        in_channels: C, channels of the input.
        out_channels: F, filters at every position.
        kernel_size: window size in sites, an int or one a dimension.
        input_size: spatial size of the input, an int or one a dimension; the layer takes no other, since every output
            position has filters of its own.
        stride: step between windows in sites.
        padding: an int, one int or one (low, high) pair a dimension, "valid", "same" (TensorFlow's SAME, any stride),
            "keras_same" (Keras 2's) or "causal" (1-D).
        dilation: sites between the taps of a window.
        groups: blocks the channels and filters are split into.
        bias: "position" or True (one a position and filter), "channel" (one a filter) or False.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        activation: None, a name, a (name, constant) pair or a callable; see `lc_triton.local_conv`.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype.

    Shapes:
        x `(B, C, L)` or `(C, L)`; output `(B, F, L_out)`, with channels-last strides;
        weight `(*output_size, *kernel_size, C // groups, F)`; bias `(*output_size, F)` or `(F,)`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: Taigman et al., "DeepFace", CVPR 2014.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocalConv1d(32, 64, 3, input_size=10)
        >>> layer(torch.randn(8, 32, 10)).shape
        torch.Size([8, 64, 8])
    """

    ndim = 1


class LocalConv2d(_LocalConvNd):
    """Locally connected layer over `(B, C, H, W)`: nn.Conv2d with filters of its own at every output position.

    Args:
        in_channels: C, channels of the input.
        out_channels: F, filters at every position.
        kernel_size: window size in sites, an int or one a dimension.
        input_size: spatial size of the input, an int or one a dimension; the layer takes no other, since every output
            position has filters of its own.
        stride: step between windows in sites.
        padding: an int, one int or one (low, high) pair a dimension, "valid", "same" (TensorFlow's SAME, any stride),
            "keras_same" (Keras 2's) or "causal" (1-D).
        dilation: sites between the taps of a window.
        groups: blocks the channels and filters are split into.
        bias: "position" or True (one a position and filter), "channel" (one a filter) or False.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        activation: None, a name, a (name, constant) pair or a callable; see `lc_triton.local_conv`.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype.

    Shapes:
        x `(B, C, H, W)` or `(C, H, W)`; output `(B, F, H_out, W_out)`, with channels-last strides;
        weight `(*output_size, *kernel_size, C // groups, F)`; bias `(*output_size, F)` or `(F,)`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: Taigman et al., "DeepFace", CVPR 2014.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocalConv2d(3, 64, 3, input_size=32, padding="same", activation="relu")
        >>> layer(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 64, 32, 32])
    """

    ndim = 2


class LocalConv3d(_LocalConvNd):
    """Locally connected layer over `(B, C, D, H, W)`: nn.Conv3d with filters of its own at every output position.

    Args:
        in_channels: C, channels of the input.
        out_channels: F, filters at every position.
        kernel_size: window size in sites, an int or one a dimension.
        input_size: spatial size of the input, an int or one a dimension; the layer takes no other, since every output
            position has filters of its own.
        stride: step between windows in sites.
        padding: an int, one int or one (low, high) pair a dimension, "valid", "same" (TensorFlow's SAME, any stride),
            "keras_same" (Keras 2's) or "causal" (1-D).
        dilation: sites between the taps of a window.
        groups: blocks the channels and filters are split into.
        bias: "position" or True (one a position and filter), "channel" (one a filter) or False.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        activation: None, a name, a (name, constant) pair or a callable; see `lc_triton.local_conv`.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype.

    Shapes:
        x `(B, C, D, H, W)` or `(C, D, H, W)`; output `(B, F, D_out, H_out, W_out)`, with channels-last strides;
        weight `(*output_size, *kernel_size, C // groups, F)`; bias `(*output_size, F)` or `(F,)`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: Taigman et al., "DeepFace", CVPR 2014.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocalConv3d(2, 4, 3, input_size=(5, 6, 7), stride=2)
        >>> layer(torch.randn(1, 2, 5, 6, 7)).shape
        torch.Size([1, 4, 2, 2, 3])
    """

    ndim = 3


class LazyLocalConv1d(_LazyLocalConvNd, LocalConv1d):
    """LocalConv1d that takes `in_channels` and `input_size` from its first input, and is a LocalConv1d from then on.

    Args:
        out_channels: F, filters at every position.
        kernel_size: window size in sites.
        *args, **kwargs: what follows in `LocalConv1d`: stride, padding, dilation, groups, bias, padding_mode,
            activation, device, dtype.

    Raises:
        LocalConvError: as `LocalConv1d`, for what the arguments alone show at once, for the rest at the first call.

    Source: `torch.nn.modules.lazy`.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LazyLocalConv1d(64, 3)
        >>> layer(torch.randn(8, 32, 10)).shape
        torch.Size([8, 64, 8])
    """

    cls_to_become = LocalConv1d


class LazyLocalConv2d(_LazyLocalConvNd, LocalConv2d):
    """LocalConv2d that takes `in_channels` and `input_size` from its first input, and is a LocalConv2d from then on.

    Args:
        out_channels: F, filters at every position.
        kernel_size: window size in sites.
        *args, **kwargs: what follows in `LocalConv2d`: stride, padding, dilation, groups, bias, padding_mode,
            activation, device, dtype.

    Raises:
        LocalConvError: as `LocalConv2d`, for what the arguments alone show at once, for the rest at the first call.

    Source: `torch.nn.modules.lazy`.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LazyLocalConv2d(64, 3, padding="same")
        >>> layer(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 64, 32, 32])
    """

    cls_to_become = LocalConv2d


class LazyLocalConv3d(_LazyLocalConvNd, LocalConv3d):
    """LocalConv3d that takes `in_channels` and `input_size` from its first input, and is a LocalConv3d from then on.

    Args:
        out_channels: F, filters at every position.
        kernel_size: window size in sites.
        *args, **kwargs: what follows in `LocalConv3d`: stride, padding, dilation, groups, bias, padding_mode,
            activation, device, dtype.

    Raises:
        LocalConvError: as `LocalConv3d`, for what the arguments alone show at once, for the rest at the first call.

    Source: `torch.nn.modules.lazy`.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LazyLocalConv3d(4, 3, stride=2)
        >>> layer(torch.randn(1, 2, 5, 6, 7)).shape
        torch.Size([1, 4, 2, 2, 3])
    """

    cls_to_become = LocalConv3d
