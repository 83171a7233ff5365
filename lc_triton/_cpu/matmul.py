"""The faces as batched matmuls, one matrix a position and group, for layers of any groups but depthwise ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lc_triton._cpu.blocks import (
    Block,
    Layer,
    Outputs,
    Windows,
    compute_dtype,
    input_grad_bytes,
    multiplied,
    part_of,
    parts,
    store,
    store_strip,
)
from lc_triton._cpu.workspace import Buffer, buffers
from lc_triton.core.problem import Problem

# Numbers of a window's row below which copying or adding rows is slow: the batch then lies innermost. The last for the
# input gradient where a window is one row, so that no sum over rows is lost by it.
SHORT_COPIED_ROW, SHORT_ROW, SHORT_ONLY_ROW = 24, 32, 128
# Numbers of all samples' rows up to which a product a row takes longer to start than what it saves in additions.
FEW_NUMBERS = 1024
# Batches which lie innermost in the input gradient by rows: the weights are then multiplied as they lie, 1.3 times as
# fast at 16 and 32 samples. More make no difference, and turning the result takes longer; for 8 and fewer products of
# so few columns take twice as long with AVX-512.
INNERMOST_BATCHES = range(9, 64)
# Activations whose values of a rounded number are the rounded values of the number.
ROUNDED_ALIKE = ("linear", "relu", "relu6")
# Samples that the input gradient has as rows, two at least, not as columns: MKL reads the weights, a transposed matrix
# then, for two rows in a third (AVX-512) of the time that it takes for so few columns, or for one row.
FEW_SAMPLES = 3
# Bytes of a row of positions' windows that the rows before it read as well, from which on those sites are copied once
# for all of them (as in MEC, Cho and Brand 2017). One product a row then takes 20 to 30 us longer to start than what
# less copying saves.
LEAST_SHARED = 1 << 20


def _single(parts: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`(..., G, rows, columns)` as `(..., rows, columns)` where no `_matrices` has to be copied from it."""
    return parts.select(-3, 0) if parts.shape[-3] == 1 and parts.dtype == dtype else parts


