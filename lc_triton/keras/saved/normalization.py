"""Batch and layer normalization over the axes that Keras names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import StrictBool
from torch import Tensor, nn

from lc_triton.keras.saved.arguments import Arguments, Axes, Number, Place, positive_axis
from lc_triton.keras.saved.slots import Slot, batch_normalization_slots, layer_normalization_slots, same_layout
from lc_triton.keras.saved.training import Trained


class BatchNormalization(Trained):
    """Normalization of one axis by the batch's statistics in training, by moving ones afterwards.

    `momentum` is torch's: the weight of a new batch in the moving statistics, one minus Keras's.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        size: int,
        axis: int,
        *,
        eps: float,
        momentum: float,
        scale: bool,
        center: bool,
        frozen: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.axis, self.eps, self.momentum, self.frozen = axis, eps, momentum, frozen
        self.weight = nn.Parameter(torch.ones(size, dtype=dtype)) if scale else None
        self.bias = nn.Parameter(torch.zeros(size, dtype=dtype)) if center else None
        self.register_buffer("running_mean", torch.zeros(size, dtype=dtype))
        self.register_buffer("running_var", torch.ones(size, dtype=dtype))

    def slots(self) -> list[Slot]:
        """See the base."""
        return batch_normalization_slots(self)

    def forward(self, x: Tensor) -> Tensor:
        """The normalized batch x."""
        axis, x = self.axis, x.movedim(self.axis, 1)
        learning = self.training and not self.frozen  # in Keras a frozen layer keeps its statistics in training too
        # TensorFlow's kernel for images divides by one less than the count for the moving variance, as torch does.
        # Keras's own code for all else divides by the count.
        fused = x.ndim in (4, 5) and axis in (1, x.ndim - 1) and self.running_var.dtype != torch.float64
        if learning and not fused:
            y = F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
            self._move(x.detach())
        else:
            y = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, learning, self.momentum, self.eps
            )
        return self.observed(y.movedim(1, axis))

    def _move(self, x: Tensor) -> None:
        """Move the statistics towards those of a batch x, whose channels are its second axis."""
        numbers = x.to(self.running_mean.dtype)
        variance, mean = torch.var_mean(numbers, [axis for axis in range(x.ndim) if axis != 1], correction=0)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.running_mean.numel()}, axis={self.axis}, eps={self.eps}, momentum={self.momentum}"


class BatchRenormalization(BatchNormalization):
    """Keras's batch normalization with `renorm=True`: in training, what the batch's statistics give is brought near to
    what moving ones would give, by `r` and `d`, which no gradient passes.

    Source: Ioffe, "Batch Renormalization", 2017; `keras.layers.BatchNormalization`.
    """

    running_stddev: Tensor
    renorm_mean: Tensor
    renorm_stddev: Tensor

    def __init__(
        self, size: int, axis: int, *, clipping: Mapping[str, float], renorm_momentum: float, **kwargs: Any
    ) -> None:
        super().__init__(size, axis, **kwargs)
        self.clipping, self.renorm_momentum = dict(clipping), renorm_momentum
        for name, value in (("running_stddev", 1.0), ("renorm_mean", 0.0), ("renorm_stddev", 1.0)):
            self.register_buffer(name, torch.full_like(self.running_mean, value))

    def slots(self) -> list[Slot]:
        """See the base."""
        kept = {"moving_stddev": "running_stddev", "renorm_mean": "renorm_mean", "renorm_stddev": "renorm_stddev"}
        moving = [slot for name, at in kept.items() for slot in same_layout(name, self, at, trained=False)]
        return super().slots() + moving

    def forward(self, x: Tensor) -> Tensor:
        """The normalized batch x."""
        if not self.training or self.frozen:
            return super().forward(x)
        x = x.movedim(self.axis, -1)
        numbers = x.to(self.running_mean.dtype)
        variance, mean = torch.var_mean(numbers, tuple(range(x.ndim - 1)), correction=0)
        normalized = (numbers - mean) * (variance + self.eps).rsqrt()
        with torch.no_grad():
            stddev = (variance + self.eps).sqrt()
            least = self.renorm_stddev.clamp(min=self.eps**0.5)
            r = (stddev / least).clamp(self.clipping.get("rmin"), self.clipping.get("rmax", math.inf))
            most = self.clipping.get("dmax", math.inf)
            d = ((mean - self.renorm_mean) / least).clamp(-most, most)
            self.renorm_mean.lerp_(mean, self.renorm_momentum)
            self.renorm_stddev.lerp_(stddev, self.renorm_momentum)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_stddev.lerp_(stddev, self.momentum)
            self.running_var.copy_((self.running_stddev.square() - self.eps).clamp(min=0))
        y = normalized * r + d
        y = y if self.weight is None else y * self.weight
        y = y if self.bias is None else y + self.bias
        return self.observed(y.to(x.dtype).movedim(-1, self.axis))


