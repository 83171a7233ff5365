"""Transposed convolutions, of the size that Keras gives their outputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lc_triton.core.padding import padding_pairs
from lc_triton.keras.saved.activation import Function, function
from lc_triton.keras.saved.arguments import Arguments, Count, Counts, Place, WindowArguments, spread
from lc_triton.keras.saved.slots import Slot, convolution_slots
from lc_triton.keras.saved.training import Trained

_CONVOLUTIONS = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


class TransposedConvolution(Trained):
    """A transposed convolution in either data format, and an activation.

    It is the gradient of a convolution whose input has the size of this layer's output. Its weight is torch's,
    `(channels, filters, *kernel)`.
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
        output_padding: tuple[int, ...] | None,
        channels_first: bool,
        activation: Function | None,
        bias: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.dilation = kernel, stride, dilation
        self.padding, self.output_padding = padding, output_padding
        self.channels_first, self.activation = channels_first, activation
        self.weight = nn.Parameter(torch.empty(channels, filters, *kernel, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(filters, dtype=dtype)) if bias else None

    def slots(self) -> list[Slot]:
        """See the base."""
        return convolution_slots(self, self.weight, 1, depthwise=False)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for a batch x."""
        x = x if self.channels_first else x.movedim(-1, 1)
        sizes = self._sizes(tuple(x.shape[2:]))
        pairs = padding_pairs(self.padding, sizes, self.kernel, self.stride, self.dilation)
        convolve = _CONVOLUTIONS[len(self.kernel)]
        y = convolve(x, self.weight, None, self.stride, 0, 0, 1, self.dilation)
        # Of all that windows reach, what lies on the padding goes; what no window reaches is 0.
        sides = [
            (-low, size + low - reached) for (low, _), size, reached in zip(pairs, sizes, y.shape[2:], strict=True)
        ]
        flat = [side for pair in reversed(sides) for side in pair]
        y = F.pad(y, flat) if any(flat) else y
        if self.bias is not None:
            y = y + self.bias.reshape(-1, *[1] * len(self.kernel))
        y = y if self.channels_first else y.movedim(1, -1)
        return self.observed(y if self.activation is None else self.activation(y))

    def _sizes(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """The output's sizes: with an output padding they follow from the windows, else from the strides."""
        found = []
        for i, size in enumerate(spatial):
            reach, stride = self.dilation[i] * (self.kernel[i] - 1) + 1, self.stride[i]
            if self.output_padding is not None:
                cut = 2 * (reach // 2) if self.padding == "same" else 0
                found.append((size - 1) * stride + reach - cut + self.output_padding[i])
            else:
                found.append(size * stride + (0 if self.padding == "same" else max(reach - stride, 0)))
        return tuple(found)

    def extra_repr(self) -> str:
        """The arguments."""
        layout = "channels_first" if self.channels_first else "channels_last"
        return f"{tuple(self.weight.shape)}, stride={self.stride}, padding={self.padding!r}, {layout}"


class TransposedArguments(WindowArguments):
    """`Conv1DTranspose`, `Conv2DTranspose` and `Conv3DTranspose`."""

    filters: Count
    kernel_size: Counts
    strides: Counts = (1,)
    dilation_rate: Counts = (1,)
    output_padding: Any = None
    groups: Count = 1
    activation: Any = None
    use_bias: bool = True

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        _, channels = place.spatial(self.data_format)
        ndim = place.ndim
        if self.padding not in ("valid", "same"):
            raise ValueError(f"its padding {self.padding[:80]!r} is none of valid, same")
        if self.groups != 1:
            raise ValueError(f"groups={self.groups} is not 1, the only number that Keras takes")
        stride = spread("strides", self.strides, ndim)
        output_padding = None
        if self.output_padding is not None:
            given = self.output_padding if isinstance(self.output_padding, list) else [self.output_padding] * ndim
            if len(given) != ndim or any(
                type(n) is not int or not 0 <= n < step for n, step in zip(given, stride, strict=True)
            ):
                raise ValueError(f"its output_padding {str(given)[:80]} is not {ndim} sizes below the strides {stride}")
            output_padding = tuple(given)
        return TransposedConvolution(
            channels,
            self.filters,
            spread("kernel_size", self.kernel_size, ndim),
            stride=stride,
            dilation=spread("dilation_rate", self.dilation_rate, ndim),
            padding=self.padding,
            output_padding=output_padding,
            channels_first=self.channels_first,
            activation=function(self.activation, place.keras),
            bias=self.use_bias,
            dtype=self.variable_dtype,
        )


CLASSES: dict[str, type[Arguments]] = dict.fromkeys(
    ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), TransposedArguments
)
