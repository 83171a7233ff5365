"""ConvLSTM1D, 2D and 3D: LSTM layers whose inputs and states are images, and whose matrices are convolutions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import StrictBool
from torch import Tensor, nn

from lc_triton.core.padding import padding_pairs
from lc_triton.keras.saved.activation import Function, function
from lc_triton.keras.saved.arguments import Arguments, Count, Counts, Place, Rate, WindowArguments, spread
from lc_triton.keras.saved.slots import Slot, convolution_slots, inside, same_layout
from lc_triton.keras.saved.training import Trained

Tensors = tuple[Tensor, ...]

_CONVOLUTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


class ConvLSTM(Trained):
    """An LSTM of images. Source: Shi et al., 2015, without its peepholes; `keras.layers.ConvLSTM2D`.

    Weights are torch's: `weight_ih` `(4 * filters, channels, *kernel)` of the inputs, whose padding, stride and
    dilation are the layer's, and `weight_hh` `(4 * filters, filters, *kernel)` of the states, padded to their size.
    """

    takes_mask = True
    time_major = False

    def __init__(
        self,
        channels: int,
        filters: int,
        kernel: tuple[int, ...],
        activation: Function | None,
        recurrent_activation: Function | None,
        *,
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
        padding: str,
        channels_first: bool,
        bias: bool,
        sequences: bool,
        state: bool,
        backwards: bool,
        dropout: float,
        recurrent_dropout: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.filters, self.kernel, self.stride, self.dilation, self.padding = filters, kernel, stride, dilation, padding
        self.activation, self.recurrent_activation = activation, recurrent_activation
        self.channels_first, self.sequences, self.state, self.backwards = channels_first, sequences, state, backwards
        self.dropout, self.recurrent_dropout = dropout, recurrent_dropout
        self.weight_ih = nn.Parameter(torch.empty(4 * filters, channels, *kernel, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(4 * filters, filters, *kernel, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(4 * filters, dtype=dtype)) if bias else None

    def slots(self) -> list[Slot]:
        """See the base."""
        kernel, recurrent = (
            replace(convolution_slots(self, getattr(self, at), 1, depthwise=False)[0], name=name, attribute=at)
            for name, at in (("kernel", "weight_ih"), ("recurrent_kernel", "weight_hh"))
        )
        return inside("cell", [kernel, recurrent, *same_layout("bias", self, "bias")])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | Tensors:
        """The outputs for sequences of images x `(batch, steps, *spatial, channels)`, or channels before spatial.

        Returns:
            The last step's output or, with `sequences`, every step's; then the last states, with `state`.
        """
        if mask is not None:
            raise ValueError("its input has a mask, and images that are left out have no counterpart here")
        x = x if self.channels_first else x.movedim(-1, 2)
        x = x.flip(1) if self.backwards else x
        z = self._convolved(self._dropped(x, 4, self.dropout), self.weight_ih, self.bias, self.padding)
        h = c = z.new_zeros(z.shape[0], self.filters, *z.shape[3:])
        kept = self._dropped(torch.ones_like(h)[:, None], 4, self.recurrent_dropout)
        found: list[Tensor] = []
        for step in z.unbind(1):
            recurrent = self._convolved([h[:, None] * k for k in kept], self.weight_hh, None, "same")[:, 0]
            i, f, g, o = (step + recurrent).chunk(4, 1)
            i, f, o = (_apply(self.recurrent_activation, gate) for gate in (i, f, o))
            c = f * c + i * _apply(self.activation, g)
            h = o * _apply(self.activation, c)
            found.append(h)
        y = torch.stack(found, 1) if self.sequences else h
        if not self.channels_first:
            y, h, c = y.movedim(2 if self.sequences else 1, -1), h.movedim(1, -1), c.movedim(1, -1)
        y = self.observed(y)
        return (y, h, c) if self.state else y

    def _dropped(self, x: Tensor, gates: int, rate: float) -> list[Tensor]:
        """x for each gate: in training, sites drop out at all steps, others for each gate."""
        if not self.training or not rate:
            return [x]
        return [x * F.dropout(torch.ones_like(x[:, :1]), rate) for _ in range(gates)]

    def _convolved(self, x: list[Tensor], weight: Tensor, bias: Tensor | None, padding: str) -> Tensor:
        """What images `(batch, steps, channels, *spatial)` give all gates, each its own x if there are several."""
        own = weight is self.weight_ih
        one = (1,) * len(self.kernel)
        stride, dilation = (self.stride, self.dilation) if own else (one, one)
        pairs = padding_pairs(padding, tuple(x[0].shape[3:]), self.kernel, stride, dilation)
        sides = [side for pair in reversed(pairs) for side in pair]
        biases = [None] * len(x) if bias is None else bias.chunk(len(x))
        convolve = _CONVOLUTIONS[len(self.kernel)]
        found = [
            convolve(F.pad(part.flatten(0, 1), sides), w, b, stride, 0, dilation)
            for part, w, b in zip(x, weight.chunk(len(x)), biases, strict=True)
        ]
        y: Tensor = torch.cat(found, 1).unflatten(0, x[0].shape[:2])
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        shape = tuple(self.weight_ih.shape)
        return f"{shape}, stride={self.stride}, padding={self.padding!r}, sequences={self.sequences}"


def _apply(function: Function | None, x: Tensor) -> Tensor:
    return x if function is None else function(x)


class ConvLSTMArguments(WindowArguments):
    """`ConvLSTM1D`, `ConvLSTM2D` and `ConvLSTM3D`."""

    filters: Count
    kernel_size: Counts
    strides: Counts = (1,)
    dilation_rate: Counts = (1,)
    activation: Any = "tanh"
    recurrent_activation: Any = "hard_sigmoid"
    use_bias: StrictBool = True
    return_sequences: StrictBool = False
    return_state: StrictBool = False
    go_backwards: StrictBool = False
    dropout: Rate = 0.0
    recurrent_dropout: Rate = 0.0
    # What changes no number: how the loop is made, and how a bias is drawn.
    unroll: StrictBool = False
    unit_forget_bias: StrictBool = True

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        ndim, shape = place.ndim, place.shape
        if len(shape) != ndim + 2:
            raise ValueError(f"it takes inputs with {ndim + 2} axes beside the batch, and is given shape {shape}")
        if self.padding not in ("valid", "same"):
            raise ValueError(f"its padding {self.padding[:80]!r} is none of valid, same")
        return ConvLSTM(
            shape[1] if self.channels_first else shape[-1],
            self.filters,
            spread("kernel_size", self.kernel_size, ndim),
            function(self.activation, place.keras),
            function(self.recurrent_activation, place.keras),
            stride=spread("strides", self.strides, ndim),
            dilation=spread("dilation_rate", self.dilation_rate, ndim),
            padding=self.padding,
            channels_first=self.channels_first,
            bias=self.use_bias,
            sequences=self.return_sequences,
            state=self.return_state,
            backwards=self.go_backwards,
            dropout=float(self.dropout),
            recurrent_dropout=float(self.recurrent_dropout),
            dtype=self.variable_dtype,
        )


CLASSES: dict[str, type[Arguments]] = {f"ConvLSTM{ndim}D": ConvLSTMArguments for ndim in (1, 2, 3)}
