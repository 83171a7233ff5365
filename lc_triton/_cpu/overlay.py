"""What all windows hold, added to the sites that they read: dimension after dimension.

One dimension has as many additions as windows of neighbours overlap in it, each of many windows at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lc_triton._cpu.workspace import Buffer
from lc_triton.core.geometry import Geometry


def overlay(windows: Tensor, geo: Geometry, sizes: Sequence[int], buffers: tuple[Buffer, Buffer]) -> Tensor:
    """Sites `(B, *sizes, ...)` that windows `(B, *positions, *kernel, ...)` were added to, all of four dimensions.

    Args:
        windows: any strides.
        geo: its stride and dilation say where windows lie.
        sizes: of the sites, from the first position's first tap on.
        buffers: where sites lie; the batch is innermost there if it is in `windows`.
    """
    innermost = windows.stride(0) == 1 and windows.shape[0] > 1
    for d in reversed(range(4)):
        windows = windows.movedim(1 + d, 1 + 2 * d)  # (B, positions before, taps before, positions, taps, sites, ...)
        sites = _overlay(windows, 1 + 2 * d, geo.stride[d], geo.dilation[d], sizes[d], buffers[0], innermost)
        if sites.data_ptr() != windows.data_ptr():
            buffers = buffers[::-1]
        windows = sites
    return windows


def _overlay(
    windows: Tensor, dim: int, stride: int, dilation: int, size: int, buffer: Buffer, innermost: bool
) -> Tensor:
    """The same in one dimension: positions are dimension `dim`, their taps the next one."""
    positions, taps = windows.shape[dim], windows.shape[dim + 1]
    if positions == 1 and taps == size:
        return windows.squeeze(dim)
    if taps == 1 and positions == size:
        return windows.squeeze(dim + 1)
    shape = (*windows.shape[:dim], size, *windows.shape[dim + 2 :])
    sites = buffer.take(*shape[1:], shape[0]).movedim(-1, 0) if innermost else buffer.take(*shape)
    sites.zero_()
    if windows.stride(dim + 1) > windows.stride(dim):  # taps lie before positions
        for tap, start in enumerate(range(0, taps * dilation, dilation)):
            read = slice(start, start + (positions - 1) * stride + 1, stride)
            sites[(slice(None),) * dim + (read,)].add_(windows.select(dim + 1, tap))
        return sites
    apart = -(-((taps - 1) * dilation + 1) // stride)  # positions so far apart do not overlap
    before, (step, *after) = sites.stride()[:dim], sites.stride()[dim:]
    strides = (*before, apart * stride * step, dilation * step, *after)
    for j in range(min(apart, positions)):
        own = windows[(slice(None),) * dim + (slice(j, None, apart),)]
        sites.as_strided(own.shape, strides, j * stride * step).add_(own)
    return sites
