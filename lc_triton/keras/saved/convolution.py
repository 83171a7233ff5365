"""Layers with kernels: dense, convolutional, depthwise, separable and locally connected."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lc_triton.core.padding import padding_pairs
from lc_triton.errors import LocalConvError
from lc_triton.keras import initializers
from lc_triton.keras.saved.activation import Function, argument, function, gelu
from lc_triton.keras.saved.arguments import Arguments, Count, Counts, Place, WindowArguments, spread
from lc_triton.keras.saved.slots import Slot, convolution_slots, linear_slots
from lc_triton.keras.saved.training import KINDS, Trained, asked
from lc_triton.layers import LocallyConnected1D, LocallyConnected2D, LocallyConnected3D

LOCALLY_CONNECTED = (LocallyConnected1D, LocallyConnected2D, LocallyConnected3D)

_LAYERS: dict[str, Any] = {layer.__name__: layer for layer in LOCALLY_CONNECTED}
# What a file says of a layer's input, its place in the model says too.
_INPUT = ("input_shape", "batch_input_shape", "input_dim", "input_length")
_KNOWN = [name for name in inspect.signature(LocallyConnected1D).parameters if name not in _INPUT]  # the same for all

_CONVOLUTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


class Dense(Trained, nn.Linear):
    """A matrix over the last axis, and an activation."""

    def __init__(self, inputs: int, units: int, activation: Function | None, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__(inputs, units, bias=bias, dtype=dtype)
        self.activation = activation

    def slots(self) -> list[Slot]:
        """See the base."""
        return linear_slots(self)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for x `(..., inputs)`."""
        y = F.linear(x, self.weight, self.bias)
        return self.observed(y if self.activation is None else self.activation(y))


