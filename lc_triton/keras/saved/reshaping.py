"""TensorFlow's functions that give numbers another order or shape, as torch's, by its names and arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lc_triton.keras.saved.indexing import Sizes, constant, getitem

Axis: TypeAlias = int | list[int] | None


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
    return input.squeeze(tuple([axis] if isinstance(axis, int) else axis))


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
    axis = (batch_dims if axis is None else axis) % params.ndim
    if batch_dims:
        return _gather_by_sample(params, indices, axis, batch_dims)
    index = torch.as_tensor(indices, device=params.device).long()
    found = params.index_select(axis, index.flatten())
    return found.reshape(*params.shape[:axis], *index.shape, *params.shape[axis + 1 :])


def _gather_by_sample(params: Tensor, indices: Tensor, axis: int, batch_dims: int) -> Tensor:
    if axis != batch_dims or axis < 1:
        raise ValueError(f"batch_dims={batch_dims} of gather along axis {axis} has no counterpart here")
    rows, index = params.flatten(0, axis - 1), indices.long().flatten(0, axis - 1)
    of = torch.arange(len(rows), device=params.device).reshape(-1, *(1 for _ in range(index.ndim - 1)))
    found: Tensor = rows[of, index].unflatten(0, params.shape[:axis])
    return found


def _slice(input_: Any, begin: list[int], size: list[int]) -> Any:
    entries = [{"start": b, "stop": None if n == -1 else b + n} for b, n in zip(begin, size, strict=True)]
    return getitem(input_, entries if isinstance(input_, Tensor) else entries[0])


def _strided_slice(
    input_: Any,
    begin: list[int],
    end: list[int],
    strides: list[int] | None = None,
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
) -> Any:
    if ellipsis_mask or new_axis_mask:
        raise ValueError("strided_slice with an ellipsis_mask or a new_axis_mask has no counterpart here")
    spec: list[Any] = []
    for i, (low, high, step) in enumerate(zip(begin, end, strides or [1] * len(begin), strict=True)):
        bit = 1 << i
        ends = {"start": None if begin_mask & bit else low, "stop": None if end_mask & bit else high, "step": step}
        spec.append(low if shrink_axis_mask & bit else ends)
    return getitem(input_, spec)


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


def _shape_of(input: Tensor, out_type: Any = "int32") -> Sizes:
    return Sizes(input.shape)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "shape": _shape_of,
    "slice": _slice,
    "strided_slice": _strided_slice,
    "broadcast_to": lambda input, shape: input.broadcast_to(tuple(shape)),
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
    "diag_part": lambda input, k=0, **kwargs: input.diagonal(k, -2, -1),
    "reverse": lambda tensor, axis: tensor.flip(axis),
    "roll": lambda input, shift, axis: input.roll(shift, axis),
    "repeat": lambda input, repeats, axis=None: input.repeat_interleave(repeats, axis),
    "flip_left_right": lambda image: image.flip(-2),
    "flip_up_down": lambda image: image.flip(-3),
    "space_to_depth": _space_to_depth,
    "depth_to_space": _depth_to_space,
}
