"""Strategies for calls of the operators: geometry, dtypes, requested gradients and memory layouts of the tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from lc_triton.core.activations import FUSED_NAMES
from lc_triton.core.geometry import Geometry
from lc_triton.core.share import parse_share

# Hypothesis shrinks a failing case towards the first entry of each list, so plain values come first.
DTYPES = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
]
ACTIVATIONS = [
    None,
    *FUSED_NAMES,
    "swish",
    ("leaky_relu", 0.2),
    ["elu", 0.5],
    ("gelu", "tanh"),
    "softmax",
    "log_softmax",
]
LAYOUTS = ["contiguous", "permuted", "stepped", "expanded", "overlapping"]
NAN = float("nan")


@dataclass(frozen=True)
class Limits:
    """The largest sizes of the calls."""

    positions: tuple[int, int, int] = (7, 4, 3)  # the most for 1-D, 2-D and 3-D layers
    kernel: tuple[int, int, int] = (4, 3, 2)
    padding: int = 3
    channels: tuple[int, ...] = (1, 2, 3, 5, 16)  # the channels of a group
    groups: int = 4
    batch: tuple[int | None, ...] = (2, 1, 3, 0, 5, None)
    dtypes: tuple[tuple[torch.dtype, torch.dtype], ...] = tuple(DTYPES)
    shares: bool = True  # whether positions may share filters


@dataclass(frozen=True)
class Layout:
    """The memory layout of a tensor: its strides, the offset of its first number, and the numbers after its last.

    `negated` is torch's lazy negation, which says that the numbers in memory have the other sign.
    """

    strides: tuple[int, ...]
    offset: int = 0
    tail: int = 0
    negated: bool = False


@dataclass
class StridedTensor:
    """A view of a tensor, and the memory around it, which is full of NaN."""

    memory: Tensor
    view: Tensor
    before: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.before = self._bytes()

    def _bytes(self) -> bytes:
        return self.memory.view(torch.uint8).numpy().tobytes()

    @property
    def changed(self) -> bool:
        """Whether anything wrote to the tensor or around it."""
        return self._bytes() != self.before


def make_strided(
    shape: tuple[int, ...], layout: Layout, dtype: torch.dtype, seed: int, scale: float = 1.0
) -> StridedTensor:
    """Random normal numbers in a layout, in which entries may share memory."""
    extent = sum((n - 1) * s for n, s in zip(shape, layout.strides, strict=True)) + 1 if math.prod(shape) else 0
    size = layout.offset + extent + layout.tail
    indices = torch.arange(size).as_strided(shape, layout.strides, layout.offset if extent else 0).flatten()
    numbers = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    memory = torch.full((size,), NAN, dtype=dtype)
    memory[indices] = numbers[indices].to(dtype)
    view = memory.as_strided(shape, layout.strides, layout.offset if extent else 0)
    return StridedTensor(memory, torch._neg_view(view) if layout.negated else view)


@dataclass(frozen=True)
class Call:
    """A call of an operator, and the gradients that are requested of its result."""

    geometry: Geometry  # for a transposed layer, the geometry of the layer whose adjoint it is
    transposed: bool
    arguments: dict[str, Any]  # beside the tensors
    batch: int | None  # None for an input without a batch dimension
    bias: str | None
    dtype: torch.dtype
    weight_dtype: torch.dtype
    layouts: dict[str, Layout]
    needs: tuple[str, ...]  # names of the tensors whose gradients are requested
    twice: bool  # whether gradients of second order are requested
    seed: int = 0

    @property
    def channels_last(self) -> bool:
        return self.arguments["data_format"] == "channels_last"


def shapes(
    geometry: Geometry, transposed: bool, batch: int | None, bias: str | None, channels_last: bool
) -> dict[str, tuple[int, ...]]:
    """The shapes of x, weight, bias (if there is one) and g, the gradient of the result."""
    sites, positions = (geometry.in_spatial, geometry.in_channels), (geometry.out_spatial, geometry.out_channels)
    input_size, output_size = (positions, sites) if transposed else (sites, positions)
    batch_dims = () if batch is None else (batch,)

    def shape_of(spatial: tuple[int, ...], channels: int) -> tuple[int, ...]:
        return (*batch_dims, *spatial, channels) if channels_last else (*batch_dims, channels, *spatial)

    found = {"x": shape_of(*input_size), "weight": geometry.weight_shape, "g": shape_of(*output_size)}
    if bias is not None:
        found["bias"] = (*output_size[0], output_size[1]) if bias == "position" else (output_size[1],)
    return found


@st.composite
def layouts(draw: Any, shape: tuple[int, ...]) -> Layout:
    """Any layout without negative strides, which torch does not have."""
    kind, order = draw(st.sampled_from(LAYOUTS)), list(range(len(shape)))
    if kind == "overlapping":
        strides = [draw(st.integers(0, 3)) for _ in shape]
    else:
        if kind != "contiguous":
            order = draw(st.permutations(order))
        strides, dense = [0] * len(shape), 1
        for dim in reversed(order):
            strides[dim] = dense * (draw(st.integers(1, 3)) if kind == "stepped" else 1)
            dense = strides[dim] * max(1, shape[dim])
        if kind == "expanded":
            strides = [0 if draw(st.booleans()) else stride for stride in strides]
    if 1 in shape and draw(st.booleans()):  # a dimension of size 1 may have any stride
        strides = [draw(st.integers(0, 9)) if n == 1 else stride for n, stride in zip(shape, strides, strict=True)]
    offset, tail = draw(st.sampled_from([0, 1, 3])), draw(st.sampled_from([0, 5]))
    return Layout(tuple(strides), offset, tail, draw(st.sampled_from([False] * 9 + [True])))


@dataclass(frozen=True)
class _Axis:
    """One dimension of a layer."""

    size: int
    kernel: int
    stride: int
    dilation: int
    pads: tuple[int, int]
    slack: int  # sites at the high end that no window reaches


PADDINGS = ["valid", "int", "ints", "pairs", "same", "keras_same", "causal"]


@st.composite
def axes(draw: Any, ndim: int, padding: str, limits: Limits) -> list[_Axis]:
    """The dimensions of a layer with as many positions as the limits allow; with a named padding `pads` are (0, 0)."""
    found = []
    for _ in range(ndim):
        kernel = draw(st.integers(1, limits.kernel[ndim - 1]))
        stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        positions = draw(st.integers(1, limits.positions[ndim - 1]))
        slack = draw(st.integers(0, stride - 1))
        padded, low, high = (positions - 1) * stride + (kernel - 1) * dilation + 1 + slack, 0, 0
        if padding in ("same", "keras_same", "causal"):  # these compute their own padding from the size
            padded = (positions - 1) * stride + 1 + slack
        elif padding == "pairs":
            low = draw(st.integers(0, min(limits.padding, padded - 1)))
            high = draw(st.integers(0, min(limits.padding, padded - 1 - low)))
        elif padding in ("int", "ints"):
            low = high = draw(st.integers(0, min(limits.padding, (padded - 1) // 2)))
        found.append(_Axis(padded - low - high, kernel, stride, dilation, (low, high), slack))
    if padding == "int":
        pad = min(axis.pads[0] for axis in found)
        found = [
            _Axis(a.size + 2 * (a.pads[0] - pad), a.kernel, a.stride, a.dilation, (pad, pad), a.slack) for a in found
        ]
    return found


@st.composite
def as_argument(draw: Any, values: list[Any]) -> Any:
    """Values of all dimensions as an argument: a tuple, a list, or a single value if all are equal."""
    if len(set(values)) == 1 and draw(st.booleans()):
        return values[0]
    return draw(st.sampled_from([tuple, list]))(values)


@st.composite
def shares_of_positions(draw: Any, ndim: int) -> Any:
    """The argument `share`, in most cases None."""
    names = ["all", "rows", "columns"] if ndim > 1 else ["all"]
    kind = draw(st.sampled_from([None] * 4 + [*names, "block", "tile"]))
    if kind not in ("block", "tile"):
        return kind
    sizes = draw(as_argument([draw(st.integers(1, 4)) for _ in range(ndim)]))
    if kind == "block":
        return sizes
    return ("tile", *([sizes] if isinstance(sizes, int) else sizes))


@st.composite
def calls(draw: Any, ndim: int, limits: Limits | None = None) -> Call:
    """Any valid call of the operators."""
    limits = limits or Limits()
    transposed = draw(st.sampled_from([False, False, True]))
    names = PADDINGS[:4] if transposed else PADDINGS if ndim == 1 else PADDINGS[:-1]
    padding = draw(st.sampled_from(names))
    dims = draw(axes(ndim, padding, limits))
    groups = draw(st.sampled_from([1, 1, *range(1, limits.groups + 1)]))
    channels, filters = (groups * draw(st.sampled_from(limits.channels)) for _ in range(2))
    arguments: dict[str, Any] = {
        "stride": draw(as_argument([axis.stride for axis in dims])),
        "dilation": draw(as_argument([axis.dilation for axis in dims])),
        "groups": groups,
        "padding": padding,
    }
    if padding == "int":
        arguments["padding"] = dims[0].pads[0]
    elif padding == "ints":
        arguments["padding"] = draw(as_argument([axis.pads[0] for axis in dims]))
    elif padding == "pairs":
        arguments["padding"] = [axis.pads for axis in dims]
    elif padding == "valid" and transposed:
        arguments["padding"] = 0
    spatial, kernel = tuple(axis.size for axis in dims), tuple(axis.kernel for axis in dims)
    share = draw(shares_of_positions(ndim)) if limits.shares and not transposed else None
    geometry = Geometry.make(spatial, channels, filters, kernel, **arguments, regions=parse_share(share, ndim))
    if share is not None:
        arguments["share"] = share
    if transposed:
        if draw(st.booleans()):
            arguments["output_padding"] = draw(as_argument([axis.slack for axis in dims]))
        else:
            arguments["output_size"] = draw(as_argument(list(spatial)))
    else:
        limit = {"zeros": None, "replicate": None, "circular": 0, "reflect": -1}
        allowed = [
            [mode for mode, offset_ in limit.items() if offset_ is None or max(pair) <= n + offset_]
            for pair, n in zip(geometry.padding, spatial, strict=True)
        ]
        modes = [mode for mode in limit if all(mode in of_dim for of_dim in allowed)]
        mixed = st.tuples(*map(st.sampled_from, allowed))
        arguments["padding_mode"] = draw(st.sampled_from(["zeros", *modes]) | mixed)
    arguments["activation"] = draw(st.sampled_from(ACTIVATIONS))
    arguments["data_format"] = draw(st.sampled_from(["channels_last", "channels_first"]))
    batch, bias = draw(st.sampled_from(limits.batch)), draw(st.sampled_from([None, "position", "channel"]))
    dtype, weight_dtype = draw(st.sampled_from(limits.dtypes))
    sizes = shapes(geometry, transposed, batch, bias, arguments["data_format"] == "channels_last")
    needs = [name for name in ("x", "weight", "bias") if name in sizes and draw(st.booleans())]
    return Call(
        geometry,
        transposed,
        arguments,
        batch,
        bias,
        dtype,
        weight_dtype,
        {name: draw(layouts(shape)) for name, shape in sizes.items()},
        tuple(needs) or ("x", "weight"),
        twice=dtype == torch.float64 and draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )
