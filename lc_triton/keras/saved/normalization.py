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
from lc_triton.keras.saved.masks import Mask
from lc_triton.keras.saved.slots import (
    Slot,
    batch_normalization_slots,
    layer_normalization_slots,
    reshaped,
    same_layout,
)
from lc_triton.keras.saved.training import Trained


class BatchNormalization(Trained):
    """Normalization of axes by the batch's statistics in training, by moving ones afterwards.

    Each place along the axes has statistics of its own: several axes count as one. `momentum` is torch's: the weight
    of a new batch in the moving statistics, one minus Keras's. `fused` is TensorFlow's kernel for images: it divides by
    one less than the count for the moving variance, as torch does, and knows no mask. Keras's own code for all else
    divides by the count.
    """

    takes_mask = True
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        axes: tuple[int, ...],
        *,
        eps: float,
        momentum: float,
        scale: bool,
        center: bool,
        frozen: bool,
        fused: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.axes, self.eps, self.momentum, self.frozen, self.fused = axes, eps, momentum, frozen, fused
        self.sizes = tuple(shape[axis - 1] for axis in axes)
        # With several axes, Keras's arrays have all axes of the batch, of size 1 where nothing is normalized.
        several = (1, *(size if axis in axes else 1 for axis, size in enumerate(shape, 1)))
        self.keras_shape = self.sizes if len(axes) == 1 else several
        size = math.prod(self.sizes)
        self.weight = nn.Parameter(torch.ones(size, dtype=dtype)) if scale else None
        self.bias = nn.Parameter(torch.zeros(size, dtype=dtype)) if center else None
        self.register_buffer("running_mean", torch.zeros(size, dtype=dtype))
        self.register_buffer("running_var", torch.ones(size, dtype=dtype))

    def slots(self) -> list[Slot]:
        """See the base."""
        return [reshaped(slot, self.keras_shape) for slot in batch_normalization_slots(self)]

    def forward(self, x: Tensor, mask: Mask = None) -> Tensor:
        """The normalized batch x; in training, steps that a mask leaves out do not count."""
        learning = self.training and not self.frozen  # in Keras a frozen layer keeps its statistics in training too
        numbers = self._channels_last(x)
        if learning and not self.fused:
            kept = None if mask is None else self._channels_last(mask.unsqueeze(-1).expand_as(x))
            y = self.by_batch(numbers, kept)
        else:
            y = self._by_torch(numbers, self.running_mean, self.running_var, learning=learning, momentum=self.momentum)
        n = len(self.axes)
        return self.observed(y.unflatten(-1, self.sizes).movedim(tuple(range(-n, 0)), self.axes))

    def by_batch(self, x: Tensor, kept: Mask) -> Tensor:
        """A batch x `(batch, ..., channels)` normalized by its own statistics, towards which the moving ones go."""
        mean, variance = self.moments(x, kept)
        self.running_mean.lerp_(mean.detach(), self.momentum)
        self.running_var.lerp_(variance.detach(), self.momentum)
        if kept is None:
            return self._by_torch(x, None, None, learning=True, momentum=0.0)
        return self.scaled((x - mean) * (variance + self.eps).rsqrt()).to(x.dtype)

    def moments(self, x: Tensor, kept: Mask) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel of a batch x `(batch, ..., channels)`, of the numbers that are kept."""
        numbers, over = x.to(self.running_mean.dtype), tuple(range(x.ndim - 1))
        if kept is None:
            variance, mean = torch.var_mean(numbers, over, correction=0)
            return mean, variance
        counts = kept.to(numbers.dtype)
        count = counts.sum(over)
        mean = (numbers * counts).sum(over) / count
        return mean, ((numbers - mean).square() * counts).sum(over) / count

    def scaled(self, y: Tensor) -> Tensor:
        """Normalized numbers y `(batch, ..., channels)` with the layer's own scale and offset."""
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias

    def _by_torch(
        self, x: Tensor, mean: Tensor | None, variance: Tensor | None, *, learning: bool, momentum: float
    ) -> Tensor:
        x = x.movedim(-1, 1)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, learning, momentum, self.eps).movedim(1, -1)

    def _channels_last(self, x: Tensor) -> Tensor:
        n = len(self.axes)
        return x.movedim(self.axes, tuple(range(-n, 0))).flatten(-n)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.sizes}, axes={self.axes}, eps={self.eps}, momentum={self.momentum}"


class BatchRenormalization(BatchNormalization):
    """Keras's batch normalization with `renorm=True`: in training, what the batch's statistics give is brought near to
    what moving ones would give, by `r` and `d`, which no gradient passes.

    Source: Ioffe, "Batch Renormalization", 2017; `keras.layers.BatchNormalization`.
    """

    running_stddev: Tensor
    renorm_mean: Tensor
    renorm_stddev: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        axes: tuple[int, ...],
        *,
        clipping: Mapping[str, float],
        renorm_momentum: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(shape, axes, **kwargs)
        self.clipping, self.renorm_momentum = dict(clipping), renorm_momentum
        for name, value in (("running_stddev", 1.0), ("renorm_mean", 0.0), ("renorm_stddev", 1.0)):
            self.register_buffer(name, torch.full_like(self.running_mean, value))

    def slots(self) -> list[Slot]:
        """See the base."""
        kept = {"moving_stddev": "running_stddev", "renorm_mean": "renorm_mean", "renorm_stddev": "renorm_stddev"}
        moving = [slot for name, at in kept.items() for slot in same_layout(name, self, at, trained=False)]
        return super().slots() + [reshaped(slot, self.keras_shape) for slot in moving]

    def by_batch(self, x: Tensor, kept: Mask) -> Tensor:
        """See the base."""
        mean, variance = self.moments(x, kept)
        normalized = (x.to(mean.dtype) - mean) * (variance + self.eps).rsqrt()
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
        return self.scaled(normalized * r + d).to(x.dtype)


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

    call_arguments = frozenset({"mask"})

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
        ndim = len(place.shape) + 1
        axes = tuple(sorted({positive_axis(axis, ndim) for axis in self.axis}))
        if not axes:
            raise ValueError("its axis names no axis")
        images = ndim in (4, 5) and axes in ((1,), (ndim - 1,)) and self.variable_dtype != torch.float64
        # Keras 3 has its own code for images too, and so has Keras 2 for batches that several devices share.
        images = images and place.keras < 3 and place.class_name != "SyncBatchNormalization"
        kind: Callable[..., nn.Module] = BatchNormalization
        if self.renorm:
            bounds = (self.renorm_clipping or {}).items()
            clipping: dict[str, float] = {name: float(bound) for name, bound in bounds if bound is not None}
            momentum = 1 - float(self.renorm_momentum)
            kind = partial(BatchRenormalization, clipping=clipping, renorm_momentum=momentum)
        return kind(
            place.shape,
            axes,
            eps=float(self.epsilon),
            momentum=1 - float(self.momentum),
            scale=self.scale,
            center=self.center,
            frozen=not self.trainable,
            fused=images and not self.renorm,
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
        ("BatchNormalization", "BatchNormalizationV1", "BatchNormalizationV2", "SyncBatchNormalization"),
        BatchNormalizationArguments,
    ),
    "LayerNormalization": LayerNormalizationArguments,
}
