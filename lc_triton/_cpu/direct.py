"""The passes of layers that are one block: one matrix of windows a position, and one batched product.

The windows are a view of x where the kernel has one tap, in 1-D, and where one window is all of x. Groups, 16-bit
tensors and layers of several blocks are left to `lc_triton._cpu.matmul`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lc_triton._cpu.blocks import Layer, block_bytes, compute_dtype, is_single, merged_stride
from lc_triton._cpu.products import few_filters, multiply, window_gradients
from lc_triton._cpu.workspace import Buffer, buffers
from lc_triton.core.problem import Problem


class Direct:
    """A layer without groups or shared filters, and where its windows lie in a contiguous padded x."""

    def __init__(self, problem: Problem) -> None:
        geo, geometry, tuning = Layer.of(problem).geo, problem.geometry, problem.tuning_geometry
        self.geo, self.channels, self.padded = geo, geo.in_channels, geo.padded().in_spatial
        self.tuning_filters = tuning.out_channels
        self.positions, self.window, self.filters = geo.positions, geo.window, geo.out_channels
        self.run = geo.kernel[3] * geo.in_channels
        self.result = geometry.bias_shape
        pads = [side for pair in reversed(geometry.padding) for side in pair]
        self.pads = (0, 0, *pads) if any(pads) else None
        steps = [geo.in_channels * math.prod(self.padded[d + 1 :]) for d in range(4)]
        self.moves = tuple(s * step for s, step in zip(geo.stride, steps, strict=True))
        self.taps = tuple(d * step for d, step in zip(geo.dilation, steps, strict=True))
        self.sample = self.channels * math.prod(self.padded)
        position = merged_stride(geo.out_spatial, self.moves)
        window = merged_stride((*geo.kernel, self.channels), (*self.taps, 1))
        self.strides = None if position is None or window is None else (position, self.sample, window)
        # Whether the windows of x are one matrix `(B, D)`.
        self.is_matrix = tuning.positions == 1 and self.strides is not None and self.pads is None
        sizes = zip(geo.out_spatial, geo.stride, geo.extent, strict=True)
        self.disjoint = self.pads is None and all(size == 1 or stride >= extent for size, stride, extent in sizes)
        self.all_sites_read = geo.positions * geo.taps == geo.sites
        # Numbers of a sample in the largest buffer, as the layer has them that this one may be a part of.
        windows, sites = tuning.positions * tuning.window, tuning.padded().sites * tuning.in_channels
        results = 0 if self.is_matrix else tuning.positions * tuning.out_channels
        copied = windows if self.strides is None else sites if self.pads else 0
        self.numbers = {False: max(copied, results), True: windows}

    @classmethod
    def of(cls, problem: Problem, x: Tensor, other: Tensor, *, input_grad: bool = False) -> Direct | None:
        """The layer of a problem, made once, if a pass of tensors like these is one block."""
        if "direct" not in problem.launches:
            unshared = problem.geometry.groups == 1 and not problem.geometry.regions
            problem.launches["direct"] = cls(problem) if unshared else None
        direct: Direct | None = problem.launches["direct"]
        if direct is None or x.dtype is not other.dtype or x.dtype is not compute_dtype(x.dtype):
            return None
        if input_grad and not direct.disjoint:
            return None
        if is_single(problem, x.shape[0]):
            return None
        numbers = direct.numbers[input_grad]
        return direct if numbers == 0 or numbers * x.shape[0] * x.itemsize <= block_bytes() else None

    def windows(self, x: Tensor, buffer: Buffer) -> Tensor:
        """The windows of x as matrices `(P, B, D)`: a view, or copied with the longer runs innermost."""
        batch, geo = x.shape[0], self.geo
        x = F.pad(x, self.pads) if self.pads else x
        if self.strides is not None:
            return x.contiguous().as_strided((self.positions, batch, self.window), self.strides)
        out = buffer.take(self.positions, batch, self.window)
        if self.run < batch:
            x, out = x.movedim(0, -1).contiguous(), out.view(self.positions, self.window, batch)
            size, strides = (*geo.out_spatial, *geo.kernel, self.channels, batch), (*self.moves, *self.taps, 1)
            windows = x.as_strided(size, (*(stride * batch for stride in strides), 1))
            return out.view(size).copy_(windows).view(out.shape).transpose(1, 2)
        size = (*geo.out_spatial, batch, *geo.kernel, self.channels)
        windows = x.contiguous().as_strided(size, (*self.moves, self.sample, *self.taps, 1))
        return out.view(size).copy_(windows).view(out.shape)

    def by_position(self, g: Tensor) -> Tensor:
        """A tensor of results as matrices `(P, B, F)`, a view where it is contiguous."""
        return g.reshape(g.shape[0], self.positions, self.filters).transpose(0, 1)


def forward(
    direct: Direct, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, *, store_z: bool
) -> tuple[Tensor, Tensor | None]:
    """y and z: the windows times the filters, then the bias, so that no sum rounds its terms at the bias's size."""
    batch, positions, filters = x.shape[0], direct.positions, direct.filters
    if direct.is_matrix:
        z = _product(direct, x.contiguous(), batch, weight, bias)
    else:
        z = torch.empty((batch, *direct.result), dtype=x.dtype, device=x.device)
        target = z.view(batch, positions, filters)
        with buffers(x, x.dtype, 2) as (patches, results):
            out = results.take(positions, batch, filters)
            multiply(direct.windows(x, patches), weight.reshape(positions, -1, filters), out)
            if bias is None:
                target.copy_(out.transpose(0, 1))
            else:
                bias = bias if bias.ndim == 1 else bias.reshape(positions, filters)
                torch.add(out.transpose(0, 1), bias, out=target)
    y = problem.activation(z)
    return y, (z.clone() if y is z else z) if store_z else None


