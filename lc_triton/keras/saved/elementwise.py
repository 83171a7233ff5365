"""TensorFlow's functions of one tensor, number by number, as torch's: in a model's graph or as an activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def crelu(features: Tensor, axis: int = -1) -> Tensor:
    """The positive part and the negative one side by side."""
    return torch.cat([features.relu(), (-features).relu()], axis)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(torch, name)
        for name in (
            *("abs", "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "square", "sin", "cos", "tan", "tanh", "sigmoid"),
            *("sign", "floor", "ceil", "round", "erf", "erfc", "reciprocal", "sinh", "cosh", "atan", "asin", "acos"),
            *("asinh", "acosh", "atanh"),
        )
    },
    "negative": torch.neg,
    "log_sigmoid": F.logsigmoid,
    "identity": lambda input: input,
    "crelu": crelu,
}

# What Keras writes for such a function as an activation: the name of the function in TensorFlow's code.
ACTIVATIONS: dict[str, Callable[..., Any]] = {
    **{name: FUNCTIONS[name] for name in ("abs", "exp", "sqrt", "square", "sin", "cos", "erf", "sinh", "cosh", "atan")},
    **{name: FUNCTIONS[name] for name in ("log_sigmoid", "negative", "sign", "expm1", "log1p", "asinh")},
    "crelu_v2": crelu,
    "log_softmax_v2": lambda logits: torch.log_softmax(logits, -1),
}
