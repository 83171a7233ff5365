"""The passes as batched matmuls, one matrix a position and group, for layers of any groups but depthwise ones."""

from __future__ import annotations

import torch
from torch import Tensor

from lc_triton._cpu.bands import slice_positions, write_bands
from lc_triton._cpu.blocks import (
    Block,
    Layer,
    OnBlock,
    Outputs,
    Windows,
    compute_dtype,
    merged_stride,
    multiplied,
    part_of,
    parts,
)
from lc_triton._cpu.overlay import overlay
from lc_triton._cpu.products import few_filters, multiply, window_gradients
from lc_triton._cpu.workspace import Buffer, buffers
from lc_triton.core.problem import Problem

# Activations whose values of a rounded number are the rounded values of the number.
ROUNDED_ALIKE = ("linear", "relu", "relu6")


def _single(parts: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`(..., G, rows, columns)` as `(..., rows, columns)` where no `_matrices` has to be copied from it."""
    return parts.select(-3, 0) if parts.shape[-3] == 1 and parts.dtype == dtype else parts


def _filters(layer: Layer, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights `(P, D, F)`, or `(P, G, D, F // G)` where their matrices are to be copied."""
    sizes = layer.geo.positions, layer.geo.window, layer.groups, layer.filters
    return _single(weight.reshape(sizes).transpose(1, 2), dtype)


def _matrices(part: Tensor, buffer: Buffer) -> Tensor:
    """What is `_single`, or `(n, G, rows, columns)` as `(n * G, rows, columns)` in the buffer's dtype."""
    return part if part.ndim == 3 else buffer.take(*part.shape).copy_(part).flatten(0, 1)


def _windows(layer: Layer, x: Tensor, part: slice, *, innermost: bool = False) -> Windows:
    """The windows of a part of the batch, which is innermost where asked for or where that makes the longer runs."""
    batch, run = part.stop - part.start, layer.geo.kernel[3] * layer.channels
    return Windows(layer, part_of(x, part), innermost=innermost or (not layer.flat and run < batch))


def _patches(layer: Layer, windows: Windows, block: Block, buffer: Buffer) -> Tensor:
    """The windows of a block as matrices `(n * G, B, D)`: copied, unless they lie as such, as in 1-D."""
    source, dtype, batch = windows.of(block), buffer.typed.dtype, windows.x.shape[0]
    if layer.flat and windows.x.dtype == dtype and dtype not in multiplied():
        position = merged_stride(block.shape, source.stride()[:4])
        if position is not None:
            return source.as_strided((block.positions, batch, layer.geo.window), (position, source.stride(5), 1))
    source = source.movedim(5, -1) if windows.innermost else source
    out, count = buffer.take(*source.shape).copy_(source), block.positions * layer.groups
    return out.view(count, -1, batch).transpose(1, 2) if windows.innermost else out.view(count, batch, -1)


def _position_bytes(layer: Layer, batch: int, weight: Tensor, dtype: torch.dtype) -> int:
    """Bytes of the largest of a position's matrices that go through a buffer."""
    copied = layer.groups > 1 or weight.dtype != dtype
    results = layer.filters * max(batch, layer.geo.window if copied else 0)
    return layer.groups * dtype.itemsize * max(batch * layer.geo.window, results)


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
            for block in layer.blocks(_position_bytes(layer, count, weight, dtype)):
                out = results.take(block.positions * groups, count, filters)
                a, b = _patches(layer, windows, block, patches), _matrices(part_of(weights, block.span), converted)
                if inside is None:
                    multiply(a, b, out)
                else:
                    torch.baddbmm(part_of(inside, block.span).reshape(-1, 1, filters), a, b, out=out)
                outputs.store(part, block, out.view(block.positions, groups, count, filters).permute(2, 0, 1, 3))


def weight_grad(x: Tensor, g: Tensor, dw: Tensor, problem: Problem, on_block: OnBlock | None = None) -> None:
    """dw, of the windows and the gradients of each block, or what `on_block` makes of it; dw stays as it is then."""
    layer, dtype = Layer.of(problem), compute_dtype(x.dtype)
    groups, filters, window = layer.groups, layer.filters, layer.geo.window
    native = _native(x.dtype, dw.dtype) and len(parts(x.shape[0], groups * window * x.itemsize)) == 1
    dtype = x.dtype if native else dtype
    gradients = _gradients(layer, g, None if native else dtype)
    few = not native and few_filters(layer.tuning_filters, len(x))
    dw_positions = _single(dw.view(-1, window, groups, filters).transpose(1, 2), dtype)  # (P, G, D, F // G)
    with buffers(x, dtype, 4) as (patches, converted, results, gradient):
        x = layer.spatial(x)
        cut = parts(x.shape[0], groups * window * dtype.itemsize)
        windows = [_windows(layer, x, part, innermost=native) for part in cut]
        own_bytes = 0 if on_block is None else groups * window * filters * dtype.itemsize
        for block in layer.blocks(max(own_bytes, _position_bytes(layer, cut[0].stop, dw, dtype))):
            if on_block is not None:
                made = gradient.take(block.positions, window, groups, filters)
                dw_positions = _single(made.transpose(1, 2), dtype)
            target = total = dw_positions if on_block is not None else part_of(dw_positions, block.span)
            count = block.positions * groups
            if few:
                total = results.take(count, filters, window).mT
            elif target.ndim > 3:
                total = results.take(count, window, filters)
            for n, part in enumerate(cut):
                a = _patches(layer, windows[n], block, patches).transpose(1, 2)
                b = _matrices(part_of(part_of(gradients, block.span), part, -2), converted)
                multiply(a, b, total, add=n > 0)
            if total is not target:
                target.copy_(total.view(target.shape))
            if on_block is not None:
                on_block(block.span, made)


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem) -> None:
    """act(dx + bias): what the windows of a band hold, added to the sites that they read."""
    layer, dtype = Layer.of(problem), compute_dtype(g.dtype)
    geo, groups = layer.geo, layer.groups
    gradients, weights = _gradients(layer, g, dtype), _filters(layer, weight, dtype)
    slice_bytes = slice_positions(geo) * groups * geo.window * dtype.itemsize
    with buffers(g, dtype, 6) as (left, right, results, even, odd, carried):
        for part in parts(len(g), slice_bytes):
            batch, own = part.stop - part.start, part_of(gradients, part, -2)

            def sites_of(band: Block, sizes: tuple[int, ...], own: Tensor = own, batch: int = batch) -> Tensor:
                a, b = _matrices(part_of(weights, band.span), left), _matrices(part_of(own, band.span), right)
                windows = window_gradients(a, b, results).movedim(-1, 0)
                windows = windows.view(batch, *band.shape, groups, *geo.kernel, layer.channels).movedim(5, -2)
                return overlay(windows, geo, sizes, (even, odd)).flatten(5, 6)

            position_bytes = _position_bytes(layer, batch, weight, dtype)
            write_bands(layer, position_bytes, sites_of, carried, bias, part_of(dx, part), problem.activation)


def _native(*dtypes: torch.dtype) -> bool:
    """Whether products of these dtypes are left to the CPU's own instructions for 16 bits."""
    return len(set(dtypes)) == 1 and dtypes[0] in multiplied()


def _gradients(layer: Layer, g: Tensor, dtype: torch.dtype | None) -> Tensor:
    """g as `(P, G, B, F // G)`, a view where g is contiguous, `_single` unless its matrices are to be copied."""
    parts = g.contiguous().view(g.shape[0], -1, layer.groups, layer.filters).permute(1, 2, 0, 3)
    return _single(parts, dtype)