class LayerNormalization(Trained):
    """Normalization of each sample over some axes."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        axes: tuple[int, ...],
        *,
        eps: float,
        scale: bool,
        center: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.sizes, self.axes, self.eps = sizes, axes, eps
        self.weight = nn.Parameter(torch.ones(sizes, dtype=dtype)) if scale else None
        self.bias = nn.Parameter(torch.zeros(sizes, dtype=dtype)) if center else None

    def slots(self) -> list[Slot]:
        """See the base."""
        return layer_normalization_slots(self)

    def forward(self, x: Tensor) -> Tensor:
        """The normalized batch x."""
        last = tuple(range(-len(self.axes), 0))
        y = F.layer_norm(x.movedim(self.axes, last), self.sizes, self.weight, self.bias, self.eps)
        return self.observed(y.movedim(last, self.axes))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.sizes}, axes={self.axes}, eps={self.eps}"


class BatchNormalizationArguments(Arguments):
    """`BatchNormalization`."""

    axis: Axes = (-1,)
    momentum: Number = 0.99
    epsilon: Number = 1e-3
    center: StrictBool = True
    scale: StrictBool = True
    # Keras 3 writes these always; they matter where `renorm` is true.
    renorm: StrictBool = False
    renorm_clipping: dict[Literal["rmin", "rmax", "dmax"], Number | None] | None = None
    renorm_momentum: Number = 0.99

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if len(self.axis) != 1:
            raise ValueError(f"it normalizes {len(self.axis)} axes, where torch's normalizes one")
        axis = positive_axis(self.axis[0], len(place.shape) + 1)
        kind: Callable[..., nn.Module] = BatchNormalization
        if self.renorm:
            bounds = (self.renorm_clipping or {}).items()
            clipping: dict[str, float] = {name: float(bound) for name, bound in bounds if bound is not None}
            momentum = 1 - float(self.renorm_momentum)
            kind = partial(BatchRenormalization, clipping=clipping, renorm_momentum=momentum)
        return kind(
            place.shape[axis - 1],
            axis,
            eps=float(self.epsilon),
            momentum=1 - float(self.momentum),
            scale=self.scale,
            center=self.center,
            frozen=not self.trainable,
            dtype=torch.promote_types(self.variable_dtype, torch.float32),  # Keras keeps no statistics in 16 bits
        )


class LayerNormalizationArguments(Arguments):
    """`LayerNormalization`."""

    axis: Axes = (-1,)
    epsilon: Number = 1e-3
    center: StrictBool = True
    scale: StrictBool = True

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        axes = tuple(sorted({positive_axis(axis, len(place.shape) + 1) for axis in self.axis}))
        return LayerNormalization(
            tuple(place.shape[axis - 1] for axis in axes),
            axes,
            eps=float(self.epsilon),
            scale=self.scale,
            center=self.center,
            dtype=self.variable_dtype,
        )


CLASSES: dict[str, type[Arguments]] = {
    # The names of TensorFlow 1 and 2 for the two kinds of it, which compute the same.
    **dict.fromkeys(
        ("BatchNormalization", "BatchNormalizationV1", "BatchNormalizationV2"), BatchNormalizationArguments
    ),
    "LayerNormalization": LayerNormalizationArguments,
}
