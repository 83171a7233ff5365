"""The input gradient band by band: slices of positions along one dimension, and the sites that they read.

Sites that the next band reads as well are carried over to it; the others are finished, and written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from lc_triton._cpu.blocks import Block, Layer, block_bytes, even_parts
from lc_triton._cpu.workspace import Buffer
from lc_triton.core.activations import Activation
from lc_triton.core.geometry import Geometry

# Of a band's positions and the sizes of the sites that they read: the sums `(B, *sizes, C)` of these, any strides.
Sums: TypeAlias = Callable[[Block, tuple[int, ...]], Tensor]


def band_dimension(geo: Geometry) -> int:
    """The dimension that bands are slices of: the first with several positions."""
    return next((d for d, size in enumerate(geo.out_spatial) if size > 1), 3)


def slice_positions(geo: Geometry) -> int:
    """Positions of the thinnest band."""
    return math.prod(geo.out_spatial[band_dimension(geo) + 1 :])


def write_bands(
    layer: Layer, position_bytes: int, sites_of: Sums, buffer: Buffer, bias: Tensor | None, dx: Tensor, act: Activation
) -> None:
    """act(dx + bias), written band after band.

    Args:
        layer: the layer.
        position_bytes: of what a position puts into the largest buffer; a band has about `block_bytes()`.
        sites_of: the sums, which may change afterwards.
        buffer: for what one band leaves to the next.
        bias: `(*in_spatial, C)` or `(C,)`.
        dx: `(B, *in_spatial, C)`, contiguous.
        act: the activation.
    """
    geo, dim, inner = layer.geo, band_dimension(layer.geo), slice_positions(layer.geo)
    stride, (low, _), height = geo.stride[dim], geo.padding[dim], geo.in_spatial[dim]
    inside = [slice(None), *(slice(low, low + n) for (low, _), n in zip(geo.padding, geo.in_spatial, strict=True))]
    dx = dx.view(len(dx), *geo.in_spatial, geo.in_channels)
    bias = bias if bias is None or bias.ndim == 1 else bias.view(1, *dx.shape[1:])
    carried: Tensor | None = None
    for rows in even_parts(geo.out_spatial[dim], max(1, block_bytes() // max(1, inner * position_bytes))):
        count, start, last = rows.stop - rows.start, rows.start * stride, rows.stop == geo.out_spatial[dim]
        size = layer.padded[dim] - start if last else max((count - 1) * stride + geo.extent[dim], count * stride)
        shape, sizes = list(geo.out_spatial), list(layer.padded)
        shape[dim], sizes[dim] = count, size
        block = Block((), tuple(shape), slice(rows.start * inner, rows.stop * inner))
        sites = sites_of(block, tuple(sizes))
        if carried is not None:
            both = sites.narrow(1 + dim, 0, carried.shape[1 + dim])
            both += carried
        finished = size if last else count * stride
        first, end = max(start, low), min(start + finished, low + height)
        if first < end:
            inside[1 + dim] = slice(first - start, end - start)
            result = sites[tuple(inside)]
            if bias is not None:
                result = result + (bias if bias.ndim == 1 else bias.narrow(1 + dim, first - low, end - first))
            dx.narrow(1 + dim, first - low, end - first).copy_(act(result))
        carried = None
        if size > finished:
            rest = sites.narrow(1 + dim, finished, size - finished)
            carried = buffer.take(*rest.shape[1:], rest.shape[0]).movedim(-1, 0).copy_(rest)
