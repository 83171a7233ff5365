"""Activations: as an argument of other layers, and as layers of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from torch import Tensor, nn

from lc_triton.core.activations import Activation, parse_activation
from lc_triton.core.names import ActivationArg
from lc_triton.errors import UnknownNameError
from lc_triton.keras import activations
from lc_triton.keras.saved import elementwise
from lc_triton.keras.saved.arguments import Arguments, Axes, Number, Place, positive_axis
from lc_triton.keras.saved.slots import Slot, same_layout
from lc_triton.keras.saved.training import Trained

Function = Callable[[Tensor], Tensor]

# Names that mean something else in Keras 3 than in 2, or are new there.
KERAS_3: dict[str, ActivationArg] = {
    "hard_sigmoid": F.hardsigmoid,
    "hard_silu": F.hardswish,
    "hard_swish": F.hardswish,
    "log_sigmoid": F.logsigmoid,
}


def argument(identifier: Any, keras: int) -> ActivationArg:
    """What a locally connected layer is given for the `activation` of a configuration."""
    name = identifier
    if isinstance(name, dict) and name.get("class_name") == "function":
        name = name.get("config")
    if isinstance(name, dict) and name.get("class_name") in CLASSES:
        return _of_layer(name["class_name"], name.get("config"), keras)
    if name is None:
        return None
    if not isinstance(name, str):
        raise ValueError(f"its activation {str(identifier)[:80]} is no named function")
    if keras >= 3 and name in KERAS_3:
        return KERAS_3[name]
    if keras < 3 and name == "leaky_relu":
        return "leaky_relu", _slope(0.2, keras)
    if keras < 3 and name == "identity":
        return None
    if keras < 3 and name in elementwise.ACTIVATIONS:
        return elementwise.ACTIVATIONS[name]
    try:
        activations.get(name)
    except UnknownNameError as error:
        raise ValueError(str(error)) from None
    return cast(ActivationArg, name)


def _of_layer(class_name: str, config: Any, keras: int) -> ActivationArg:
    """What a layer without weights computes, such as a LeakyReLU, given as the activation of another."""
    if class_name == "PReLU":
        raise ValueError("its activation PReLU has weights of its own, which can be read in a layer of its own only")
    try:
        layer = CLASSES[class_name].model_validate({"name": class_name, **(config if isinstance(config, dict) else {})})
    except ValidationError as error:
        raise ValueError(f"its activation {class_name}: {error.errors()[0]['msg']}") from None
    module = layer.module(Place(class_name, (), keras))
    if isinstance(module, nn.LeakyReLU):
        return "leaky_relu", module.negative_slope
    if isinstance(module, nn.ELU):
        return "elu", module.alpha
    return None if isinstance(module, nn.Identity) else module


def gelu(x: Tensor) -> Tensor:
    """Keras 2's gelu, whose square root of 1/2 is rounded to float32 for float64 too."""
    if x.dtype != torch.float64:
        return F.gelu(x)
    return 0.5 * x * (1 + torch.erf(x * _slope(math.sqrt(0.5), 2)))


def _slope(slope: float, keras: int) -> float:
    """A slope as TensorFlow's leaky_relu takes it: in float32, for float64 too."""
    return torch.tensor(slope, dtype=torch.float32, device="cpu").item() if keras < 3 else slope


def function(identifier: Any, keras: int) -> Function | None:
    """The function of tensors that the `activation` of a configuration names; None for the identity."""
    found = parse_activation(activations.get(argument(identifier, keras)))
    if isinstance(found, Activation):
        if found.name == "gelu" and keras < 3:
            return gelu
        return None if found.name == "linear" else found
    assert not isinstance(found, str)  # Keras's softmax is a function here, over the last axis
    return found


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The function of x."""
        return self.function(x)

    def extra_repr(self) -> str:
        """The function."""
        return getattr(self.function, "__name__", repr(self.function))


class Rectify(nn.Module):
    """Keras's general ReLU: `slope * (x - threshold)` below a threshold, x above, at most a ceiling."""

    def __init__(self, slope: float, threshold: float, ceiling: float | None) -> None:
        super().__init__()
        self.slope, self.threshold, self.ceiling = slope, threshold, ceiling

    def forward(self, x: Tensor) -> Tensor:
        """The rectified x."""
        below = self.slope * (x - self.threshold) if self.slope else torch.zeros_like(x)
        y = torch.where(x < self.threshold, below, x)
        return y if self.ceiling is None else y.clamp(max=self.ceiling)

    def extra_repr(self) -> str:
        """The constants."""
        return f"slope={self.slope}, threshold={self.threshold}, ceiling={self.ceiling}"


