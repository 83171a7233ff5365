"""A layer whose activation has weights of its own: a PReLU given as `activation=`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lc_triton.keras.saved.activation import PReLUArguments
from lc_triton.keras.saved.arguments import Arguments, Place, Shape
from lc_triton.keras.saved.training import Trained, asked


class Activated(nn.Module):
    """A layer, and then an activation with weights."""

    def __init__(self, layer: nn.Module, activation: Trained) -> None:
        super().__init__()
        self.layer, self.activation = layer, activation

    def forward(self, *inputs: Tensor) -> Tensor:
        """The activated output."""
        y: Tensor = self.activation(self.layer(*inputs))
        return y


def split(arguments: Arguments) -> tuple[Arguments, dict[str, Any] | None]:
    """The arguments of a layer without its activation, and that activation's configuration, if it has weights."""
    found = _activation(arguments)
    if found is None:
        return arguments, None
    given = {**arguments.model_dump(), "activation": None}
    if given.get("activity_regularizer") is not None:
        raise ValueError("its activity_regularizer is for what its PReLU makes, and can be read of a layer without one")
    return type(arguments).model_validate(given), found


def activation(config: dict[str, Any], shape: Shape) -> Trained:
    """The activation of a configuration, for outputs of a shape."""
    arguments = PReLUArguments.model_validate({"name": "activation", **config})
    made = arguments.module(Place("PReLU", (shape,)))
    assert isinstance(made, Trained)
    made.asks, unread = asked(config)
    if unread:
        raise ValueError("; ".join(unread))
    return made


def has_weights(arguments: Arguments) -> bool:
    """Whether a layer's activation has weights of its own."""
    return _activation(arguments) is not None


def _activation(arguments: Arguments) -> dict[str, Any] | None:
    value = getattr(arguments, "activation", None)
    if isinstance(value, dict) and value.get("class_name") == "PReLU" and isinstance(value.get("config"), dict):
        config: dict[str, Any] = value["config"]
        return config
    return None
