"""The padding of a layer: what users may write, and the zeros that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from lc_triton.core.arguments import check_int, check_name, int_tuple, several
from lc_triton.errors import LengthError, PaddingError

Pairs: TypeAlias = tuple[tuple[int, int], ...]
Padding: TypeAlias = str | int | Sequence[int] | Sequence[tuple[int, int]]

PADDING_NAMES = ("valid", "same", "keras_same", "causal")


def extent_of(kernel: int, dilation: int) -> int:
    """Sites from the first to the last tap of a window in one dimension."""
    return (kernel - 1) * dilation + 1


def check_padding(padding: object, ndim: int) -> str | Pairs:
    """`padding` as a name or one pair a dimension; refuses what no layer of `ndim` dimensions allows."""
    if isinstance(padding, str):
        check_name("padding", padding, PADDING_NAMES)
        if padding == "causal" and ndim != 1:
            raise PaddingError(value=padding, reason=f"exists in 1-D only, this layer has {ndim} spatial dimensions")
        return padding
    if several(padding) and any(isinstance(p, Sequence) for p in padding):
        if len(padding) != ndim or not all(several(p) and len(p) == 2 for p in padding):
            raise LengthError(name="padding", value=padding, ndim=ndim, allowed=f"{ndim} (low, high) pair(s)")
        return tuple((check_int("padding", lo, 0), check_int("padding", hi, 0)) for lo, hi in padding)
    if several(padding) and len(padding) != ndim:
        allowed = f"a name, an int, {ndim} int(s) or {ndim} (low, high) pair(s)"
        raise LengthError(name="padding", value=padding, ndim=ndim, allowed=allowed)
    return tuple((p, p) for p in int_tuple("padding", padding, ndim, minimum=0))


def padding_pairs(
    padding: str | Pairs,
    in_spatial: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Pairs:
    """Low and high padding of each dimension; "same" is TensorFlow's SAME, "keras_same" pads k//2 low always."""
    if not isinstance(padding, str):
        return padding
    extents = [extent_of(k, d) for k, d in zip(kernel, dilation, strict=True)]
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "causal":
        return tuple((e - 1, 0) for e in extents)
    pairs = []
    for size, extent, step in zip(in_spatial, extents, stride, strict=True):
        needed = (-(-size // step) - 1) * step + extent
        low = max(needed - size, 0) // 2 if padding == "same" else extent // 2
        pairs.append((low, max(needed - size - low, 0)))
    return tuple(pairs)


def for_convolution(pairs: Pairs) -> tuple[list[int], list[int]]:
    """The padding for torch's convolutions if it is symmetric, else no padding and the sides for an `F.pad` before.

    Example:
        >>> for_convolution(((1, 1), (2, 2))), for_convolution(((1, 0), (2, 2)))
        (([1, 2], []), ([0, 0], [2, 2, 1, 0]))
    """
    if all(low == high for low, high in pairs):
        return [low for low, _ in pairs], []
    return [0] * len(pairs), [side for pair in reversed(pairs) for side in pair]