def _filters(layer: Layer, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights `(P, D, F)`, or `(P, G, D, F // G)` where their matrices are to be copied."""
    positions, window = layer.geo.positions, layer.geo.window
    if layer.groups == 1 and weight.dtype == dtype:
        return weight.reshape(positions, window, layer.filters)
    return weight.reshape(positions, window, layer.groups, layer.filters).transpose(1, 2)


def _matrices(part: Tensor, buffer: Buffer) -> Tensor:
    """What is `_single`, or `(n, G, rows, columns)` as `(n * G, rows, columns)` in the buffer's dtype."""
    return part if part.ndim == 3 else buffer.take(*part.shape).copy_(part).flatten(0, 1)


def _windows(layer: Layer, x: Tensor, part: slice, *, turned: bool = False) -> Windows:
    """The windows of a part of the batch, the batch innermost where asked for or where that makes the longer runs."""
    batch = part.stop - part.start
    turned = turned or (not layer.flat and layer.geo.kernel[3] * layer.channels < min(SHORT_COPIED_ROW, batch))
    return Windows(layer, part_of(x, part), turned=turned)


def _patches(layer: Layer, windows: Windows, block: Block, buffer: Buffer) -> Sequence[Tensor]:
    """The windows of a block's runs as matrices `(n * G, B, D)`: copied, unless they are that already, as in 1-D.

    Of a block by rows, what the windows of a column read is copied once, and those of each row are views of it.
    """
    dtype = buffer.typed.dtype
    if layer.flat and block.shape[0] == 1 and windows.x.dtype == dtype and dtype not in multiplied():
        return (windows.matrices(block),)
    source = windows.columns(block) if block.by_rows else windows.of(block)
    if windows.turned:
        source = source.movedim(-4 if block.by_rows else 3, -1)
    out, batch = buffer.take(*source.shape).copy_(source), windows.x.shape[0]
    count = layer.groups * (block.shape[1] if block.by_rows else block.positions)
    out = out.view(count, -1, batch).transpose(1, 2) if windows.turned else out.view(count, batch, -1)
    if not block.by_rows:
        return (out,)
    step = layer.geo.stride[2] * layer.geo.kernel[3] * layer.channels
    return out.unfold(2, layer.geo.window, step).unbind(2)


def _shared(layer: Layer, batch: int, dtype: torch.dtype) -> bool:
    """Whether a row of windows has so much in common with the rows before it that it is not copied on its own.

    Products in 16 bits copy matrices that do not lie behind each other, so there each window is copied.
    """
    geo = layer.deciding
    if geo.kernel[:2] != (1, 1) or geo.dilation[2] != 1 or dtype in multiplied():
        return False
    rows = geo.out_spatial[2]
    copied = (rows - 1) * geo.stride[2] + geo.kernel[2]  # rows of sites, instead of KH for each of the rows
    numbers = batch * geo.out_spatial[3] * geo.groups * geo.window // geo.kernel[2]
    return numbers * dtype.itemsize * (rows * geo.kernel[2] - copied) >= LEAST_SHARED * rows


def _blocks(layer: Layer, batch: int, weight: Tensor, dtype: torch.dtype) -> tuple[Block, ...]:
    """The blocks of a forward or a weight gradient."""
    if not _shared(layer, batch, dtype):
        return layer.blocks(_position_bytes(layer, batch, weight, dtype))
    return layer.bands(_window_bytes(layer, batch, dtype), _through_bytes(layer, batch, weight, dtype))


def _window_bytes(layer: Layer, batch: int, dtype: torch.dtype) -> int:
    """Bytes of a position's windows."""
    return batch * layer.groups * layer.geo.window * dtype.itemsize


def _position_bytes(layer: Layer, batch: int, weight: Tensor, dtype: torch.dtype) -> int:
    """Bytes of the largest of a position's matrices that go through a buffer."""
    return max(_window_bytes(layer, batch, dtype), _through_bytes(layer, batch, weight, dtype))


def _through_bytes(layer: Layer, batch: int, weight: Tensor, dtype: torch.dtype) -> int:
    """The same of the matrices but for the window."""
    rows = batch
    if layer.groups > 1 or weight.dtype != dtype:
        rows = max(rows, layer.geo.window)
    return layer.groups * layer.filters * rows * dtype.itemsize


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, z: Tensor | None, problem: Problem) -> None:
    """y and z, of the windows and the filters of each block."""
    layer, dtype = Layer.of(problem), compute_dtype(x.dtype)
    if problem.activation.name in ROUNDED_ALIKE and _native(x.dtype, weight.dtype):
        dtype = x.dtype
    groups, filters, window = layer.groups, layer.filters, layer.geo.window
    weights = _filters(layer, weight, dtype)
    bias = bias if bias is None or bias.dtype == dtype else bias.to(dtype)
    inside: Tensor | None = None
    if bias is not None and dtype in multiplied():  # a sum in 16 bits is rounded where its product ends
        inside, bias = bias.reshape(-1, groups, filters).expand(layer.geo.positions, -1, -1), None
    outputs = Outputs(y, z, problem, bias)
    with buffers(x, dtype, 3) as (patches, converted, results):
        x = layer.spatial(x)
        for part in parts(x.shape[0], groups * window * dtype.itemsize):
            windows, count = _windows(layer, x, part), part.stop - part.start
            for block in _blocks(layer, count, weight, dtype):
                out = results.take(block.positions * groups, count, filters)
                runs = _patches(layer, windows, block, patches)
                targets = (out,) if len(runs) == 1 else out.split(runs[0].shape[0])
                for n, (own, a, b) in enumerate(zip(targets, runs, layer.runs(block, weights), strict=True)):
                    if inside is None:
                        torch.bmm(a, _matrices(b, converted), out=own)
                    else:
                        c = layer.runs(block, inside)[n].reshape(-1, 1, filters)
                        torch.baddbmm(c, a, _matrices(b, converted), out=own)
                outputs.store(part, block, out.view(*block.shape, groups, count, filters).permute(3, 0, 1, 2, 4))


