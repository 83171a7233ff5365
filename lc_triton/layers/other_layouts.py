"""Weights of locally connected layers as other libraries keep them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
from torch import Tensor

from lc_triton.core.arguments import as_index, check_name, several
from lc_triton.errors import ArgumentTypeError, ArgumentValueError

Layout: TypeAlias = Literal["flax", "darknet", "unfold", "conv2d_local", "haiku"]
Array = TypeVar("Array", bound="np.ndarray[Any, Any] | Tensor")


@dataclass(frozen=True)
class _AxisOrder:
    """An order of the axes of a kernel: o the output's sizes, w a window's numbers in one axis (channels, then taps),
    k taps, c channels, f filters; and that of its bias.
    """

    kernel: str
    bias: str


_AXIS_ORDERS: dict[str, _AxisOrder] = {
    "flax": _AxisOrder("owf", "of"),
    "haiku": _AxisOrder("fwo", "fo"),
    "unfold": _AxisOrder("fwo", "fo"),
    "darknet": _AxisOrder("ofck", "fo"),
    "conv2d_local": _AxisOrder("ofck", "fo"),
}


def convert_weights(
    array: Array,
    layout: Layout,
    *,
    kernel_size: int | Sequence[int] | None = None,
    output_size: int | Sequence[int] | None = None,
    bias: bool = False,
) -> Array:
    """Bring a weight or a bias of another library into the order of axes of this one's layers.

    Args:
        array: a numpy array or a tensor. `*out` are the output's spatial sizes, `*k` the kernel's, C channels, F
            filters:

            - "flax", of `flax.linen.ConvLocal` (and `jax.lax.conv_general_dilated_local` with channels last): weight
              `(*out, C * prod(k), F)`, bias `(*out, F)`
            - "haiku", whose modules call `jax.lax.conv_general_dilated_local` in its default order: weight
              `(F, C * prod(k), *out)`, bias `(F, *out)`
            - "unfold", of `einsum("bdl,fdl->bfl", F.unfold(x, k), weight)`: weight `(F, C * prod(k), *out)`, or with
              one axis for `*out`; bias the same without its second axis
            - "darknet", of a `[local]` section, and "conv2d_local", as proposed for torch: weight
              `(*out, F, C, *k)`, bias `(F, *out)`
        layout: one of these names.
        kernel_size: the sizes k, for weights whose windows are one axis.
        output_size: the output's sizes, where one axis has them all.
        bias: True if the array is a bias.

    Returns:
        A view of the array (a copy where its memory allows none), of the same kind: a weight `(*out, *k, C, F)`, or a
        bias `(*out, F)`. `layer.weight` of LocalConv1d, 2d, 3d and LocallyConnected1D, 2D, 3D has this shape.

    Raises:
        LocalConvError: an unknown layout, sizes that are missing, or an array that does not have them.

    Source: jax's documentation of `lax.conv_general_dilated_local`; darknet's `local_layer.c`; torch's pull request
    1583.

    Example:
        >>> import numpy as np
        >>> kernel = np.zeros((5, 4, 3 * 3 * 2, 8))  # of flax: 5 x 4 positions, windows of 3 x 3 with 2 channels
        >>> convert_weights(kernel, "flax", kernel_size=3).shape
        (5, 4, 3, 3, 2, 8)
    """
    if not isinstance(array, (np.ndarray, Tensor)):
        raise ArgumentTypeError(name="array", value=array, allowed="a numpy array or a tensor")
    check_name("layout", layout, get_args(Layout))
    if not isinstance(bias, bool):
        raise ArgumentTypeError(name="bias", value=bias, allowed="True or False, whether the array is one")
    form = _AXIS_ORDERS[layout].bias if bias else _AXIS_ORDERS[layout].kernel
    kernel, outs = _sizes("kernel_size", kernel_size), _sizes("output_size", output_size)
    shape = tuple(array.shape)
    ndim = _dimensions(form, len(shape), kernel, outs, layout)
    kernel, outs = _spread(kernel, ndim), _spread(outs, ndim)
    for name, sizes in (("kernel_size", kernel), ("output_size", outs)):
        if len(sizes) not in (0, ndim):
            raise ArgumentValueError(name=name, value=sizes, allowed=f"one size, or {ndim}")
    if form != "ofck" and len(shape) == len(form) and (outs or ndim > 1):  # the output's sizes in one axis
        if math.prod(outs) != shape[form.index("o")] or not outs:
            allowed = f"{ndim} sizes with the product {shape[form.index('o')]}, the positions of this array"
            raise ArgumentValueError(name="output_size", value=output_size, allowed=allowed)
        shape = (*shape[: form.index("o")], *outs, *shape[form.index("o") + 1 :])
    if "w" in form:
        if not kernel:
            allowed = f"the kernel's sizes: the windows of layout {layout!r} are one axis"
            raise ArgumentValueError(name="kernel_size", value=kernel_size, allowed=allowed)
        before = form.index("w") if form.index("w") < form.index("o") else form.index("w") + ndim - 1
        channels, rest = divmod(shape[before], math.prod(kernel))
        if rest or not channels:
            allowed = f"sizes whose product divides a window's {shape[before]} numbers"
            raise ArgumentValueError(name="kernel_size", value=kernel, allowed=allowed)
        shape = (*shape[:before], channels, *kernel, *shape[before + 1 :])
        form = form.replace("w", "ck")
    _check(shape, form, ndim, kernel, outs)
    order = [axis for letter in ("of" if bias else "okcf") for axis in _axes(form, letter, ndim)]
    given: Any = array.reshape(shape)
    result: Array = given.permute(order) if isinstance(array, Tensor) else given.transpose(order)
    return result


def _axes(form: str, letter: str, ndim: int) -> range:
    """Where the axes of a letter are."""
    start = sum(ndim if other in "ok" else 1 for other in form[: form.index(letter)])
    return range(start, start + (ndim if letter in "ok" else 1))


def _dimensions(form: str, axes: int, kernel: tuple[int, ...], outs: tuple[int, ...], layout: str) -> int:
    """The number of spatial dimensions."""
    wide = sum(letter in "ok" for letter in form)
    given = next((len(sizes) for sizes in (kernel, outs) if len(sizes) > 1), 0)
    if given and axes == len(form) and wide == 1:  # the output's sizes in one axis
        return given
    ndim, rest = divmod(axes - (len(form) - wide), wide)
    if rest or not 1 <= ndim <= 3 or (given and given != ndim):
        named = {"o": "*out", "w": "C*prod(k)", "k": "*k", "c": "C", "f": "F"}
        allowed = f"of shape ({', '.join(named[letter] for letter in form)}) for layout {layout!r}"
        allowed += f" and {given} spatial dimensions" if given else ", with one to three spatial dimensions"
        raise ArgumentValueError(name="array", value=f"one with {axes} axes", allowed=allowed)
    return ndim


def _sizes(name: str, value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    found = [as_index(size) for size in (value if several(value) else (value,))]
    sizes = tuple(size for size in found if size is not None and size >= 1)
    if not sizes or len(sizes) < len(found):
        raise ArgumentValueError(name=name, value=value, allowed="a positive int, or one a spatial dimension")
    return sizes


def _spread(sizes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return sizes * ndim if len(sizes) == 1 else sizes


def _check(shape: tuple[int, ...], form: str, ndim: int, kernel: tuple[int, ...], outs: tuple[int, ...]) -> None:
    """Refuse sizes that the array does not have."""
    for name, letter, sizes in (("kernel_size", "k", kernel), ("output_size", "o", outs)):
        if sizes and letter in form:
            here = tuple(shape[axis] for axis in _axes(form, letter, ndim))
            if here != sizes:
                raise ArgumentValueError(name=name, value=sizes, allowed=f"{here}, which the array has")