def bind_forward(
    problem: Problem, x: Tensor, weight: Tensor, size: tuple[int, ...], stride: tuple[int, ...]
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """The forward of one position, bound to tensors like these and a layout of the result; None for other layers."""
    direct = Direct.of(problem, x, weight) if len(x) else None
    if direct is None or not (direct.is_matrix and x.is_contiguous()):
        return None
    batch, act = len(x), problem.activation
    return lambda x, weight, bias: act(_product(direct, x, batch, weight, bias)).as_strided_(size, stride)


def _product(direct: Direct, x: Tensor, batch: int, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The pre-activation of one position, no view: one made without gradients takes no change in place."""
    matrix = x.as_strided((batch, direct.window), direct.strides[1:])  # type: ignore[index]  # of a dense x
    z = torch.mm(matrix, weight.reshape(direct.window, direct.filters)).resize_(batch, *direct.result)
    if bias is not None:
        z += bias
    return z


def weight_grad(direct: Direct, x: Tensor, g: Tensor, dw: Tensor) -> None:
    """dw: the windows times the gradients, summed over the batch."""
    target = dw.view(direct.positions, direct.window, direct.filters)
    with buffers(x, x.dtype, 2) as (patches, results):
        few = few_filters(direct.tuning_filters, len(x))
        out = results.take(*target.mT.shape).mT if few else target
        multiply(direct.windows(x, patches).mT, direct.by_position(g), out)
        if few:
            target.copy_(out)


def input_grad(direct: Direct, g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem) -> None:
    """act(dx + bias), where windows do not overlap: each is written to its sites."""
    with buffers(g, g.dtype, 1) as (results,):
        weight = weight.reshape(direct.positions, direct.window, direct.filters)
        windows = window_gradients(weight, direct.by_position(g), results).movedim(-1, 0)
        windows = windows.view(len(g), *direct.geo.out_spatial, *direct.geo.kernel, direct.channels)
        if not direct.all_sites_read:
            dx.zero_()
        dx.as_strided(windows.shape, (direct.sample, *direct.moves, *direct.taps, 1)).copy_(windows)
    if bias is not None:
        dx += bias
    dx.copy_(problem.activation(dx))