def weight_grad(x: Tensor, g: Tensor, dw: Tensor, problem: Problem) -> None:
    """dw, of the windows and the gradients of each block."""
    layer, dtype = Layer.of(problem), compute_dtype(x.dtype)
    groups, filters, window = layer.groups, layer.filters, layer.geo.window
    native = _native(x.dtype, dw.dtype) and len(parts(x.shape[0], groups * window * x.itemsize)) == 1
    dtype = x.dtype if native else dtype
    gradients = _gradients(layer, g, None if native else dtype)
    dw_positions = _single(dw.view(-1, window, groups, filters).transpose(1, 2), dtype)  # (P, G, D, F // G)
    with buffers(x, dtype, 3) as (patches, converted, results):
        x = layer.spatial(x)
        cut = parts(x.shape[0], groups * window * dtype.itemsize)
        windows = [_windows(layer, x, part, turned=native) for part in cut]
        for block in _blocks(layer, cut[0].stop, dw, dtype):
            totals = targets = layer.runs(block, dw_positions)
            if targets[0].ndim > 3:
                out = results.take(block.positions * groups, window, filters)
                totals = out.split(len(out) // len(targets))
            for n, part in enumerate(cut):
                rights = layer.runs(block, part_of(gradients, part, -2))
                for total, a, b in zip(totals, _patches(layer, windows[n], block, patches), rights, strict=True):
                    _add_product(total, a.transpose(1, 2), _matrices(b, converted), first=n == 0)
            if totals is not targets:
                for target, total in zip(targets, totals, strict=True):
                    target.copy_(total.view(target.shape))


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem) -> None:
    """act(dx + bias), by rows or by windows."""
    layer, dtype = Layer.of(problem), compute_dtype(g.dtype)
    row, rows = layer.geo.kernel[3] * layer.channels, math.prod(layer.geo.kernel[:3])
    window_bytes = _position_bytes(layer, len(g), weight, dtype)
    small = problem.tuning_geometry.positions * window_bytes <= input_grad_bytes()
    short = row < (SHORT_ROW if rows > 1 else SHORT_ONLY_ROW) and layer.apart > 1
    few = len(g) <= FEW_SAMPLES or (rows > 1 and row * len(g) <= FEW_NUMBERS)
    by = _by_windows if small or short or few else _by_rows
    if len(g) and len(parts(len(g), g[0].numel() * dtype.itemsize)) == 1:  # at once, not for each row of taps
        g = g.to(dtype)
    by(layer, g, weight, bias, dx, problem)


def _native(*dtypes: torch.dtype) -> bool:
    """Whether products of these dtypes are left to the CPU's own instructions for 16 bits."""
    return len(set(dtypes)) == 1 and dtypes[0] in multiplied()


def _gradients(layer: Layer, g: Tensor, dtype: torch.dtype | None) -> Tensor:
    """g as `(P, G, B, F // G)`, a view where g is contiguous, `_single` unless its matrices are to be copied."""
    parts = g.contiguous().view(g.shape[0], -1, layer.groups, layer.filters).permute(1, 2, 0, 3)
    return _single(parts, dtype)


def _by_rows(layer: Layer, g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem) -> None:
    """Row of sites after row: what every row of taps that meets it gives is summed, then laid over each other.

    The first sum costs no memory traffic of its own, for the matmul adds to its result; only rows of windows are added
    one by one, and each lies in memory as its sites do. By their names, all have the batch as the last dimension.
    """
    geo, dtype = layer.geo, compute_dtype(g.dtype)
    groups, filters, channels = layer.groups, layer.filters, layer.channels
    width, across = geo.kernel[3], geo.out_spatial[3]
    gradients = _gradients(layer, g, dtype).unflatten(0, (-1, across)).transpose(-1, -2)  # (rows, OW, G, F // G, B)
    weights = weight.reshape(len(gradients), across, -1, width * channels, groups, filters).permute(0, 2, 1, 4, 3, 5)
    by_taps = [own.unbind(0) for own in _single(weights, dtype).unbind(0)]  # (OW, G, KW * C // G, F // G) each
    line_bytes = layer.padded[3] * geo.in_channels * dtype.itemsize
    row_bytes = groups * width * channels * dtype.itemsize  # of a window
    with buffers(g, dtype, 4) as (left, right, results, lines):
        for part in parts(g.shape[0], line_bytes + row_bytes):
            batch, own_gradients = part.stop - part.start, part_of(gradients, part, -1).unbind(0)
            inner = batch in INNERMOST_BATCHES
            for strip in layer.strips(batch * row_bytes):
                line = _batch_last(lines, inner, len(strip.rows), layer.padded[3], groups, channels, batch).zero_()
                for columns in strip.columns:
                    count = (columns.stop - columns.start) * groups
                    out = _batch_last(results, inner, len(strip.rows), count, width * channels, batch, outer=2)
                    for own, readers in zip(out, strip.readers, strict=True):
                        if not readers:
                            own.zero_()
                        for n, (row, taps) in enumerate(readers):
                            a = _matrices(part_of(by_taps[row][taps], columns), left)
                            b = _matrices(part_of(own_gradients[row], columns), right)
                            _add_product(own, a, b, first=n == 0)
                    _overlay(layer, line, out.view(len(out), -1, groups, width, channels, batch), columns.start)
                store_strip(layer, line.movedim(-1, 1), strip, part, bias, dx, problem)