class Softmax(nn.Module):
    """Softmax over one axis, or over several at once, of what a mask leaves."""

    takes_mask = True

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The softmax of x; the mask has its shape, or one that is broadcast to it."""
        if mask is not None:
            large = torch.finfo(x.dtype).min if x.dtype == torch.float16 else -1e9
            x = x + (~mask).to(x.dtype) * large
        if len(self.axes) == 1:
            return x.softmax(self.axes[0])
        return (x - x.logsumexp(self.axes, keepdim=True)).exp()

    def extra_repr(self) -> str:
        """The axes."""
        return f"axes={self.axes}"


class PReLU(Trained):
    """ReLU whose negative slopes are learned, one a site and channel but for shared axes."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape, dtype=dtype))

    def slots(self) -> list[Slot]:
        """See the base."""
        return same_layout("alpha", self, "weight")

    def forward(self, x: Tensor) -> Tensor:
        """The activated x."""
        return self.observed(torch.where(x > 0, x, self.weight * x))


class ActivationArguments(Arguments):
    """`Activation`."""

    activation: Any

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        found = function(self.activation, place.keras)
        return nn.Identity() if found is None else Apply(found)


class ReLUArguments(Arguments):
    """`ReLU`."""

    max_value: Number | None = None
    negative_slope: Number = 0.0
    threshold: Number = 0.0

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        slope = float(self.negative_slope)
        if not self.threshold and self.max_value is None:
            slope = _slope(slope, place.keras)
        return Rectify(slope, float(self.threshold), self.max_value)


class LeakyReLUArguments(Arguments):
    """`LeakyReLU`; its slope is `alpha` in Keras 2 and `negative_slope` in 3."""

    alpha: Number | None = None
    negative_slope: Number | None = None

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        slope = self.alpha if self.negative_slope is None else self.negative_slope
        return nn.LeakyReLU(_slope(0.3 if slope is None else float(slope), place.keras))


class PReLUArguments(Arguments):
    """`PReLU`."""

    shared_axes: Axes | None = Field(default=None)

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        sizes = list(place.shape)
        for axis in self.shared_axes or ():
            sizes[positive_axis(axis, len(sizes) + 1, "shared_axes") - 1] = 1
        return PReLU(tuple(sizes), self.variable_dtype)


class ELUArguments(Arguments):
    """`ELU`."""

    alpha: Number = 1.0

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return nn.ELU(float(self.alpha))


class ThresholdedReLUArguments(Arguments):
    """`ThresholdedReLU`."""

    theta: Number = 1.0

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return nn.Threshold(float(self.theta), 0.0)


class SoftmaxArguments(Arguments):
    """`Softmax`."""

    call_arguments = frozenset({"mask"})

    axis: Axes = (-1,)

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        # As the activation of another layer, it stands nowhere; its axes are checked when it is called.
        axes = {positive_axis(axis, len(place.shape) + 1) for axis in self.axis} if place.shapes else set(self.axis)
        return Softmax(tuple(sorted(axes)))


CLASSES: dict[str, type[Arguments]] = {
    "Activation": ActivationArguments,
    "ReLU": ReLUArguments,
    "LeakyReLU": LeakyReLUArguments,
    "PReLU": PReLUArguments,
    "ELU": ELUArguments,
    "ThresholdedReLU": ThresholdedReLUArguments,
    "Softmax": SoftmaxArguments,
}
