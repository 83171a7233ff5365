"""The names that arguments may have, as types: a misspelt one fails type checking, not only at run time.

A program whose name is a variable of type `str` says `cast(ActivationName, name)`, or is checked at run time alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

ActivationName: TypeAlias = Literal[
    "elu",
    "exponential",
    "gelu",
    "gelu_tanh",
    "hard_sigmoid",
    "hardsigmoid",
    "hardswish",
    "leaky_relu",
    "linear",
    "log_softmax",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softsign",
    "swish",
    "tanh",
]
ActivationPair: TypeAlias = (
    "tuple[Literal['leaky_relu', 'elu'], float] | tuple[Literal['gelu'], Literal['none', 'tanh']]"
)
ActivationArg: TypeAlias = "ActivationName | ActivationPair | Callable[[Tensor], Tensor] | None"
# Keras's layers take its own names; a constant goes with torch's.
KerasActivationName: TypeAlias = Literal[
    "elu",
    "exponential",
    "gelu",
    "hard_sigmoid",
    "leaky_relu",
    "linear",
    "log_softmax",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softsign",
    "swish",
    "tanh",
]
KerasActivationArg: TypeAlias = "KerasActivationName | ActivationPair | Callable[[Tensor], Tensor] | None"

PaddingName: TypeAlias = Literal["valid", "same", "keras_same", "causal"]
PaddingArg: TypeAlias = "PaddingName | int | Sequence[int] | Sequence[tuple[int, int]]"
PaddingModeName: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]
ShareName: TypeAlias = Literal["rows", "columns", "all"]
ShareTile: TypeAlias = (
    "tuple[Literal['tile'], int] | tuple[Literal['tile'], int, int] | tuple[Literal['tile'], int, int, int]"
)
ShareArg: TypeAlias = "ShareName | ShareTile | int | Sequence[int] | None"
DataFormat: TypeAlias = Literal["channels_first", "channels_last"]
BiasKind: TypeAlias = Literal["position", "channel"]
BackendName: TypeAlias = Literal["auto", "triton", "cpu", "reference"]
QuantizedName: TypeAlias = Literal["int8", "float8_e4m3", "int4"]
