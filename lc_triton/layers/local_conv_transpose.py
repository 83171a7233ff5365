"""Transposed locally connected layers: nn.ConvTranspose1d/2d/3d with filters of its own at every input site."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lc_triton.core.arguments import Ints, int_tuple
from lc_triton.core.geometry import Geometry
from lc_triton.core.names import ActivationArg, BiasKind, PaddingArg
from lc_triton.layers._convolution import ConvolutionLayer, LazyConvolution
from lc_triton.ops.plan import Plan

__all__ = [
    "LazyLocalConvTranspose1d",
    "LazyLocalConvTranspose2d",
    "LazyLocalConvTranspose3d",
    "LocalConvTranspose1d",
    "LocalConvTranspose2d",
    "LocalConvTranspose3d",
]


class _LocalConvTransposeNd(ConvolutionLayer):
    """The base of the layers of all dimensions."""

    own = "output_padding"
    _arguments = ConvolutionLayer._arguments | {"output_padding"}

    output_padding: tuple[int, ...]

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        kernel_size: Ints,
        input_size: Ints | None,
        stride: Ints = 1,
        padding: PaddingArg = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        bias: BiasKind | bool = "position",
        dilation: Ints = 1,
        activation: ActivationArg = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            input_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            own={"output_padding": output_padding},
            bias=bias,
            activation=activation,
            device=device,
            dtype=dtype,
        )

    def _check_argument(self, name: str, value: Any) -> Any:
        if name == "output_padding":
            return int_tuple("output_padding", value, self.ndim, minimum=0)
        return super()._check_argument(name, value)

    def _geometry(self, input_size: tuple[int, ...], in_channels: int) -> Geometry:
        return Geometry.make_transposed(
            input_size,
            in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def _make_plan(self, geometry: Geometry, activation: Any) -> Plan:
        return Plan.make(geometry, "zeros", activation, "channels_first", transposed=True)

    def _more_arguments(self) -> list[str]:
        return [f"output_padding={self.output_padding}"] if any(self.output_padding) else []


class LocalConvTranspose1d(_LocalConvTransposeNd):
    """Transposed locally connected layer over `(B, C, L)`: nn.ConvTranspose1d with filters of its own everywhere.

    It is the adjoint of a `LocalConv1d` from out_channels to in_channels with the same weight.

    Args:
        in_channels: channels of the input, the filters of the layer it is the adjoint of.
        out_channels: channels of the output.
        kernel_size: window size in sites, an int or one a dimension.
        input_size: spatial size of the input, an int or one a dimension; it is fixed, because every input
            site has filters of its own.
        stride: output sites between the windows of neighbours.
        padding: sites cut from each border of the output: an int, one int or one (low, high) pair a dimension.
        output_padding: sites added at the high end of the output, less than stride.
        groups: blocks the channels are split into.
        bias: "position" or True (one an output site and channel), "channel" (one a channel) or False.
        dilation: sites between the taps of a window.
        activation: None, a name, a (name, constant) pair or a callable; see `lc_triton.local_conv`.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype.

    Shapes:
        x `(B, in_channels, L)` or `(in_channels, L)`; output `(B, out_channels, L_out)`, with
        channels-last strides; weight `(*input_size, *kernel_size, out_channels // groups, in_channels)`; bias
        `(*output_size, out_channels)` or `(out_channels,)`. Each size of the output is
        `(size - 1) * stride + (kernel - 1) * dilation + 1 - low - high + output_padding`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: the input gradient of Taigman et al., "DeepFace", CVPR 2014; asked of PyTorch in its issue 15617.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocalConvTranspose1d(64, 32, 3, input_size=8)
        >>> layer(torch.randn(8, 64, 8)).shape
        torch.Size([8, 32, 10])
    """

    ndim = 1
    convolution = nn.ConvTranspose1d


class LocalConvTranspose2d(_LocalConvTransposeNd):
    """Transposed locally connected layer over `(B, C, H, W)`: nn.ConvTranspose2d with filters of its own everywhere.

    It is the adjoint of a `LocalConv2d` from out_channels to in_channels with the same weight.

    Args:
        in_channels: channels of the input, the filters of the layer it is the adjoint of.
        out_channels: channels of the output.
        kernel_size: window size in sites, an int or one a dimension.
        input_size: spatial size of the input, an int or one a dimension; it is fixed, because every input
            site has filters of its own.
        stride: output sites between the windows of neighbours.
        padding: sites cut from each border of the output: an int, one int or one (low, high) pair a dimension.
        output_padding: sites added at the high end of the output, less than stride.
        groups: blocks the channels are split into.
        bias: "position" or True (one an output site and channel), "channel" (one a channel) or False.
        dilation: sites between the taps of a window.
        activation: None, a name, a (name, constant) pair or a callable; see `lc_triton.local_conv`.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype.

    Shapes:
        x `(B, in_channels, H, W)` or `(in_channels, H, W)`; output `(B, out_channels, H_out, W_out)`, with
        channels-last strides; weight `(*input_size, *kernel_size, out_channels // groups, in_channels)`; bias
        `(*output_size, out_channels)` or `(out_channels,)`. Each size of the output is
        `(size - 1) * stride + (kernel - 1) * dilation + 1 - low - high + output_padding`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: the input gradient of Taigman et al., "DeepFace", CVPR 2014; asked of PyTorch in its issue 15617.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocalConvTranspose2d(64, 3, 4, input_size=16, stride=2, padding=1, activation="tanh")
        >>> layer(torch.randn(8, 64, 16, 16)).shape
        torch.Size([8, 3, 32, 32])
    """

    ndim = 2
    convolution = nn.ConvTranspose2d


class LocalConvTranspose3d(_LocalConvTransposeNd):
    """Transposed locally connected layer over `(B, C, D, H, W)`: nn.ConvTranspose3d with filters of its own everywhere.

    It is the adjoint of a `LocalConv3d` from out_channels to in_channels with the same weight.

    Args:
        in_channels: channels of the input, the filters of the layer it is the adjoint of.
        out_channels: channels of the output.
        kernel_size: window size in sites, an int or one a dimension.
        input_size: spatial size of the input, an int or one a dimension; it is fixed, because every input
            site has filters of its own.
        stride: output sites between the windows of neighbours.
        padding: sites cut from each border of the output: an int, one int or one (low, high) pair a dimension.
        output_padding: sites added at the high end of the output, less than stride.
        groups: blocks the channels are split into.
        bias: "position" or True (one an output site and channel), "channel" (one a channel) or False.
        dilation: sites between the taps of a window.
        activation: None, a name, a (name, constant) pair or a callable; see `lc_triton.local_conv`.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype.

    Shapes:
        x `(B, in_channels, D, H, W)` or `(in_channels, D, H, W)`; output `(B, out_channels, D_out, H_out, W_out)`,
        with channels-last strides; weight `(*input_size, *kernel_size, out_channels // groups, in_channels)`; bias
        `(*output_size, out_channels)` or `(out_channels,)`. Each size of the output is
        `(size - 1) * stride + (kernel - 1) * dilation + 1 - low - high + output_padding`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: the input gradient of Taigman et al., "DeepFace", CVPR 2014; asked of PyTorch in its issue 15617.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocalConvTranspose3d(4, 2, 3, input_size=(2, 2, 3), stride=2, output_padding=(0, 1, 0))
        >>> layer(torch.randn(1, 4, 2, 2, 3)).shape
        torch.Size([1, 2, 5, 6, 7])
    """

    ndim = 3
    convolution = nn.ConvTranspose3d


class LazyLocalConvTranspose1d(LazyConvolution, LocalConvTranspose1d):
    """LocalConvTranspose1d that takes `in_channels` and `input_size` from its first input, and is one from then on.

    Args:
        out_channels: channels of the output.
        kernel_size: window size in sites.
        *args: what follows in `LocalConvTranspose1d`: stride, padding, output_padding, groups, bias,
            dilation, activation, device, dtype.
        **kwargs: the same by name.

    Raises:
        LocalConvError: as `LocalConvTranspose1d`, for what the arguments alone show at once, for the rest at the
            first call.

    Source: `torch.nn.modules.lazy`.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LazyLocalConvTranspose1d(32, 3)
        >>> layer(torch.randn(8, 64, 8)).shape
        torch.Size([8, 32, 10])
    """

    cls_to_become = LocalConvTranspose1d


class LazyLocalConvTranspose2d(LazyConvolution, LocalConvTranspose2d):
    """LocalConvTranspose2d that takes `in_channels` and `input_size` from its first input, and is one from then on.

    Args:
        out_channels: channels of the output.
        kernel_size: window size in sites.
        *args: what follows in `LocalConvTranspose2d`: stride, padding, output_padding, groups, bias,
            dilation, activation, device, dtype.
        **kwargs: the same by name.

    Raises:
        LocalConvError: as `LocalConvTranspose2d`, for what the arguments alone show at once, for the rest at the
            first call.

    Source: `torch.nn.modules.lazy`.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LazyLocalConvTranspose2d(3, 4, stride=2, padding=1)
        >>> layer(torch.randn(8, 64, 16, 16)).shape
        torch.Size([8, 3, 32, 32])
    """

    cls_to_become = LocalConvTranspose2d


class LazyLocalConvTranspose3d(LazyConvolution, LocalConvTranspose3d):
    """LocalConvTranspose3d that takes `in_channels` and `input_size` from its first input, and is one from then on.

    Args:
        out_channels: channels of the output.
        kernel_size: window size in sites.
        *args: what follows in `LocalConvTranspose3d`: stride, padding, output_padding, groups, bias,
            dilation, activation, device, dtype.
        **kwargs: the same by name.

    Raises:
        LocalConvError: as `LocalConvTranspose3d`, for what the arguments alone show at once, for the rest at the
            first call.

    Source: `torch.nn.modules.lazy`.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LazyLocalConvTranspose3d(2, 3, stride=2, output_padding=(0, 1, 0))
        >>> layer(torch.randn(1, 4, 2, 2, 3)).shape
        torch.Size([1, 2, 5, 6, 7])
    """

    cls_to_become = LocalConvTranspose3d
