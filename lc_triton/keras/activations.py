"""Keras's activations by name, with the constants of Keras 2, as activations of the operator or as functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lc_triton.core.activations import parse_activation
from lc_triton.core.names import ActivationArg
from lc_triton.errors import ArgumentTypeError, UnknownNameError


def softmax(y: Tensor) -> Tensor:
    """Softmax over the last axis in both data formats, as in Keras."""
    return torch.softmax(y, -1)


def log_softmax(y: Tensor) -> Tensor:
    """The logarithm of softmax over the last axis in both data formats."""
    return torch.log_softmax(y, -1)


ACTIVATIONS: dict[str, ActivationArg] = {
    "linear": None,
    "relu": "relu",
    "elu": "elu",
    "selu": "selu",
    "softplus": "softplus",
    "softsign": "softsign",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "hard_sigmoid": "hard_sigmoid",
    "exponential": "exponential",
    "softmax": softmax,
    "log_softmax": log_softmax,
    "swish": "silu",
    "silu": "silu",
    "gelu": "gelu",
    "mish": "mish",
    "leaky_relu": ("leaky_relu", 0.2),
    "relu6": "relu6",
}


def get(identifier: Any) -> ActivationArg:
    """The operator's activation for a Keras activation.

    Args:
        identifier: None, one of Keras 2's names, a (name, constant) pair as `lc_triton.local_conv` takes it, or a
            callable.

    Raises:
        LocalConvError: an unknown name, with the nearest one.

    Source: `tf_keras.activations`.

    Example:
        >>> get("leaky_relu")
        ('leaky_relu', 0.2)
    """
    if identifier is None:
        return None
    if isinstance(identifier, str):
        if identifier not in ACTIVATIONS:
            raise UnknownNameError.of("activation", identifier, ACTIVATIONS)
        return ACTIVATIONS[identifier]
    parse_activation(identifier)
    result: ActivationArg = identifier
    return result


def serialize(identifier: str | tuple[str, float | str] | Callable[[Tensor], Tensor] | None) -> Any:
    """The name or pair that goes into a configuration."""
    if identifier is None or isinstance(identifier, str):
        return identifier or "linear"
    if isinstance(identifier, (list, tuple)):
        return list(identifier)
    allowed = "a name or a pair to be written into a configuration"
    raise ArgumentTypeError(name="activation", value=identifier, allowed=allowed)
