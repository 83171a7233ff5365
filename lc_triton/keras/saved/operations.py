"""TensorFlow's functions as torch's: what a Keras model has where tensors were added, sliced or reshaped in its code.

Each function has the name and the arguments that TensorFlow gives it in a configuration. A size that the model's code
takes from a tensor (`tf.shape(x)[1]`) is an int here, and a shape is `Sizes`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lc_triton.keras.saved import elementwise, images, reshaping
from lc_triton.keras.saved.arguments import Arguments, Place
from lc_triton.keras.saved.indexing import constant, getitem

Axis: TypeAlias = int | list[int] | None
Function: TypeAlias = Callable[..., Any]

_PREFIXES = re.compile(r"^(compat\.v1\.)?((math|nn|linalg|__operators__|image|keras\.backend)\.)?")

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}


class Operation(nn.Module):
    """A function of TensorFlow's on tensors."""

    def __init__(self, name: str, function: Function) -> None:
        super().__init__()
        self.name, self.function = name, function

    def forward(self, first: Any, **kwargs: Any) -> Any:
        """What the function returns, of a tensor or a list of them."""
        kwargs.pop("name", None)
        return self.function(first, **kwargs)

    def extra_repr(self) -> str:
        """The function."""
        return self.name

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "function"}  # many cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.function = find(self.name)


class OperationArguments(Arguments):
    """`TFOpLambda` and `SlicingOpLambda`; the arguments of the function are those of the call."""

    call_arguments = None

    function: Any

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return Operation(self.function, find(self.function))


def find(name: object) -> Function:
    """The function of a name.

    Raises:
        ValueError: one that is not here.
    """
    plain = _PREFIXES.sub("", name) if isinstance(name, str) else ""
    if plain == "einsum":
        raise ValueError(
            "Keras saves the equation of tf.einsum, and not which tensors it takes: write it with tf.matmul, "
            "tf.tensordot or an EinsumDense layer"
        )
    found = FUNCTIONS.get(plain)
    if found is None:
        raise ValueError(f"TensorFlow's function {str(name)[:80]} has no counterpart here")
    return found


def _binary(function: Function) -> Function:
    def call(x: Any, y: Any) -> Any:
        return function(constant(x, y), constant(y, x))

    return call


def _floor_div(x: Any, y: Any) -> Any:
    x, y = constant(x, y), constant(y, x)
    if not isinstance(x, Tensor) and not isinstance(y, Tensor):
        return x // y
    x = x if isinstance(x, Tensor) else torch.full_like(y, x)
    return torch.div(x, y, rounding_mode="floor")  # whose gradient is zero, where // has none


def _pow(x: Any, y: Any) -> Any:
    x, y = constant(x, y), constant(y, x)
    if not isinstance(x, Tensor) and not isinstance(y, Tensor):
        raise ValueError("a power of two numbers is given to it, and no tensor")  # which may have millions of digits
    return x**y


def _extreme(pick: Function, bound: str) -> Function:
    def call(x: Any, y: Any) -> Any:
        x, y = constant(x, y), constant(y, x)
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return pick(x, y)
        return x.clamp(**{bound: y}) if isinstance(x, Tensor) else y.clamp(**{bound: x})

    return call


def _axes(x: Tensor, axis: Axis) -> list[int]:
    if axis is None:
        return list(range(x.ndim))
    return [axis] if isinstance(axis, int) else list(axis)


def _reduction(function: Function) -> Function:
    def call(x: Tensor, axis: Axis = None, keepdims: bool | None = False) -> Tensor:
        found: Tensor = function(x, _axes(x, axis), bool(keepdims))
        return found

    return call


def _product(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdims)
    return x


def _norm(x: Tensor, ord: Any = "euclidean", axis: Axis = None, keepdims: bool | None = False) -> Any:
    orders: dict[Any, Any] = {"euclidean": 2, 1: 1, 2: 2, math.inf: math.inf}
    if ord not in orders or (ord == 2 and isinstance(axis, list) and len(axis) == 2):
        raise ValueError(f"a norm of order {ord!r} has no counterpart here")
    return torch.linalg.vector_norm(x, orders[ord], _axes(x, axis), bool(keepdims))


def _l2_normalize(x: Tensor, axis: Axis = None, epsilon: float = 1e-12) -> Any:
    squares: Tensor = x.square().sum(_axes(x, axis), keepdim=True)
    return x * squares.clamp(min=epsilon).rsqrt()


