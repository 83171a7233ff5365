"""The three faces in pure torch, for CPU tensors (and any device torch knows): a few output positions at a time.

The windows of some positions are copied into one small buffer that stays in cache and multiplied with those
positions' filters by a batched matmul, so that the full patch matrix, T times the input, never exists. 16-bit tensors
are converted to float32 block by block: products accumulate in float32 and every result is rounded once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lc_triton._backend import autocast_enabled
from lc_triton._geometry import Geometry
from lc_triton._problem import Problem

# Bytes of one block of windows, or of its filters where those are more: within a core's share of the last-level cache
# on common servers.
BLOCK_BYTES = 4 << 20

_Face = TypeVar("_Face", bound=Callable[..., None])


def _plain(face: _Face) -> _Face:
    """Run a face without autograd or autocast: both would change what the matmuls inside it compute."""

    @wraps(face)
    def run(*args: Any) -> None:
        device = args[0].device.type
        with torch.no_grad():
            if autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    face(*args)
            else:
                face(*args)

    return run  # type: ignore[return-value]  # wraps keeps the signature; typing cannot say so


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _pad(x: Tensor, geo: Geometry) -> Tensor:
    """x with zeros around it, contiguous."""
    if not any(low or high for low, high in geo.padding):
        return x.contiguous()
    return F.pad(x, [0, 0] + [side for pair in reversed(geo.padding) for side in pair]).contiguous()


_Block: TypeAlias = tuple[int, int, slice, slice]


class _Blocks:
    """A layer cut into blocks of output rows, or of parts of one row, with each tensor's part of a block as a view."""

    def __init__(self, geo: Geometry, batch: int, itemsize: int) -> None:
        self.geo = geo.as_4d()
        self.batch = batch
        self.groups = geo.groups
        self.channels = geo.in_channels // geo.groups
        self.filters = geo.out_channels // geo.groups
        self.padded = self.geo.padded().in_spatial
        position_bytes = geo.groups * geo.window * max(batch, self.filters) * itemsize
        positions = max(1, BLOCK_BYTES // position_bytes)
        height, width = self.geo.out_spatial[2:]
        self.rows = max(1, min(height, positions // width))
        self.columns = -(-width // -(-width // positions))  # a row in parts of about the same size

    def __iter__(self) -> Iterator[_Block]:
        """Each block as (o0, o1, rows, columns)."""
        o0, o1, height, width = self.geo.out_spatial
        for a, b in itertools.product(range(o0), range(o1)):
            for row in range(0, height, self.rows):
                rows = slice(row, min(row + self.rows, height))
                for column in range(0, width, self.columns):
                    yield a, b, rows, slice(column, min(column + self.columns, width))

    def span(self, block: _Block) -> slice:
        """The block's positions in row-major order: whole rows, or a part of one."""
        a, b, rows, columns = block
        _, o1, height, width = self.geo.out_spatial
        start = (a * o1 + b) * height * width
        return slice(start + rows.start * width + columns.start, start + (rows.stop - 1) * width + columns.stop)

    def windows(self, padded: Tensor) -> Tensor:
        """All windows of a padded input as a view `(O0, O1, OH, OW, G, B, K0, K1, KH, KW, C // G)`."""
        geo = self.geo
        steps = [math.prod(self.padded[d + 1 :]) * geo.in_channels for d in range(4)]
        size = (*geo.out_spatial, self.groups, self.batch, *geo.kernel, self.channels)
        stride = (
            *(s * step for s, step in zip(geo.stride, steps, strict=True)),
            self.channels,
            math.prod(self.padded) * geo.in_channels,
            *(d * step for d, step in zip(geo.dilation, steps, strict=True)),
            1,
        )
        return padded.as_strided(size, stride)

    def patches(self, windows: Tensor, block: _Block, dtype: torch.dtype) -> Tensor:
        """The block's windows copied out: `(positions * G, B, D)`."""
        part = windows[block].to(dtype, memory_format=torch.contiguous_format, copy=True)
        return part.reshape(-1, self.batch, self.geo.window)

    def weights(self, weight: Tensor, block: _Block, dtype: torch.dtype) -> Tensor:
        """The block's filters, `(positions * G, D, F // G)`; a view where groups == 1 and the dtype fits."""
        part = weight.reshape(-1, self.geo.window, self.groups, self.filters)[self.span(block)]
        return part.to(dtype).transpose(1, 2).reshape(-1, self.geo.window, self.filters)

    def outputs(self, g: Tensor, block: _Block, dtype: torch.dtype) -> Tensor:
        """The block's part of a tensor over output positions, `(positions * G, B, F // G)`."""
        part = g.reshape(self.batch, -1, self.groups, self.filters)[:, self.span(block)]
        return part.permute(1, 2, 0, 3).to(dtype).reshape(-1, self.batch, self.filters)


def _position_major(blocks: _Blocks, z: Tensor) -> Tensor:
    """`(positions * G, B, F // G)` as `(positions, B, F)`."""
    z = z.reshape(-1, blocks.groups, blocks.batch, blocks.filters).transpose(1, 2)
    return z.reshape(-1, blocks.batch, blocks.groups * blocks.filters)


@_plain
def forward(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, z: Tensor | None, problem: Problem) -> None:
    """Write y = act(x . w + bias), and the pre-activation into z unless it is None."""
    geo, compute = problem.geometry, _compute_dtype(x.dtype)
    blocks = _Blocks(geo, x.shape[0], compute.itemsize)
    windows = blocks.windows(_pad(x, geo))
    y_positions, z_positions = (t if t is None else t.view(x.shape[0], -1, geo.out_channels) for t in (y, z))
    bias_positions = None if bias is None else bias.reshape(-1, 1, geo.out_channels)
    assert y_positions is not None
    for block in blocks:
        span = blocks.span(block)
        out = torch.bmm(blocks.patches(windows, block, compute), blocks.weights(weight, block, compute))
        out = _position_major(blocks, out)
        if bias_positions is not None:
            out += bias_positions if bias_positions.shape[0] == 1 else bias_positions[span]
        if z_positions is not None:
            z_positions[:, span] = out.transpose(0, 1)
        y_positions[:, span] = problem.activation(out).transpose(0, 1)


@_plain
def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem) -> None:
    """Write act(dx + bias), where dx gathers what each site gave to the windows that read it."""
    geo, compute = problem.geometry, _compute_dtype(g.dtype)
    batch = g.shape[0]
    blocks = _Blocks(geo, batch, compute.itemsize)
    geo4, padded = blocks.geo, blocks.padded
    total = g.new_zeros((batch, *padded, geo.in_channels), dtype=compute)
    for block in blocks:
        a, b, rows, columns = block
        filters = blocks.weights(weight, block, compute)
        part = torch.bmm(blocks.outputs(g, block, compute), filters.transpose(1, 2))
        part = part.reshape(rows.stop - rows.start, -1, blocks.groups, batch, geo.taps, blocks.channels)
        part = part.permute(4, 3, 0, 1, 2, 5)  # taps, B, rows, columns, G, C // G
        t = 0
        for k0 in range(geo4.kernel[0]):
            for k1 in range(geo4.kernel[1]):
                plane = total[
                    :, a * geo4.stride[0] + k0 * geo4.dilation[0], b * geo4.stride[1] + k1 * geo4.dilation[1]
                ].unflatten(-1, (blocks.groups, blocks.channels))
                for kh in range(geo4.kernel[2]):
                    for kw in range(geo4.kernel[3]):
                        plane[:, _sites(rows, kh, geo4, 2), _sites(columns, kw, geo4, 3)] += part[t]
                        t += 1
    inner = tuple(slice(low, low + size) for (low, _), size in zip(geo4.padding, geo4.in_spatial, strict=True))
    index = (slice(None), *inner)
    result = total[index].reshape(dx.shape)
    dx.copy_(problem.activation(result if bias is None else result + bias))


def _sites(positions: slice, tap: int, geo: Geometry, dim: int) -> slice:
    """The padded sites that one tap of these positions reads."""
    start, step = positions.start * geo.stride[dim] + tap * geo.dilation[dim], geo.stride[dim]
    return slice(start, start + (positions.stop - positions.start - 1) * step + 1, step)


@_plain
def weight_grad(x: Tensor, g: Tensor, dw: Tensor, db: Tensor | None, problem: Problem) -> None:
    """Write dw and, unless it is None, the bias gradient of each position."""
    geo, compute = problem.geometry, _compute_dtype(x.dtype)
    blocks = _Blocks(geo, x.shape[0], compute.itemsize)
    windows = blocks.windows(_pad(x, geo))
    dw_positions = dw.view(-1, geo.window, blocks.groups, blocks.filters)
    for block in blocks:
        patches = blocks.patches(windows, block, compute)
        part = torch.bmm(patches.transpose(1, 2), blocks.outputs(g, block, compute))
        dw_positions[blocks.span(block)] = part.reshape(-1, blocks.groups, geo.window, blocks.filters).transpose(1, 2)
    if db is not None:
        db.copy_(g.sum(0, dtype=compute))
