"""The faces of a layer so small that its time is that of starting torch's functions: the fewest of those, no blocks.

All windows are one matrix a position here. That is the patch matrix which a larger layer must not make, of a size that
stays in the nearest cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lc_triton._cpu.blocks import compute_dtype
from lc_triton._cpu.workspace import outside_inference_mode
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem

# Numbers of all windows. At twice as many the blocks of larger layers, and their threads, begin to pay.
MOST_NUMBERS = 1 << 16
# Where windows are views of x, so that there are no copies to keep in cache, only products.
MOST_FLAT_NUMBERS = 1 << 18
# Numbers of all weights.
MOST_WEIGHTS = 1 << 22
# Numbers of a window from which the bias is added behind the sum: a sum that starts from it rounds each of its steps at
# the bias's size, 1.7 times the error where a matmul sums number after number (MKL without AVX2), 1.3 times at 65,536
# numbers with AVX-512. For shorter windows the pass over results costs more: 7% of 2 x 2 positions of 1,024 numbers.
LONG_WINDOW = 4096
# Multiplications of a matrix product below which torch's batched product takes a loop of its own.
LEAST_PRODUCTS = 400
_MOST_VIEWS = 64

View = tuple[tuple[int, ...], tuple[int, ...]]
V = TypeVar("V")


class Small:
    """A layer without groups whose windows are few, and what its faces ask of it again and again."""

    def __init__(self, geometry: Geometry, deciding: Geometry) -> None:
        self.geo = geometry
        self.positions, self.window, self.filters = geometry.positions, geometry.window, geometry.out_channels
        self.lone = self.positions == deciding.positions == 1 and self.window < LONG_WINDOW
        self.numbers = deciding.positions * deciding.window
        self.whole = geometry.groups == 1 and deciding.weight_numel <= MOST_WEIGHTS
        self.flat = geometry.ndim == 1 and geometry.dilation == (1,)  # a window is one run of x, which is not copied
        self.pads = any(map(any, geometry.padding))
        self.padded = geometry.padded().in_spatial
        self.padding = (0, 0, *(side for pair in reversed(geometry.padding) for side in pair))
        self._views: dict[Any, View] = {}
        self._matrices: dict[Any, View | None] = {}
        self._sites: dict[torch.device, Tensor] = {}

    @classmethod
    def of(cls, problem: Problem, batch: int) -> Small | None:
        """The layer of a problem, made once, if it is a small one at a batch."""
        small: Small | None = problem.launches.get("small")
        if small is None:
            small = problem.launches["small"] = cls(problem.geometry, problem.tuning_geometry)
        most = MOST_FLAT_NUMBERS if small.flat else MOST_NUMBERS
        return small if small.whole and 0 < batch * small.numbers <= most else None

    def one(self, batch: int) -> bool:
        """Whether all is one matrix product: not one so small that torch's loop over batches is the faster one."""
        return self.lone and batch * self.window * self.filters >= LEAST_PRODUCTS

    def windows(self, x: Tensor) -> Tensor:
        """All windows as matrices `(P, B, D)`."""
        if self.pads:
            x = F.pad(x, self.padding)
        batch = x.shape[0]
        if self.flat:
            x = x.contiguous()
            step = self.geo.stride[0] * self.geo.in_channels
            return x.as_strided((self.positions, batch, self.window), (step, x.stride(0), 1))
        view = _once(self._views, self._view, batch, x.stride())
        return x.as_strided(*view).reshape(self.positions, batch, self.window)

    def _view(self, batch: int, strides: tuple[int, ...]) -> View:
        """The windows `(*out_spatial, B, *kernel, C)` of x with these strides."""
        geo, (sample, *steps, channel) = self.geo, strides
        moves = (s * step for s, step in zip(geo.stride, steps, strict=True))
        taps = (d * step for d, step in zip(geo.dilation, steps, strict=True))
        size = (*geo.out_spatial, batch, *geo.kernel, geo.in_channels)
        return size, (*moves, sample, *taps, channel)

    def operands(self, x: Tensor) -> Tensor:
        """All windows of x as `product` takes them: the same numbers in the same places whoever asks for them."""
        view = self.matrices(x)
        if view is not None:
            return x.as_strided(*view)
        a = self.windows(x)
        return a[0] if self.one(x.shape[0]) else a

    def matrices(self, x: Tensor) -> View | None:
        """All windows of x as a view of it, as `product` takes them, where there is one."""
        if self.pads:
            return None
        return _once(self._matrices, self._as_matrices, x.shape[0], x.stride())

    def _as_matrices(self, batch: int, of_x: tuple[int, ...]) -> View | None:
        size, strides = self._view(batch, of_x)
        ndim, first = self.geo.ndim, 1 if self.one(batch) else 0
        merged = []
        for cut in (slice(ndim), slice(ndim, ndim + 1), slice(ndim + 1, None)):
            stride = _merged(size[cut], strides[cut])
            if stride is None:
                return None
            merged.append(stride)
        return (self.positions, batch, self.window)[first:], tuple(merged)[first:]

    def sites(self, device: torch.device) -> Tensor:
        """For each position and tap, the number of the padded input's site that is read there: `(P * taps,)`."""
        found = self._sites.get(device)
        if found is None:
            with outside_inference_mode():
                numbers = torch.arange(math.prod(self.padded), device=device).view(self.padded)
                windows = numbers.as_strided(*self._view(1, (0, *numbers.stride(), 0)))
                found = self._sites[device] = windows[..., 0].flatten()
        return found

    @cached_property
    def inner(self) -> tuple[slice, ...]:
        """The sites of the padded input that are the input's."""
        pairs = zip(self.geo.padding, self.geo.in_spatial, strict=True)
        return tuple(slice(low, low + size) for (low, _), size in pairs)

    def by_position(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        """g as matrices `(P, B, F)`."""
        return _in(dtype, g.reshape(g.shape[0], self.positions, self.filters)).transpose(0, 1)

    def filters_of(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weights as matrices `(P, D, F)`."""
        return _in(dtype, weight.reshape(self.positions, self.window, self.filters))

    def product(self, bias: Tensor | None, *, one: bool) -> Callable[[Tensor, Tensor, Any], Tensor]:
        """How windows are multiplied by filters and the bias is added, for biases that look like this one.

        All are contiguous and of one dtype. Of `one` product, windows and results are `(B, D)` and `(B, F)`, else
        `(P, B, D)` and `(P, B, F)`.
        """
        positions, window, filters = self.positions, self.window, self.filters
        size = (window, filters) if one else (positions, window, filters)
        if bias is None:
            multiply = torch.mm if one else torch.bmm
            return lambda a, weight, _: multiply(a, weight.view(*size))
        add = Tensor.addmm if one else Tensor.baddbmm if window < LONG_WINDOW else _behind
        if bias.ndim == 1 or (positions == 1 and bias.ndim <= 3 and not one):
            return lambda a, weight, bias: add(bias, a, weight.view(*size))
        shape = (filters,) if one else (positions, 1, filters)
        return lambda a, weight, bias: add(bias.view(*shape), a, weight.view(*size))

    def by_sample(self, y: Tensor) -> Tensor:
        """What `product` gives, with the numbers of a sample together; no view, for callers change its shape."""
        return y if self.positions == 1 or y.shape[1] == 1 else y.transpose(0, 1).contiguous()


def _once(views: dict[Any, V], make: Callable[[int, tuple[int, ...]], V], batch: int, strides: tuple[int, ...]) -> V:
    """What `make` says of a batch and strides, made once."""
    key = batch, strides
    if key not in views:
        if len(views) >= _MOST_VIEWS:
            views.clear()
        views[key] = make(batch, strides)
    return views[key]


def _merged(size: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """The stride of dimensions that can be counted through as one; None where they cannot."""
    counted = [(n, stride) for n, stride in zip(size, strides, strict=True) if n != 1]
    for (_, outer), (n, inner) in itertools.pairwise(counted):
        if outer != n * inner:
            return None
    return counted[-1][1] if counted else 1


def _behind(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """As `torch.baddbmm` says it, which refuses a bias of another dtype as well."""
    if bias.dtype is not a.dtype:
        raise RuntimeError("the bias is of another dtype than what it is added to")
    return torch.bmm(a, b).add_(bias)


def _in(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def forward(
    small: Small, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, *, store_z: bool
) -> tuple[Tensor, Tensor | None]:
    """y and, if asked for, z."""
    batch, dtype = x.shape[0], compute_dtype(x.dtype)
    a = _in(dtype, small.operands(x))
    weight, bias = _in(dtype, weight).contiguous(), None if bias is None else _in(dtype, bias).contiguous()
    z = small.product(bias, one=a.ndim == 2)(a, weight, bias)
    y = problem.activation(z)
    shape = (batch, *small.geo.bias_shape)
    # No view, for what changes one in place asks how it was made.
    y = _in(x.dtype, small.by_sample(y)).resize_(shape)
    return y, _in(x.dtype, small.by_sample(z)).resize_(shape) if store_z else None


def weight_grad(
    small: Small, x: Tensor, g: Tensor, dtype: torch.dtype, *, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """dw and, if asked for, the bias gradient of each position."""
    compute = compute_dtype(x.dtype)
    a, b = _in(compute, small.windows(x)).transpose(1, 2), small.by_position(g, compute)
    # A matmul of depth 1 is slower; a product of numbers may come out in the order of one of its operands.
    dw = torch.mul(a, b).contiguous() if len(x) == 1 else torch.bmm(a, b)
    dw = _in(dtype, dw).resize_(small.geo.weight_shape)
    return dw, _in(dtype, g.sum(0, dtype=torch.promote_types(g.dtype, torch.float32))) if with_bias else None


def input_grad(small: Small, g: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """act(dx + bias): what each tap of each position gives, added to the site that it reads."""
    geo, batch, dtype = small.geo, g.shape[0], compute_dtype(g.dtype)
    windows = torch.bmm(small.filters_of(weight, dtype), small.by_position(g, dtype).transpose(1, 2))
    channels = geo.in_channels
    sites = windows.new_zeros(math.prod(small.padded), channels * batch)
    sites.index_add_(0, small.sites(g.device), windows.view(-1, channels * batch))
    dx = sites.view(*small.padded, channels, batch)
    if small.pads:
        dx = dx[small.inner]
    dx = dx.movedim(-1, 0)
    if bias is not None:
        dx = dx + bias
    return problem.activation(dx).to(g.dtype, memory_format=torch.contiguous_format, copy=True)