class Convolution(Trained):
    """A convolution in either data format, with TensorFlow's padding, and an activation.

    Its weight is torch's, `(filters, channels // groups, *kernel)`. With `depthwise`, Keras has a kernel of its own
    for each channel, `(*kernel, channels, filters // channels)`, which is a convolution with as many groups.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        kernel: tuple[int, ...],
        *,
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
        padding: str,
        groups: int,
        channels_first: bool,
        activation: Function | None,
        bias: bool,
        dtype: torch.dtype,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.dilation, self.padding = kernel, stride, dilation, padding
        self.groups, self.channels_first, self.activation, self.depthwise = (
            groups,
            channels_first,
            activation,
            depthwise,
        )
        self.weight = nn.Parameter(torch.empty(filters, channels // groups, *kernel, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(filters, dtype=dtype)) if bias else None

    def slots(self) -> list[Slot]:
        """See the base."""
        return convolution_slots(self, self.weight, self.groups, depthwise=self.depthwise)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for a batch x."""
        x = x if self.channels_first else x.movedim(-1, 1)
        pairs = padding_pairs(self.padding, tuple(x.shape[2:]), self.kernel, self.stride, self.dilation)
        if any(map(any, pairs)):
            x = F.pad(x, [side for pair in reversed(pairs) for side in pair])
        convolve = _CONVOLUTIONS[len(self.kernel)]
        y = convolve(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
        y = y if self.channels_first else y.movedim(1, -1)
        return self.observed(y if self.activation is None else self.activation(y))

    def extra_repr(self) -> str:
        """The arguments."""
        layout = "channels_first" if self.channels_first else "channels_last"
        shape = tuple(self.weight.shape)
        return f"{shape}, stride={self.stride}, padding={self.padding!r}, groups={self.groups}, {layout}"


class SeparableConvolution(Trained):
    """A depthwise convolution, then one with windows of size 1."""

    def __init__(self, depthwise: Convolution, pointwise: Convolution) -> None:
        super().__init__()
        self.depthwise, self.pointwise = depthwise, pointwise

    def slots(self) -> list[Slot]:
        """See the base."""
        kernel, *bias = self.pointwise.slots()
        return [*self.depthwise.slots(), replace(kernel, name="pointwise_kernel"), *bias]

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for a batch x."""
        y: Tensor = self.pointwise(self.depthwise(x))
        return self.observed(y)


class DenseArguments(Arguments):
    """`Dense`."""

    units: Count
    activation: Any = None
    use_bias: bool = True

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if not place.shape:
            raise ValueError("it takes inputs with a last axis")
        activation = function(self.activation, place.keras)
        return Dense(place.shape[-1], self.units, activation, bias=self.use_bias, dtype=self.variable_dtype)


class _ConvArguments(WindowArguments):
    kernel_size: Counts
    strides: Counts = (1,)
    dilation_rate: Counts = (1,)
    groups: Count = 1
    activation: Any = None
    use_bias: bool = True

    def _convolution(
        self, place: Place, filters: int, groups: int, *, depthwise: bool = False, causal: bool = True
    ) -> Convolution:
        ndim = place.ndim
        allowed = ("valid", "same", "causal") if ndim == 1 and causal else ("valid", "same")
        if self.padding not in allowed:
            raise ValueError(f"its padding {self.padding[:80]!r} is none of {', '.join(allowed)}")
        _, channels = place.spatial(self.data_format)
        if channels % groups or filters % groups:
            raise ValueError(f"{channels} channels and {filters} filters cannot be split into {groups} groups")
        return Convolution(
            channels,
            filters,
            spread("kernel_size", self.kernel_size, ndim),
            stride=spread("strides", self.strides, ndim),
            dilation=spread("dilation_rate", self.dilation_rate, ndim),
            padding=self.padding,
            groups=groups,
            channels_first=self.channels_first,
            activation=function(self.activation, place.keras),
            bias=self.use_bias,
            dtype=self.variable_dtype,
            depthwise=depthwise,
        )


class ConvArguments(_ConvArguments):
    """`Conv1D`, `Conv2D` and `Conv3D`."""

    filters: Count

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return self._convolution(place, self.filters, self.groups)


class DepthwiseConvArguments(_ConvArguments):
    """`DepthwiseConv1D` and `DepthwiseConv2D`."""

    depth_multiplier: Count = 1

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        _, channels = place.spatial(self.data_format)
        return self._convolution(place, channels * self.depth_multiplier, channels, depthwise=True, causal=False)


class SeparableConvArguments(_ConvArguments):
    """`SeparableConv1D` and `SeparableConv2D`."""

    filters: Count
    depth_multiplier: Count = 1

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        ndim, (_, channels) = place.ndim, place.spatial(self.data_format)
        middle = channels * self.depth_multiplier
        first = self.model_copy(update={"activation": None, "use_bias": False})
        depthwise = first._convolution(place, middle, channels, depthwise=True)
        pointwise = Convolution(
            middle,
            self.filters,
            (1,) * ndim,
            stride=(1,) * ndim,
            dilation=(1,) * ndim,
            padding="valid",
            groups=1,
            channels_first=self.channels_first,
            activation=function(self.activation, place.keras),
            bias=self.use_bias,
            dtype=self.variable_dtype,
        )
        return SeparableConvolution(depthwise, pointwise)


class LocallyConnectedArguments(Arguments):
    """`LocallyConnected1D`, 2D and, which only our layers of Keras 3 write, 3D: each checks its own arguments."""

    fan_mode: Any = None  # how our own layers of Keras 3 draw weights, which here are in the file

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        given = {name: value for name, value in (self.model_extra or {}).items() if name in _KNOWN}
        if place.package == "lc_triton":
            given["implementation"] = 1  # that of its kernel, for every value of the argument
        elif given.get("padding") == "same":
            given["padding"] = "keras_same"  # what Keras 2 means by it
        read, _ = asked(given)
        given = {name: read.get(name) if name.endswith(tuple(KINDS)) else value for name, value in given.items()}
        given["activation"] = argument(given.get("activation"), place.keras)
        if given["activation"] == "gelu" and place.keras < 3 and self.variable_dtype == torch.float64:
            given["activation"] = gelu  # the kernels' own is exact, where Keras's constant is not
        for name, default in (("kernel_initializer", "glorot_uniform"), ("bias_initializer", "zeros")):
            # One that cannot be named here would only matter if the weights, which are in the file, were drawn anew.
            try:
                initializers.get(given.get(name))
            except LocalConvError:
                given[name] = default
        given |= {"name": self.name, "trainable": self.trainable, "dtype": self.variable_dtype, "device": "meta"}
        try:
            layer: nn.Module = _LAYERS[place.class_name].from_config({**given, "input_shape": place.shape})
        except LocalConvError as error:
            raise ValueError(str(error)) from None
        return layer

    def _knows(self, name: str) -> bool:
        return name in (*_KNOWN, *_INPUT) or super()._knows(name)


CLASSES: dict[str, type[Arguments]] = {
    "Dense": DenseArguments,
    "Conv1D": ConvArguments,
    "Conv2D": ConvArguments,
    "Conv3D": ConvArguments,
    "DepthwiseConv1D": DepthwiseConvArguments,
    "DepthwiseConv2D": DepthwiseConvArguments,
    "SeparableConv1D": SeparableConvArguments,
    "SeparableConv2D": SeparableConvArguments,
    **dict.fromkeys(_LAYERS, LocallyConnectedArguments),
}
