"""The faces as batched matmuls, one matrix a position and group, for layers of any groups but depthwise ones."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from lc_triton._cpu.blocks import (
    Block,
    Layer,
    Outputs,
    Windows,
    block_bytes,
    compute_dtype,
    part_of,
    parts,
    product_and_bias,
    store_strip,
)
from lc_triton._cpu.workspace import Buffer, buffers
from lc_triton._problem import Problem

# Numbers of a window's row below which copying or adding rows is slow: the batch then lies innermost. The last for the
# input gradient where a window is one row, so that no sum over rows is lost by it.
SHORT_COPIED_ROW, SHORT_ROW, SHORT_ONLY_ROW = 24, 32, 128
# Numbers of all samples' rows up to which a product a row takes longer to start than what it saves in additions.
FEW_NUMBERS = 1024
# Times the usual block for the input gradient, so that sites are added to less often (a third of all_tnn_l1's).
WIDER = 2


def _matrices(part: Tensor, buffer: Buffer) -> Tensor:
    """`(n, G, rows, columns)` as `(n * G, rows, columns)` in the buffer's dtype: a view where it can be one."""
    n, groups, rows, columns = part.shape
    if groups == 1 and part.dtype == buffer.typed.dtype:
        return part[:, 0]
    out = buffer.take(n, groups, rows, columns)
    return out.copy_(part).view(n * groups, rows, columns)


def _windows(layer: Layer, x: Tensor, part: slice) -> Windows:
    """The windows of a part of the batch, the batch innermost where that makes the longer runs."""
    batch = part.stop - part.start
    turned = not layer.flat and layer.geo.kernel[3] * layer.channels < min(SHORT_COPIED_ROW, batch)
    return Windows(layer, part_of(x, part), turned=turned)


def _patches(layer: Layer, windows: Windows, block: Block, buffer: Buffer) -> Tensor:
    """A block's windows as matrices `(n * G, B, D)`: copied out, unless they are matrices already, as in 1-D."""
    if layer.flat and block.shape[0] == 1 and windows.x.dtype == buffer.typed.dtype:
        return windows.matrices(block)
    source = windows.of(block)
    if windows.turned:
        source = source.movedim(3, -1)
    out = buffer.take(*source.shape).copy_(source)
    batch = len(windows.x)
    if windows.turned:
        return out.view(block.positions * layer.groups, -1, batch).transpose(1, 2)
    return out.view(block.positions * layer.groups, batch, -1)


def _position_bytes(layer: Layer, batch: int, weight: Tensor, dtype: torch.dtype) -> int:
    """Bytes of the largest of a position's matrices that go through a buffer."""
    window, filters = layer.geo.window, layer.filters
    through = batch * max(window, filters)
    if layer.groups > 1 or weight.dtype != dtype:
        through = max(through, window * filters)
    return layer.groups * through * dtype.itemsize


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, z: Tensor | None, problem: Problem) -> None:
    """y and z, of the windows and the filters of each block."""
    layer, dtype = Layer.of(problem), compute_dtype(x.dtype)
    groups, filters, window = layer.groups, layer.filters, layer.geo.window
    weights = weight.reshape(-1, window, groups, filters).transpose(1, 2)  # (P, G, D, F // G)
    biases = None
    if bias is not None:
        biases = bias.to(dtype).reshape(-1, groups, filters).expand(layer.geo.positions, -1, -1)
    outputs = Outputs(y, z, problem)
    with buffers(x, dtype, 3) as (patches, converted, results):
        x = layer.spatial(x)
        for part in parts(x.shape[0], groups * window * dtype.itemsize):
            windows, count = _windows(layer, x, part), part.stop - part.start
            for block in layer.blocks(_position_bytes(layer, count, weight, dtype)):
                out = results.take(block.positions * groups, count, filters)
                a, b = _patches(layer, windows, block, patches), _matrices(part_of(weights, block.span), converted)
                if biases is None:
                    torch.bmm(a, b, out=out)
                else:
                    product_and_bias(a, b, part_of(biases, block.span).reshape(-1, 1, filters), out)
                outputs.store(part, block, out.view(-1, groups, count, filters).permute(2, 0, 1, 3))


