"""Locally connected layers in torch's convention: nn.Conv1d/2d/3d with filters of its own at every position."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lc_triton.core.arguments import Ints
from lc_triton.core.geometry import Geometry
from lc_triton.core.names import ActivationArg, BiasKind, PaddingArg, PaddingModeName, ShareArg
from lc_triton.core.padding_mode import PaddingMode, check_padding_mode
from lc_triton.core.parameters import trains
from lc_triton.core.share import Share, check_share, regions_of
from lc_triton.errors import ConversionError, NotBuiltError
from lc_triton.layers import sharing
from lc_triton.layers._convolution import ConvolutionLayer, LazyConvolution
from lc_triton.ops.plan import Plan

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "LazyLocalConv1d",
    "LazyLocalConv2d",
    "LazyLocalConv3d",
    "LocalConv1d",
    "LocalConv2d",
    "LocalConv3d",
]


class _LocalConvNd(ConvolutionLayer):
    """The base of the layers of all dimensions."""

    _is_quantizable = True
    own = "padding_mode"
    _arguments = ConvolutionLayer._arguments | {"padding_mode", "share"}

    padding_mode: PaddingMode
    share: Share = None

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        kernel_size: Ints,
        input_size: Ints | None,
        stride: Ints = 1,
        padding: PaddingArg = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: BiasKind | bool = "position",
        padding_mode: PaddingModeName | Sequence[PaddingModeName] = "zeros",
        activation: ActivationArg = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        share: ShareArg = None,
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
            own={"padding_mode": padding_mode, "share": share},
            bias=bias,
            activation=activation,
            device=device,
            dtype=dtype,
        )

    def _check_argument(self, name: str, value: Any) -> Any:
        if name == "padding_mode":
            return check_padding_mode(value, self.ndim)
        if name == "share":
            return check_share(value, self.ndim)
        return super()._check_argument(name, value)

    def _geometry(self, input_size: tuple[int, ...], in_channels: int) -> Geometry:
        return Geometry.make(
            input_size,
            in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            regions=regions_of(self.share, self.ndim),
        )

    def _make_plan(self, geometry: Geometry, activation: Any) -> Plan:
        return Plan.make(geometry, self.padding_mode, activation, "channels_first")

    def _own_of_convolution(self) -> str:
        modes = {m for m, pair in zip(self._modes(), self.geometry.padding, strict=True) if any(pair)}
        if len(modes) > 1:
            reason = "a convolution has one for all dimensions: pad the input before a layer without padding"
            raise ConversionError(name=f"a layer with padding_mode={self.padding_mode!r}", reason=reason)
        return modes.pop() if modes else self._modes()[0]

    def _modes(self) -> tuple[str, ...]:
        """The padding mode of each dimension."""
        return (self.padding_mode,) * self.ndim if isinstance(self.padding_mode, str) else self.padding_mode

    def _more_arguments(self) -> list[str]:
        others = (("padding_mode", "zeros"), ("share", None))
        return [f"{name}={value!r}" for name, usual in others if (value := getattr(self, name)) != usual]

    def with_share(self, share: ShareArg, tolerance: float = 0.0) -> Self:
        """Make a layer that computes the same, with filters that other positions share.

        Args:
            share: as in `local_conv`; None gives every position filters of its own, equal at first where they were
                shared.
            tolerance: by how much a weight may differ between positions that are to share it; the result is the middle
                of its values.

        Returns:
            The layer, with copies of the parameters and of an activation that is a module.

        Raises:
            LocalConvError: (also a ValueError or TypeError) an argument of a wrong type or value.
            ConversionError: positions that are to share filters differ by more.
            NotBuiltError: a lazy layer that is not built yet.

        Source: relaxing the symmetry of a trained convolution, as in Elsayed et al., "Revisiting spatial invariance
            with low-rank local connectivity", ICML 2020.

        Example:
            >>> import torch, lc_triton
            >>> layer, x = lc_triton.LocalConv2d(3, 8, 3, input_size=6, share="rows"), torch.randn(2, 3, 6, 6)
            >>> apart = layer.with_share(None)
            >>> layer.weight.shape, apart.weight.shape, torch.allclose(layer(x), apart(x), atol=1e-6)
            (torch.Size([4, 1, 3, 3, 3, 8]), torch.Size([4, 4, 3, 3, 3, 8]), True)
            >>> torch.equal(apart.with_share("rows").weight, layer.weight)
            True
        """
        self._check_unshared("with_share")
        if self._plan is None:
            raise NotBuiltError(name=type(self).__name__, remedy="call it with an input first")
        self._check_parameters()
        names = "in_channels", "out_channels", "kernel_size", "input_size", "stride", "padding", "dilation", "groups"
        arguments: dict[str, Any] = {name: getattr(self, name) for name in (*names, "padding_mode", "activation")}
        if isinstance(self.activation, nn.Module):
            arguments["activation"] = copy.deepcopy(self.activation)
        arguments |= {"bias": self.bias_kind or False, "device": self.weight.device, "dtype": self.weight.dtype}
        layer: Self = type(self)(**arguments, share=share)
        weight = sharing.regroup(self.weight, self.geometry, layer.geometry, tolerance)
        sharing.assign(layer.weight, weight, trains=trains(self, "weight"))
        if self.bias is not None and layer.bias is not None:
            sharing.assign(layer.bias, self.bias, trains=trains(self, "bias"))
        layer._follows_input_format = self._follows_input_format
        layer.train(self.training)
        return layer


class LocalConv1d(_LocalConvNd):
    """Locally connected layer over `(B, C, L)`: nn.Conv1d with filters of its own at every output position.

    Args:
        in_channels: C, channels of the input.
        out_channels: F, filters at every position.
        kernel_size: window size in sites, an int or one a dimension.
        input_size: spatial size of the input, an int or one a dimension; it is fixed, because every output
            position has filters of its own.
        stride: step between windows in sites.
        padding: an int, one int or one (low, high) pair a dimension, "valid", "same" (TensorFlow's SAME, any stride),
            "keras_same" (Keras 2's) or "causal" (1-D).
        dilation: sites between the taps of a window.
        groups: blocks the channels and filters are split into.
        bias: "position" or True (one a position and filter), "channel" (one a filter) or False.
        padding_mode: "zeros", "reflect", "replicate" or "circular", or a sequence of one a dimension.
        activation: None, a name, a (name, constant) pair or a callable; see `lc_triton.local_conv`.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype.
        share: positions with the same filters: None, "rows", "columns", "all", a block such as 4 or a period such as
            ("tile", 2), the last two with one number or one a dimension; see `lc_triton.local_conv`.

    Shapes:
        x `(B, C, L)` or `(C, L)`; output `(B, F, L_out)`, with channels-last strides;
        weight `(*output_size, *kernel_size, C // groups, F)`, with `share` regions instead of output_size;
        bias `(*output_size, F)` or `(F,)`.

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
    convolution = nn.Conv1d


class LocalConv2d(_LocalConvNd):
    """Locally connected layer over `(B, C, H, W)`: nn.Conv2d with filters of its own at every output position.

    Args:
        in_channels: C, channels of the input.
        out_channels: F, filters at every position.
        kernel_size: window size in sites, an int or one a dimension.
        input_size: spatial size of the input, an int or one a dimension; it is fixed, because every output
            position has filters of its own.
        stride: step between windows in sites.
        padding: an int, one int or one (low, high) pair a dimension, "valid", "same" (TensorFlow's SAME, any stride),
            "keras_same" (Keras 2's) or "causal" (1-D).
        dilation: sites between the taps of a window.
        groups: blocks the channels and filters are split into.
        bias: "position" or True (one a position and filter), "channel" (one a filter) or False.
        padding_mode: "zeros", "reflect", "replicate" or "circular", or a sequence of one a dimension.
        activation: None, a name, a (name, constant) pair or a callable; see `lc_triton.local_conv`.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype.
        share: positions with the same filters: None, "rows", "columns", "all", a block such as 4 or a period such as
            ("tile", 2), the last two with one number or one a dimension; see `lc_triton.local_conv`.

    Shapes:
        x `(B, C, H, W)` or `(C, H, W)`; output `(B, F, H_out, W_out)`, with channels-last strides;
        weight `(*output_size, *kernel_size, C // groups, F)`, with `share` regions instead of output_size;
        bias `(*output_size, F)` or `(F,)`.

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
    convolution = nn.Conv2d


class LocalConv3d(_LocalConvNd):
    """Locally connected layer over `(B, C, D, H, W)`: nn.Conv3d with filters of its own at every output position.

    Args:
        in_channels: C, channels of the input.
        out_channels: F, filters at every position.
        kernel_size: window size in sites, an int or one a dimension.
        input_size: spatial size of the input, an int or one a dimension; it is fixed, because every output
            position has filters of its own.
        stride: step between windows in sites.
        padding: an int, one int or one (low, high) pair a dimension, "valid", "same" (TensorFlow's SAME, any stride),
            "keras_same" (Keras 2's) or "causal" (1-D).
        dilation: sites between the taps of a window.
        groups: blocks the channels and filters are split into.
        bias: "position" or True (one a position and filter), "channel" (one a filter) or False.
        padding_mode: "zeros", "reflect", "replicate" or "circular", or a sequence of one a dimension.
        activation: None, a name, a (name, constant) pair or a callable; see `lc_triton.local_conv`.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype.
        share: positions with the same filters: None, "rows", "columns", "all", a block such as 4 or a period such as
            ("tile", 2), the last two with one number or one a dimension; see `lc_triton.local_conv`.

    Shapes:
        x `(B, C, D, H, W)` or `(C, D, H, W)`; output `(B, F, D_out, H_out, W_out)`, with channels-last strides;
        weight `(*output_size, *kernel_size, C // groups, F)`, with `share` regions instead of output_size;
        bias `(*output_size, F)` or `(F,)`.

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
    convolution = nn.Conv3d


class LazyLocalConv1d(LazyConvolution, LocalConv1d):
    """LocalConv1d that takes `in_channels` and `input_size` from its first input, and is a LocalConv1d from then on.

    Args:
        out_channels: F, filters at every position.
        kernel_size: window size in sites.
        *args: what follows in `LocalConv1d`: stride, padding, dilation, groups, bias, padding_mode,
            activation, device, dtype.
        **kwargs: the same by name.

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


class LazyLocalConv2d(LazyConvolution, LocalConv2d):
    """LocalConv2d that takes `in_channels` and `input_size` from its first input, and is a LocalConv2d from then on.

    Args:
        out_channels: F, filters at every position.
        kernel_size: window size in sites.
        *args: what follows in `LocalConv2d`: stride, padding, dilation, groups, bias, padding_mode,
            activation, device, dtype.
        **kwargs: the same by name.

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


class LazyLocalConv3d(LazyConvolution, LocalConv3d):
    """LocalConv3d that takes `in_channels` and `input_size` from its first input, and is a LocalConv3d from then on.

    Args:
        out_channels: F, filters at every position.
        kernel_size: window size in sites.
        *args: what follows in `LocalConv3d`: stride, padding, dilation, groups, bias, padding_mode,
            activation, device, dtype.
        **kwargs: the same by name.

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
