"""TensorFlow's functions as torch's: what a Keras model has where tensors were added, sliced or reshaped in its code.

Each function has the name and the arguments that TensorFlow gives it in a configuration. A size that the model's code
takes from a tensor (`tf.shape(x)[1]`) is an int here, and a shape is `Sizes`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lc_triton.keras.saved.arguments import Arguments, Place
from lc_triton.keras.saved.indexing import Sizes, getitem

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
    found = FUNCTIONS.get(_PREFIXES.sub("", name)) if isinstance(name, str) else None
    if found is None:
        raise ValueError(f"TensorFlow's function {str(name)[:80]} has no counterpart here")
    return found


def constant(value: Any, like: Any) -> Any:
    """A list of numbers as a tensor, like another operand; anything else as it is."""
    if not isinstance(value, (list, tuple)):
        return value
    return torch.tensor(value, dtype=like.dtype, device=like.device) if isinstance(like, Tensor) else Sizes(value)


def _binary(function: Function) -> Function:
    def call(x: Any, y: Any) -> Any:
        return function(constant(x, y), constant(y, x))

    return call


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


def _reshape(tensor: Tensor, shape: Sequence[int] | Sizes) -> Tensor:
    return tensor.reshape(tuple(shape))


def _transpose(a: Tensor, perm: list[int] | None = None, conjugate: bool = False) -> Tensor:
    return a.permute(list(range(a.ndim))[::-1] if perm is None else perm)


def _expand_dims(input: Tensor, axis: int | None = None, dim: int | None = None) -> Tensor:
    return input.unsqueeze(axis if dim is None and axis is not None else int(dim or 0))


def _squeeze(input: Tensor, axis: Axis = None, squeeze_dims: Axis = None) -> Tensor:
    axis = squeeze_dims if axis is None else axis
    if axis is None:
        return input.squeeze()
    return input.squeeze(tuple(_axes(input, axis)))


def _concat(values: list[Any], axis: int) -> Any:
    if not any(isinstance(value, Tensor) for value in values):
        return Sizes([size for value in values for size in value])
    like = next(value for value in values if isinstance(value, Tensor))
    return torch.cat([constant(value, like) for value in values], axis)


def _stack(values: list[Any], axis: int = 0) -> Any:
    if not any(isinstance(value, Tensor) for value in values):
        return Sizes(values)
    like = next(value for value in values if isinstance(value, Tensor))
    return torch.stack([torch.as_tensor(constant(v, like), dtype=like.dtype, device=like.device) for v in values], axis)


def _unstack(value: Any, num: int | None = None, axis: int = 0) -> Any:
    return tuple(value) if isinstance(value, Sizes) else value.unbind(axis)


def _split(value: Tensor, num_or_size_splits: Any, axis: int = 0, num: int | None = None) -> Any:
    size, pieces = value.shape[axis], num_or_size_splits
    if isinstance(pieces, int):
        if pieces < 1 or size % pieces:
            raise ValueError(f"{size} cannot be split into {pieces} equal parts")
        pieces = [size // pieces] * pieces
    pieces = [size - sum(n for n in pieces if n >= 0) if n < 0 else n for n in pieces]
    return value.split(pieces, axis)


def _tile(input: Tensor, multiples: Sequence[int]) -> Tensor:
    return input.tile(tuple(multiples))


def _pad(tensor: Tensor, paddings: list[list[int]], mode: str = "CONSTANT", constant_values: float = 0) -> Tensor:
    sides = [side for pair in reversed(paddings) for side in pair]
    if mode.upper() == "CONSTANT":
        return F.pad(tensor, sides, value=constant_values)
    if mode.upper() not in ("REFLECT", "SYMMETRIC"):
        raise ValueError(f"padding mode {mode[:80]!r} has no counterpart here")
    for axis, (low, high) in enumerate(paddings):  # of any number of axes, which torch does not pad so
        edge, size = int(mode.upper() == "SYMMETRIC"), tensor.shape[axis]
        if max(low, high) > size - 1 + edge:
            raise ValueError(f"paddings {low} and {high} are more than {size} numbers have beside them")
        below = [low - edge - i for i in range(low)]
        above = [size - 2 + edge - i for i in range(high)]
        index = torch.tensor([*below, *range(size), *above], device=tensor.device)
        tensor = tensor.index_select(axis, index) if low or high else tensor
    return tensor


def _gather(
    params: Tensor, indices: Any, axis: int | None = None, batch_dims: int = 0, validate_indices: Any = None
) -> Tensor:
    if batch_dims:
        raise ValueError(f"batch_dims={batch_dims} has no counterpart here")
    axis = (axis or 0) % params.ndim
    index = torch.as_tensor(indices, device=params.device).long()
    found = params.index_select(axis, index.flatten())
    return found.reshape(*params.shape[:axis], *index.shape, *params.shape[axis + 1 :])


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


def _cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    y = x.flip(axis).cumsum(axis) if reverse else x.cumsum(axis)
    y = y - (x.flip(axis) if reverse else x) if exclusive else y
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
    return torch.where(hot, on, off).to(_dtype(dtype or "float32"))


def _bias_add(value: Tensor, bias: Any, data_format: str | None = None) -> Any:
    bias = constant(bias, value)
    if data_format is not None and data_format.startswith("NC"):
        bias = bias.reshape(-1, *(1,) * (value.ndim - 2))
    return value + bias


def _crelu(features: Tensor, axis: int = -1) -> Tensor:
    return torch.cat([features.relu(), (-features).relu()], axis)


def _leaky_relu(features: Tensor, alpha: float = 0.2) -> Tensor:
    return F.leaky_relu(features, alpha)


def _gelu(features: Tensor, approximate: bool = False) -> Tensor:
    return F.gelu(features, approximate="tanh" if approximate else "none")


def _silu(features: Tensor, beta: float = 1.0) -> Tensor:
    return features * torch.sigmoid(beta * features)


def _divide_no_nan(x: Any, y: Any) -> Any:
    x, y = constant(x, y), constant(y, x)
    return torch.where(y == 0, torch.zeros_like(x / y), x / y) if isinstance(y, Tensor) else x / y if y else x * 0


def _slice(input_: Any, begin: list[int], size: list[int]) -> Any:
    entries = [{"start": b, "stop": None if n == -1 else b + n} for b, n in zip(begin, size, strict=True)]
    return getitem(input_, entries if isinstance(input_, Tensor) else entries[0])


def _over_axis(function: Function) -> Function:
    def call(logits: Tensor, axis: int | None = None, dim: int | None = None) -> Tensor:
        axis = dim if axis is None else axis
        found: Tensor = function(logits, -1 if axis is None else axis)
        return found

    return call


def _clip(t: Tensor, clip_value_min: Any, clip_value_max: Any) -> Tensor:
    return torch.clamp(t, constant(clip_value_min, t), constant(clip_value_max, t))


def _space_to_depth(input: Tensor, block_size: int, data_format: str = "NHWC") -> Tensor:
    _channels_last(data_format)
    n, h, w, c = input.shape
    b = block_size
    return input.reshape(n, h // b, b, w // b, b, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h // b, w // b, b * b * c)


def _depth_to_space(input: Tensor, block_size: int, data_format: str = "NHWC") -> Tensor:
    _channels_last(data_format)
    n, h, w, c = input.shape
    b = block_size
    y = input.reshape(n, h, w, b, b, c // b**2).permute(0, 1, 3, 2, 4, 5)
    return y.reshape(n, h * b, w * b, c // b**2)


def _channels_last(data_format: str) -> None:
    if data_format != "NHWC":
        raise ValueError(f"data_format={data_format[:80]!r} has no counterpart here")


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


def _shape_of(input: Tensor, out_type: Any = "int32") -> Sizes:
    return Sizes(input.shape)


FUNCTIONS: dict[str, Function] = {
    # Operators.
    "getitem": getitem,
    "add": _binary(operator.add),
    "subtract": _binary(operator.sub),
    "multiply": _binary(operator.mul),
    "truediv": _binary(operator.truediv),
    "divide": _binary(operator.truediv),
    "divide_no_nan": _divide_no_nan,
    "floor_div": _binary(operator.floordiv),
    "floordiv": _binary(operator.floordiv),
    "floormod": _binary(operator.mod),
    "pow": _binary(operator.pow),
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
    # Number by number.
    **{
        name: getattr(torch, name)
        for name in (
            *("abs", "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "square", "sin", "cos", "tan", "tanh", "sigmoid"),
            *("sign", "floor", "ceil", "round", "erf", "reciprocal", "sinh", "cosh", "atan", "asin", "acos"),
        )
    },
    "negative": torch.neg,
    "log_sigmoid": F.logsigmoid,
    "clip_by_value": _clip,
    "relu": torch.relu,
    "relu6": F.relu6,
    "crelu": _crelu,
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
    "identity": lambda input: input,
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
    "local_response_normalization": _local_response_normalization,
    # Shapes.
    "shape": _shape_of,
    "slice": _slice,
    "reshape": _reshape,
    "batch_flatten": lambda x: x.flatten(1),
    "transpose": _transpose,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "concat": _concat,
    "stack": _stack,
    "unstack": _unstack,
    "split": _split,
    "tile": _tile,
    "pad": _pad,
    "gather": _gather,
    "reverse": lambda tensor, axis: tensor.flip(axis),
    "roll": lambda input, shift, axis: input.roll(shift, axis),
    "repeat": lambda input, repeats, axis=None: input.repeat_interleave(repeats, axis),
    "flip_left_right": lambda image: image.flip(-2),
    "flip_up_down": lambda image: image.flip(-3),
    "space_to_depth": _space_to_depth,
    "depth_to_space": _depth_to_space,
    "one_hot": _one_hot,
    "bias_add": _bias_add,
}

CLASSES: dict[str, type[Arguments]] = {"TFOpLambda": OperationArguments, "SlicingOpLambda": OperationArguments}