def weight_grad(x: Tensor, g: Tensor, dw: Tensor, problem: Problem) -> None:
    """dw, of the windows and the gradients of each block."""
    layer, dtype = Layer.of(problem), compute_dtype(x.dtype)
    groups, filters, window = layer.groups, layer.filters, layer.geo.window
    gradients = _gradients(layer, g)
    dw_positions = dw.view(-1, window, groups, filters).transpose(1, 2)  # (P, G, D, F // G)
    direct = groups == 1 and dw.dtype == dtype
    with buffers(x, dtype, 3) as (patches, converted, results):
        x = layer.spatial(x)
        cut = parts(x.shape[0], groups * window * dtype.itemsize)
        windows = [_windows(layer, x, part) for part in cut]
        for block in layer.blocks(_position_bytes(layer, cut[0].stop, dw, dtype)):
            target = part_of(dw_positions, block.span)
            out = target[:, 0] if direct else results.take(block.positions * groups, window, filters)
            for n, part in enumerate(cut):
                left = _patches(layer, windows[n], block, patches).transpose(1, 2)
                right = _matrices(part_of(part_of(gradients, block.span), part, 2), converted)
                _add_product(out, left, right, first=n == 0)
            if not direct:
                target.copy_(out.view(target.shape))


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem) -> None:
    """act(dx + bias), by rows or by windows."""
    layer, dtype = Layer.of(problem), compute_dtype(g.dtype)
    row, rows = layer.geo.kernel[3] * layer.channels, math.prod(layer.geo.kernel[:3])
    small = problem.deciding.positions * _position_bytes(layer, len(g), weight, dtype) <= block_bytes()
    short = row < (SHORT_ROW if rows > 1 else SHORT_ONLY_ROW) and layer.apart > 1
    few = rows > 1 and row * len(g) <= FEW_NUMBERS
    by = _by_windows if small or short or few else _by_rows
    by(layer, g, weight, bias, dx, problem)


def _gradients(layer: Layer, g: Tensor) -> Tensor:
    """g as `(P, G, B, F // G)`, a view where g is contiguous."""
    return g.contiguous().view(g.shape[0], -1, layer.groups, layer.filters).permute(1, 2, 0, 3)