def _arg(function: Function) -> Function:
    def call(input: Tensor, axis: int | None = None, output_type: str = "int64") -> Tensor:
        found: Tensor = function(input, axis or 0)
        return found.to(_dtype(output_type))

    return call


def _dtype(name: Any) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype {str(name)[:80]} is none of {', '.join(DTYPES)}")
    return DTYPES[name]


def _matmul(
    a: Any,
    b: Any,
    transpose_a: bool = False,
    transpose_b: bool = False,
    adjoint_a: bool = False,
    adjoint_b: bool = False,
    a_is_sparse: bool = False,
    b_is_sparse: bool = False,
) -> Tensor:
    a, b = constant(a, b), constant(b, a)
    found: Tensor = (a.mT if transpose_a or adjoint_a else a) @ (b.mT if transpose_b or adjoint_b else b)
    return found


def _tensordot(a: Any, b: Any, axes: Any) -> Any:
    return torch.tensordot(constant(a, b), constant(b, a), axes)


def _sort(values: Tensor, axis: int = -1, direction: str = "ASCENDING") -> Tensor:
    return values.sort(axis, descending=direction == "DESCENDING").values


def _top_k(input: Tensor, k: int = 1, sorted: bool = True, index_type: str = "int32") -> tuple[Tensor, Tensor]:
    values, indices = input.topk(k, -1)
    return values, indices.to(_dtype(index_type))


def _band_part(input: Tensor, num_lower: int, num_upper: int) -> Tensor:
    found = input if num_upper < 0 else input.tril(num_upper)
    return found if num_lower < 0 else found.triu(-num_lower)


def _cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    y = x.flip(axis).cumsum(axis) if reverse else x.cumsum(axis)
    y = y - (x.flip(axis) if reverse else x) if exclusive else y
    return y.flip(axis) if reverse else y