def _batch_last(buffer: Buffer, inner: bool, *shape: int, outer: int = 1) -> Tensor:
    """A tensor whose last dimension is the batch: in memory too, or dimension `outer` there."""
    if inner:
        return buffer.take(*shape)
    return buffer.take(*shape[:outer], shape[-1], *shape[outer:-1]).movedim(outer, -1)


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """total = a @ b where it is the first product, else total += a @ b."""
    if not total.is_contiguous():  # torch would go through the matrices one by one
        total, a, b = total.mT, b.mT, a.mT
    if first and a.shape[2] == 1:  # the weights of one sample: twice as fast as a matmul of depth 1
        torch.mul(a, b, out=total)
    elif first:
        torch.bmm(a, b, out=total)
    else:
        total.baddbmm_(a, b)


def _overlay(layer: Layer, lines: Tensor, windows: Tensor, first: int) -> None:
    """Add rows of windows `(R, n, G, KW, C // G, B)` to lines of sites `(R, IW, G, C // G, B)`, from column `first` on.

    Positions `layer.apart` columns apart do not overlap: all of those are added at once.
    """
    geo = layer.geo
    line, site, group, channel, sample = lines.stride()
    step = geo.stride[3] * site
    stride = (line, layer.apart * step, group, geo.dilation[3] * site, channel, sample)
    for j in range(min(layer.apart, windows.shape[1])):
        own = windows[:, j :: layer.apart]
        lines.as_strided(own.shape, stride, (first + j) * step).add_(own)


def _by_windows(layer: Layer, g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem) -> None:
    """Whole windows of a block at once, laid over each other with the batch innermost: long runs for short windows."""
    geo, dtype = layer.geo, compute_dtype(g.dtype)
    groups, window = layer.groups, geo.window
    gradients = _gradients(layer, g, dtype)
    weights = _filters(layer, weight, dtype)
    inner = tuple(slice(low, low + size) for (low, _), size in zip(geo.padding, geo.in_spatial, strict=True))
    sample_bytes = (math.prod(layer.padded) * geo.in_channels + groups * window) * dtype.itemsize
    with buffers(g, dtype, 4) as (left, right, results, totals):
        for part in parts(g.shape[0], sample_bytes):
            batch = part.stop - part.start
            total = totals.take(*layer.padded, groups, layer.channels, batch).zero_()
            for block in layer.blocks(_position_bytes(layer, batch, weight, dtype), input_grad_bytes()):
                a = _matrices(part_of(weights, block.span), left)
                b = _matrices(part_of(part_of(gradients, block.span), part, -2), right)
                out = _windows_of(a, b, results)
                _scatter(layer, total, out.view(*block.shape, groups, -1, geo.kernel[3], layer.channels, batch), block)
            result = total[inner].flatten(4, 5).movedim(-1, 0).reshape(batch, *dx.shape[1:])
            if bias is not None:
                result = result + bias
            store(dx[part], problem.activation(result))


def _windows_of(weights: Tensor, gradients: Tensor, buffer: Buffer) -> Tensor:
    """Weights `(n, D, F)` times gradients `(n, B, F)`: `(n, D, B)`, any strides."""
    (count, window, _), batch = weights.shape, gradients.shape[1]
    if batch > FEW_SAMPLES:
        return torch.bmm(weights, gradients.transpose(1, 2), out=buffer.take(count, window, batch))
    rows = gradients.expand(-1, 2, -1).contiguous() if batch == 1 else gradients
    out = torch.bmm(rows, weights.transpose(1, 2), out=buffer.take(count, len(rows[0]), window))
    return out[:, :batch].transpose(1, 2)


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
