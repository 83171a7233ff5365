"""The numbers of all windows added up at the sites that they read, dimension after dimension.

One dimension has as many additions as a window has taps in it, each of all windows at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lc_triton._cpu.workspace import Buffer
from lc_triton.core.geometry import Geometry


def overlay(windows: Tensor, geo: Geometry, sizes: Sequence[int], buffers: tuple[Buffer, Buffer]) -> Tensor:
    """Sites `(B, *sizes, ...)`, the sums of windows `(B, *positions, *kernel, ...)`, in four dimensions.

    The sites are those from the first position's first tap on, in a buffer. The batch is innermost if it is in windows.
    """
    innermost = windows.stride(0) == 1 and windows.shape[0] > 1
    for d, stride, dilation, size in reversed(list(zip(range(4), geo.stride, geo.dilation, sizes, strict=True))):
        dim = 1 + 2 * d
        windows = windows.movedim(1 + d, dim)  # (B, positions before, taps before, positions, taps, sites, ...)
        positions, taps = windows.shape[dim : dim + 2]
        if positions == 1 and taps == size:
            windows = windows.squeeze(dim)
        elif taps == 1 and positions == size:
            windows = windows.squeeze(dim + 1)
        else:
            shape = *windows.shape[1:dim], size, *windows.shape[dim + 2 :]
            batch = windows.shape[0]
            sites = buffers[0].take(*shape, batch).movedim(-1, 0) if innermost else buffers[0].take(batch, *shape)
            sites.zero_()
            read = sites.unfold(dim, (taps - 1) * dilation + 1, stride)[..., ::dilation]
            for target, tap in zip(read.unbind(-1), windows.unbind(dim + 1), strict=True):
                target.add_(tap)
            windows, buffers = sites, buffers[::-1]
    return windows
