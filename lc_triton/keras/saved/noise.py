"""Layers that drop numbers or add noise in training, and do nothing afterwards."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lc_triton.keras import regularizers
from lc_triton.keras.saved.arguments import Arguments, Count, DataFormat, Number, Place, Rate
from lc_triton.keras.saved.slots import Slot
from lc_triton.keras.saved.training import Trained


class SharedDropout(nn.Module):
    """Dropout whose draws are shared along the axes that have size 1 in `shape`; None is the input's own size."""

    def __init__(self, rate: float, shape: tuple[int | None, ...]) -> None:
        super().__init__()
        self.rate, self.shape = rate, shape

    def forward(self, x: Tensor) -> Tensor:
        """The batch x with numbers dropped."""
        if not self.training:
            return x
        sizes = [own if size is None else size for size, own in zip(self.shape, x.shape, strict=True)]
        return x * F.dropout(x.new_ones(sizes), self.rate)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.rate}, shape={self.shape}"


class GaussianNoise(nn.Module):
    """Normal noise is added in training."""

    def __init__(self, stddev: float) -> None:
        super().__init__()
        self.stddev = stddev

    def forward(self, x: Tensor) -> Tensor:
        """The batch x with noise."""
        return x + self.stddev * torch.randn_like(x) if self.training else x

    def extra_repr(self) -> str:
        """The standard deviation."""
        return str(self.stddev)


class GaussianDropout(nn.Module):
    """Numbers are multiplied by normal ones of mean 1 in training, whose variance is a dropout's of the same rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """The batch x with noise."""
        if not self.training or not 0 < self.rate < 1:
            return x
        stddev: float = (self.rate / (1 - self.rate)) ** 0.5
        return x * (1 + stddev * torch.randn_like(x))

    def extra_repr(self) -> str:
        """The rate."""
        return str(self.rate)


class ActivityRegularization(Trained):
    """Numbers pass unchanged, and are penalised."""

    def __init__(self, l1: float, l2: float) -> None:
        super().__init__()
        self.penalty = regularizers.L1L2(l1, l2)

    def slots(self) -> list[Slot]:
        """See the base."""
        return []

    def forward(self, x: Tensor) -> Tensor:
        """The batch x."""
        self._activity = regularizers.activity_penalty(self.penalty, x)
        return x


class DropoutArguments(Arguments):
    """`Dropout`."""

    rate: Rate
    noise_shape: tuple[Count | None, ...] | None = None

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if self.noise_shape is None:
            return nn.Dropout(float(self.rate))
        sizes = (None, *place.shape)
        if len(self.noise_shape) != len(sizes) or any(
            size not in (1, None, own) for size, own in zip(self.noise_shape[1:], place.shape, strict=True)
        ):
            raise ValueError(f"noise_shape={self.noise_shape} has no size, 1 or None for each axis of {sizes}")
        return SharedDropout(float(self.rate), (self.noise_shape[0], *self.noise_shape[1:]))


class SpatialDropoutArguments(Arguments):
    """`SpatialDropout1D`, `SpatialDropout2D` and `SpatialDropout3D`: whole channels are dropped."""

    rate: Rate
    data_format: DataFormat = "channels_last"

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        place.spatial(self.data_format)
        sites = (1,) * place.ndim
        shape = (None, None, *sites) if self.data_format == "channels_first" else (None, *sites, None)
        return SharedDropout(float(self.rate), shape)


class AlphaDropoutArguments(Arguments):
    """`AlphaDropout`."""

    rate: Rate

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return nn.AlphaDropout(float(self.rate))


class GaussianDropoutArguments(Arguments):
    """`GaussianDropout`."""

    rate: Rate

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return GaussianDropout(float(self.rate))


class GaussianNoiseArguments(Arguments):
    """`GaussianNoise`."""

    stddev: Annotated[Number, Field(ge=0)]

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return GaussianNoise(float(self.stddev))


class ActivityRegularizationArguments(Arguments):
    """`ActivityRegularization`."""

    l1: Annotated[Number, Field(ge=0)] = 0.0
    l2: Annotated[Number, Field(ge=0)] = 0.0

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return ActivityRegularization(float(self.l1), float(self.l2))


CLASSES: dict[str, type[Arguments]] = {
    "Dropout": DropoutArguments,
    **{f"SpatialDropout{ndim}D": SpatialDropoutArguments for ndim in (1, 2, 3)},
    "AlphaDropout": AlphaDropoutArguments,
    "GaussianDropout": GaussianDropoutArguments,
    "GaussianNoise": GaussianNoiseArguments,
    "ActivityRegularization": ActivityRegularizationArguments,
}