def _by_rows(layer: Layer, g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem) -> None:
    """Row of sites after row: what every row of taps that meets it gives is summed, then laid over each other.

    The first sum costs no memory traffic of its own, for the matmul adds to its result; only rows of windows are added
    one by one, and each lies in memory as its sites do.
    """
    geo, dtype = layer.geo, compute_dtype(g.dtype)
    groups, filters, channels, width = layer.groups, layer.filters, layer.channels, geo.kernel[3]
    gradients = _gradients(layer, g)
    weights = weight.reshape(geo.positions, -1, width * channels, groups, filters).permute(1, 0, 3, 4, 2)
    line_bytes = layer.padded[3] * geo.in_channels * dtype.itemsize
    row_bytes = groups * width * channels * dtype.itemsize  # of a window
    with buffers(g, dtype, 4) as (left, right, results, lines):
        for part in parts(g.shape[0], line_bytes + row_bytes):
            batch = part.stop - part.start
            for strip in layer.strips(batch * row_bytes // WIDER):
                line = lines.take(len(strip.rows), batch, layer.padded[3], groups, channels).zero_()
                for columns in strip.columns:
                    count = (columns.stop - columns.start) * groups
                    out = results.take(len(strip.rows), count, batch, width * channels)
                    for own, readers in zip(out, strip.readers, strict=True):
                        if not readers:
                            own.zero_()
                        for n, (row, taps) in enumerate(readers):
                            start = row * geo.out_spatial[3]
                            span = slice(start + columns.start, start + columns.stop)
                            own_gradients = part_of(part_of(gradients, span), part, 2)
                            a, b = _matrices(own_gradients, left), _matrices(weights[taps, span], right)
                            _add_product(own, a, b, first=n == 0)
                    _overlay(layer, line, out.view(len(out), -1, groups, batch, width, channels), columns.start)
                store_strip(layer, line, strip, part, bias, dx, problem)


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """total = a @ b where it is the first product, else total += a @ b."""
    if first and a.shape[2] == 1:  # the weights of one sample: twice as fast as a matmul of depth 1
        torch.mul(a, b, out=total)
    elif first:
        torch.bmm(a, b, out=total)
    else:
        total.baddbmm_(a, b)


def _overlay(layer: Layer, lines: Tensor, windows: Tensor, first: int) -> None:
    """Add rows of windows `(R, n, G, B, KW, C // G)` to lines of sites `(R, B, IW, G, C // G)`, from column `first` on.

    Positions `layer.apart` columns apart do not overlap: all of those are added at once.
    """
    geo = layer.geo
    line, batch, site, group, channel = lines.stride()
    step = geo.stride[3] * site
    stride = (line, layer.apart * step, group, batch, geo.dilation[3] * site, channel)
    for j in range(min(layer.apart, windows.shape[1])):
        own = windows[:, j :: layer.apart]
        lines.as_strided(own.shape, stride, (first + j) * step).add_(own)


def _by_windows(layer: Layer, g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem) -> None:
    """Whole windows of a block at once, laid over each other with the batch innermost: long runs for short windows."""
    geo, dtype = layer.geo, compute_dtype(g.dtype)
    groups, window = layer.groups, geo.window
    gradients = _gradients(layer, g)
    weights = weight.reshape(geo.positions, window, groups, layer.filters).transpose(1, 2)
    inner = tuple(slice(low, low + size) for (low, _), size in zip(geo.padding, geo.in_spatial, strict=True))
    sample_bytes = (math.prod(layer.padded) * geo.in_channels + groups * window) * dtype.itemsize
    with buffers(g, dtype, 4) as (left, right, results, totals):
        for part in parts(g.shape[0], sample_bytes):
            batch = part.stop - part.start
            total = totals.take(*layer.padded, groups, layer.channels, batch).zero_()
            for block in layer.blocks(_position_bytes(layer, batch, weight, dtype) // WIDER):
                out = results.take(block.positions * groups, window, batch)
                b = _matrices(part_of(part_of(gradients, block.span), part, 2), right).transpose(1, 2)
                torch.bmm(_matrices(part_of(weights, block.span), left), b, out=out)
                out = out.view(*block.shape, groups, -1, geo.kernel[3], layer.channels, batch)
                _scatter(layer, total, out, block)
            result = total[inner].flatten(4, 5).movedim(-1, 0).reshape(batch, *dx.shape[1:])
            if bias is not None:
                result = result + bias
            dx[part] = problem.activation(result)


def _scatter(layer: Layer, total: Tensor, windows: Tensor, block: Block) -> None:
    """Add a block's windows `(rows, columns, G, taps of a column, KW, C // G, B)` to all sites `(..., G, C // G, B)`.

    Positions `layer.apart` columns apart do not overlap: for each row of taps, all of those are added at once.
    """
    geo = layer.geo
    *steps, group, channel, sample = total.stride()
    step = geo.stride[3] * steps[3]
    stride = (geo.stride[2] * steps[2], layer.apart * step, group, geo.dilation[3] * steps[3], channel, sample)
    first = sum(o * s * n for o, s, n in zip(block.first, geo.stride, steps, strict=True))
    for row, tap in enumerate(itertools.product(*map(range, geo.kernel[:3]))):
        start = first + sum(k * d * s for k, d, s in zip(tap, geo.dilation[:3], steps[:3], strict=True))
        for j in range(min(layer.apart, block.shape[1])):
            own = windows[:, j :: layer.apart, :, row]
            total.as_strided(own.shape, stride, start + j * step).add_(own)