def _cumprod(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    y = x.flip(axis) if reverse else x
    if exclusive:
        y = torch.cat([torch.ones_like(y.narrow(axis, 0, 1)), y.narrow(axis, 0, y.shape[axis] - 1)], axis)
    y = y.cumprod(axis)
    return y.flip(axis) if reverse else y


def _where(condition: Tensor, x: Any = None, y: Any = None) -> Tensor:
    if x is None or y is None:
        raise ValueError("where with one argument has no counterpart here: its shape depends on numbers")
    return torch.where(condition, constant(x, y), constant(y, x))


def _one_hot(
    indices: Tensor,
    depth: int,
    on_value: Any = None,
    off_value: Any = None,
    axis: int | None = None,
    dtype: Any = "float32",
) -> Tensor:
    if axis not in (None, -1):
        raise ValueError(f"axis={axis} of one_hot has no counterpart here")
    hot = indices.unsqueeze(-1) == torch.arange(depth, device=indices.device)
    on, off = (1.0 if on_value is None else on_value), (0.0 if off_value is None else off_value)
    return torch.full_like(hot, off, dtype=_dtype(dtype or "float32")).masked_fill(hot, on)


def _bias_add(value: Tensor, bias: Any, data_format: str | None = None) -> Any:
    bias = constant(bias, value)
    if data_format is not None and data_format.startswith("NC"):
        bias = bias.reshape(-1, *(1,) * (value.ndim - 2))
    return value + bias


def _leaky_relu(features: Tensor, alpha: float = 0.2) -> Tensor:
    return F.leaky_relu(features, alpha)


def _gelu(features: Tensor, approximate: bool = False) -> Tensor:
    return F.gelu(features, approximate="tanh" if approximate else "none")


def _silu(features: Tensor, beta: float = 1.0) -> Tensor:
    return features * torch.sigmoid(beta * features)


def _divide_no_nan(x: Any, y: Any) -> Any:
    x, y = constant(x, y), constant(y, x)
    return torch.where(y == 0, torch.zeros_like(x / y), x / y) if isinstance(y, Tensor) else x / y if y else x * 0


def _over_axis(function: Function) -> Function:
    def call(logits: Tensor, axis: int | None = None, dim: int | None = None) -> Tensor:
        axis = dim if axis is None else axis
        found: Tensor = function(logits, -1 if axis is None else axis)
        return found

    return call


def _clip(t: Tensor, clip_value_min: Any, clip_value_max: Any) -> Tensor:
    return torch.clamp(t, constant(clip_value_min, t), constant(clip_value_max, t))


def _local_response_normalization(
    input: Tensor, depth_radius: int = 5, bias: float = 1.0, alpha: float = 1.0, beta: float = 0.5
) -> Any:
    squares = F.pad(input.square(), (depth_radius, depth_radius)).unfold(-1, 2 * depth_radius + 1, 1).sum(-1)
    return input / (bias + alpha * squares) ** beta


def _add_n(inputs: list[Any]) -> Any:
    return sum(inputs[1:], inputs[0])


def _like(value: float) -> Function:
    def call(input: Tensor, dtype: Any = None, optimize: bool = True) -> Tensor:
        return torch.full_like(input, value, dtype=None if dtype is None else _dtype(dtype))

    return call


FUNCTIONS: dict[str, Function] = {
    # Operators.
    "getitem": getitem,
    "add": _binary(operator.add),
    "subtract": _binary(operator.sub),
    "multiply": _binary(operator.mul),
    "truediv": _binary(operator.truediv),
    "divide": _binary(operator.truediv),
    "divide_no_nan": _divide_no_nan,
    "multiply_no_nan": _binary(lambda x, y: torch.where(torch.as_tensor(y == 0), torch.zeros_like(x * y), x * y)),
    "xdivy": _binary(lambda x, y: torch.where(torch.as_tensor(x == 0), torch.zeros_like(x / y), x / y)),
    "atan2": lambda y, x: _binary(torch.atan2)(y, x),
    "trace": lambda x: x.diagonal(0, -2, -1).sum(-1),
    "floor_div": _floor_div,
    "floordiv": _floor_div,
    "floormod": _binary(operator.mod),
    "pow": _pow,
    "maximum": _extreme(torch.maximum, "min"),
    "minimum": _extreme(torch.minimum, "max"),
    "squared_difference": _binary(lambda x, y: (x - y) ** 2),
    "greater": _binary(operator.gt),
    "greater_equal": _binary(operator.ge),
    "less": _binary(operator.lt),
    "less_equal": _binary(operator.le),
    "equal": _binary(operator.eq),
    "not_equal": _binary(operator.ne),
    "logical_and": _binary(torch.logical_and),
    "logical_or": _binary(torch.logical_or),
    "logical_not": torch.logical_not,
    "add_n": _add_n,
    "matmul": _matmul,
    "tensordot": _tensordot,
    "sort": _sort,
    "top_k": _top_k,
    "band_part": _band_part,
    # Number by number.
    **elementwise.FUNCTIONS,
    "clip_by_value": _clip,
    "relu": torch.relu,
    "relu6": F.relu6,
    "leaky_relu": _leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": _gelu,
    "silu": _silu,
    "swish": _silu,
    "softplus": lambda features: F.softplus(features, threshold=1e4),
    "softsign": F.softsign,
    "softmax": _over_axis(torch.softmax),
    "log_softmax": _over_axis(torch.log_softmax),
    "ensure_shape": lambda x, shape: x,
    "stop_gradient": lambda input: input.detach(),
    "cast": lambda x, dtype: x.to(_dtype(dtype)) if isinstance(x, Tensor) else x,
    "where": _where,
    "zeros_like": _like(0),
    "ones_like": _like(1),
    # Over axes.
    "reduce_mean": _reduction(lambda x, axes, keep: x.mean(axes, keep)),
    "reduce_sum": _reduction(lambda x, axes, keep: x.sum(axes, keep)),
    "reduce_max": _reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "reduce_min": _reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "reduce_prod": _reduction(_product),
    "reduce_any": _reduction(lambda x, axes, keep: torch.any(x, axes, keep)),
    "reduce_all": _reduction(lambda x, axes, keep: torch.all(x, axes, keep)),
    "reduce_variance": _reduction(lambda x, axes, keep: x.var(axes, correction=0, keepdim=keep)),
    "reduce_std": _reduction(lambda x, axes, keep: x.std(axes, correction=0, keepdim=keep)),
    "reduce_logsumexp": _reduction(torch.logsumexp),
    "reduce_euclidean_norm": _reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "norm": _norm,
    "l2_normalize": _l2_normalize,
    "argmax": _arg(torch.argmax),
    "argmin": _arg(torch.argmin),
    "cumsum": _cumsum,
    "cumprod": _cumprod,
    "local_response_normalization": _local_response_normalization,
    "one_hot": _one_hot,
    "bias_add": _bias_add,
    **reshaping.FUNCTIONS,
    **images.FUNCTIONS,
}

CLASSES: dict[str, type[Arguments]] = {"TFOpLambda": OperationArguments, "SlicingOpLambda": OperationArguments}
