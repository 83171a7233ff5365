"""Layers in front of a network: fixed scales, and random changes of images, which training here does not make."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import StrictBool
from torch import Tensor, nn

from lc_triton.errors import ConversionError
from lc_triton.keras.saved.arguments import Arguments, Axes, Place, positive_axis
from lc_triton.keras.saved.resizing import Resizing
from lc_triton.keras.saved.slots import Slot, same_layout
from lc_triton.keras.saved.training import Trained

# Below this, Keras divides by it: its `backend.epsilon()`.
LEAST_DEVIATION = 1e-7

Numbers = float | list[Any]


class Rescaling(nn.Module):
    """`x * scale + offset`, each one number or one a channel."""

    def __init__(self, scale: Numbers, offset: Numbers) -> None:
        super().__init__()
        self.both = scale, offset

    def forward(self, x: Tensor) -> Tensor:
        """The scaled batch x."""
        # TensorFlow makes float32 of these first, for float64 too.
        scale, offset = (torch.tensor(n, dtype=torch.float32, device=x.device).to(x.dtype) for n in self.both)
        return x * scale + offset

    def extra_repr(self) -> str:
        """The arguments."""
        return "scale={}, offset={}".format(*self.both)


class Normalization(Trained):
    """`(x - mean) / deviation` along the axes that are kept, with statistics that a file holds; or its inverse."""

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...], kept: tuple[int, ...], *, invert: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.invert = shape, invert
        sizes = tuple(shape[axis - 1] for axis in kept)
        self.register_buffer("mean", torch.zeros(sizes, dtype=dtype))
        self.register_buffer("variance", torch.ones(sizes, dtype=dtype))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def slots(self) -> list[Slot]:
        """See the base."""
        return [slot for name in ("mean", "variance", "count") for slot in same_layout(name, self, name, trained=False)]

    def forward(self, x: Tensor) -> Tensor:
        """The normalized batch x."""
        return standardized(x, self.mean.reshape(self.shape), self.variance.reshape(self.shape), invert=self.invert)


class FixedNormalization(nn.Module):
    """`(x - mean) / deviation`, or its inverse, with statistics that are arguments."""

    def __init__(self, mean: Numbers, variance: Numbers, shape: tuple[int, ...], *, invert: bool) -> None:
        super().__init__()
        self.mean, self.variance, self.shape, self.invert = mean, variance, shape, invert

    def forward(self, x: Tensor) -> Tensor:
        """The normalized batch x."""
        mean, variance = (_tensor(numbers, x) for numbers in (self.mean, self.variance))
        if mean.ndim:
            mean, variance = mean.reshape(self.shape), variance.reshape(self.shape)
        return standardized(x, mean, variance, invert=self.invert)


def standardized(x: Tensor, mean: Tensor, variance: Tensor, *, invert: bool) -> Tensor:
    """x with mean 0 and variance 1 where it had these."""
    deviation = variance.sqrt().clamp(min=LEAST_DEVIATION)
    return mean + x * deviation if invert else (x - mean) / deviation


class Augmentation(nn.Module):
    """A random change of images in Keras's training: nothing in eval mode, and nothing that can be trained with."""

    def __init__(self, class_name: str, name: str, afterwards: nn.Module) -> None:
        super().__init__()
        self.class_name, self.name, self.afterwards = class_name, name, afterwards

    def forward(self, x: Tensor) -> Tensor:
        """The batch x; an error in training."""
        if self.training:
            reason = (
                "it changes images at random in training, which is not done here: change them where they are loaded "
                "(torchvision.transforms), and keep this layer in eval mode or replace it (nn.Identity)"
            )
            raise ConversionError(name=f"layer {self.name!r} ({self.class_name})", reason=reason)
        y: Tensor = self.afterwards(x)
        return y

    def extra_repr(self) -> str:
        """The class."""
        return self.class_name


def _tensor(numbers: Numbers, x: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=x.dtype, device=x.device)


def _numbers(name: str, value: Any, size: int | None) -> Numbers:
    """A number, or nested lists of numbers, `size` in all."""
    try:
        tensor = torch.tensor(value, dtype=torch.float64, device="cpu")  # layers are made on the meta device
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"its {name} {str(value)[:80]} is no number and no list of numbers") from error
    if not tensor.isfinite().all() or (tensor.ndim and size is not None and tensor.numel() not in (1, size)):
        raise ValueError(f"its {name} {str(value)[:80]} is neither a finite number nor a list of {size}")
    found: Numbers = tensor.item() if tensor.numel() == 1 else tensor.tolist()
    return found


class RescalingArguments(Arguments):
    """`Rescaling`."""

    scale: Any
    offset: Any = 0.0

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return Rescaling(_numbers("scale", self.scale, None), _numbers("offset", self.offset, None))


class NormalizationArguments(Arguments):
    """`Normalization`."""

    axis: Axes | None = (-1,)
    mean: Any = None
    variance: Any = None
    invert: StrictBool = False

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        kept = tuple(sorted({positive_axis(axis, len(place.shape) + 1) for axis in self.axis or ()}))
        shape = tuple(size if axis in kept else 1 for axis, size in enumerate(place.shape, 1))
        if self.mean is None and self.variance is None:
            return Normalization(shape, kept, invert=self.invert, dtype=self.variable_dtype)
        size = math.prod(place.shape[axis - 1] for axis in kept)
        mean, variance = _numbers("mean", self.mean, size), _numbers("variance", self.variance, size)
        if isinstance(mean, list) != isinstance(variance, list):  # one of them is the same for all
            mean = mean if isinstance(mean, list) else [mean] * size
            variance = variance if isinstance(variance, list) else [variance] * size
        return FixedNormalization(mean, variance, shape, invert=self.invert)


class AugmentationArguments(Arguments):
    """`RandomFlip` and others, whose arguments matter in training only; `RandomCrop` crops to the middle afterwards."""

    height: Any = None
    width: Any = None

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if place.class_name != "RandomCrop":
            return Augmentation(place.class_name, self.name, nn.Identity())
        if type(self.height) is not int or type(self.width) is not int or min(self.height, self.width) < 1:
            raise ValueError(f"its size {str((self.height, self.width))[:80]} is no height and width")
        afterwards = Resizing((self.height, self.width), "bilinear", crop=True, keep=False)
        return Augmentation(place.class_name, self.name, afterwards)

    def _knows(self, name: str) -> bool:
        return True


CLASSES: dict[str, type[Arguments]] = {
    "Rescaling": RescalingArguments,
    "Normalization": NormalizationArguments,
    **dict.fromkeys(
        (
            "RandomFlip",
            "RandomRotation",
            "RandomTranslation",
            "RandomZoom",
            "RandomContrast",
            "RandomBrightness",
            "RandomHeight",
            "RandomWidth",
            "RandomCrop",
        ),
        AugmentationArguments,
    ),
}
