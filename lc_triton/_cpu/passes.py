"""The three passes of a layer, box after box of positions: windows, filters and results of a box are multiplied."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lc_triton._cpu import blocks
from lc_triton._cpu.blocks import Layer, OnBlock, compute_dtype, multiplied, part_of, parts, results, under, windows
from lc_triton._cpu.elementwise import Elementwise
from lc_triton._cpu.overlay import overlay
from lc_triton._cpu.products import FEW_SAMPLES, Matrices
from lc_triton._cpu.workspace import Buffer, buffers
from lc_triton.core.activations import LINEAR
from lc_triton.core.problem import Problem

# Activations whose values of a rounded number are the rounded values of the number.
ROUNDED_ALIKE = ("linear", "relu", "relu6")
# Numbers of a window in one run below which x is turned first, so that the batch is the run if it is longer.
SHORT_RUN = 16
# Samples for which the input gradient's sums are turned, so that the batch is innermost as in its products. For fewer,
# products of a batch are read as fast as weights are read once more for each part of it.
TURNED_SAMPLES = 16


def _sites(layer: Layer, x: Tensor, *, native: bool) -> Tensor:
    """A part of x as `windows` takes it."""
    x = x.view(x.shape[0], *layer.geo.in_spatial, layer.geo.in_channels)
    if layer.by_number:
        return x
    turned = native or _turns(layer, x.shape[0])
    return x.movedim(0, -1).contiguous().movedim(-1, 0) if turned else x


def _turns(layer: Layer, batch: int) -> bool:
    """Whether x is turned first, for a part of so many samples."""
    run = layer.channels * (layer.geo.kernel[3] if layer.groups == 1 else 1)
    copied = layer.tap_stride is None and not (layer.by_number or layer.geo.regions)
    return copied and run < min(SHORT_RUN, batch)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, z: Tensor | None, problem: Problem) -> None:
    """y and z, of the windows and the filters of each box."""
    layer, act, x = Layer.of(problem), problem.activation, x.contiguous()
    native = _native(layer, x.dtype, weight.dtype) and act.name in ROUNDED_ALIKE
    dtype = x.dtype if native else compute_dtype(x.dtype)
    weight, bias = weight.contiguous(), bias if bias is None else bias.contiguous()
    with buffers(x, dtype, 5) as (padded, *others):
        product = _product(layer, others, x.shape[0])
        whole = problem.tuning_geometry  # so that ranks cut the batch alike
        sample = whole.sites * whole.in_channels * x.itemsize if _turns(layer, x.shape[0]) else 0
        for part in parts(x.shape[0], max(layer.sample_bytes(dtype), sample)):
            own, layout = _sites(layer, part_of(x, part), native=False), results(layer, part.stop - part.start)
            for box in layer.boxes(layer.position_bytes(own.shape[0], dtype, weight.dtype)):
                terms = bias
                if bias is not None and bias.ndim > 1:
                    terms = box.rows(bias, results(layer, 1))
                elif bias is not None:
                    terms = bias.view(layer.groups, *[1] * len(box.inner), 1, layer.filters)
                # A sum in 16 bits is rounded where its product ends, so that the bias is one of its terms. Else the
                # bias comes behind: a sum that started from it would round each of its steps at the bias's size.
                inside, terms = (terms, None) if native else (None, terms)
                out = product.forward(windows(own, box, padded), box.filters(weight), box.lead, inside)
                target = box.rows(part_of(y, part), layout)
                if terms is not None and z is None and act is LINEAR:
                    torch.add(out, terms, out=target)
                    continue
                if terms is not None:
                    out += terms
                if z is not None:
                    box.rows(part_of(z, part), layout).copy_(out)
                target.copy_(act(out))


def weight_grad(x: Tensor, g: Tensor, dw: Tensor, problem: Problem, on_block: OnBlock | None = None) -> None:
    """dw, of the windows and the gradients of each box, or what `on_block` makes of it; dw stays as it is then.

    Boxes that have positions of one region add to its filters one after the other.
    """
    layer, shared, batch = Layer.of(problem), bool(problem.geometry.regions), x.shape[0]
    native = _native(layer, x.dtype, dw.dtype) and len(parts(batch, layer.sample_bytes(x.dtype))) == 1
    dtype = x.dtype if native else compute_dtype(x.dtype)
    total, x, g = torch.zeros_like(dw, dtype=dtype) if shared else dw, x.contiguous(), g.contiguous()
    with buffers(x, dtype, 6) as (padded, made, *others):
        product, cut, start = _product(layer, others, batch), parts(batch, layer.sample_bytes(dtype)), 0
        sites = [_sites(layer, part_of(x, part), native=native) for part in cut]
        position_bytes = layer.position_bytes(cut[0].stop, dtype, dw.dtype)
        if on_block is not None:
            position_bytes = max(position_bytes, layer.geo.window * layer.geo.out_channels * dtype.itemsize)
        for box in layer.boxes(position_bytes):
            if on_block is None:
                target = box.filters(total)
            else:
                count = math.prod(box.shape)
                block = made.take(count, layer.geo.window, layer.groups, layer.filters)
                sizes = *(n for _, n, _ in box.leading), *layer.geo.kernel, layer.channels, *block.shape[2:]
                target = block.view(sizes).movedim(-2, box.lead - 1)
            for n, part in enumerate(cut):
                own = box.rows(part_of(g, part), results(layer, part.stop - part.start))
                operands = windows(sites[n], box, padded), own, box.lead, None if shared else target
                sums = product.weight_grad(*operands, add=n > 0)
            if shared:
                target += sums
            elif sums.data_ptr() != target.data_ptr():
                target.copy_(sums)
            if on_block is not None:
                on_block(slice(start, start := start + count), block)
    if total is not dw:
        dw.copy_(total)


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem) -> None:
    """act(dx + bias): what the windows of each box hold, added to the sites that they read."""
    layer, dtype, act = Layer.of(problem), compute_dtype(g.dtype), problem.activation
    geo, g, weight = layer.geo, g.contiguous(), weight.contiguous()
    with buffers(g, dtype, 8) as (even, odd, held, sums, *others):
        product = _product(layer, others, g.shape[0])
        once, sample = layer.apart and bias is None and act is LINEAR, dx[0].numel() * dtype.itemsize
        turned = not (once or layer.by_number or geo.regions) and blocks.MOST_BYTES // sample >= TURNED_SAMPLES
        sums_apart = not once and (turned or dx.dtype != dtype)
        for part in parts(g.shape[0], max(layer.sample_bytes(dtype), sample if sums_apart else 0)):
            own, target, batch = part_of(g, part), part_of(dx, part), part.stop - part.start
            layout, boxes = results(layer, batch), layer.boxes(layer.position_bytes(batch, dtype, weight.dtype))
            if turned and batch > FEW_SAMPLES:
                total = sums.take(*dx.shape[1:], batch).movedim(-1, 0)  # in memory as the products are
            else:
                total = target if once or dx.dtype == dtype else sums.take(*target.shape)
            if not (once and not layer.pads and geo.positions * geo.taps == geo.sites):
                total.zero_()
            all_sites = total.view(batch, *geo.in_spatial, geo.in_channels)
            for box in boxes:
                operands, (sizes, read, inside) = (box.rows(own, layout), box.filters(weight)), under(box)
                if isinstance(product, Elementwise) and not product.at_once:
                    sites = product.input_grad_by_tap(*operands, box, sizes)
                else:
                    found = product.input_grad(*operands, box.lead)
                    found = found.permute(*box.order, -6, -5, -4, -3, -2, box.lead - 1, -1)
                    if box.inner:
                        found = held.take(*found.shape).copy_(found)
                    shape = *box.shape, batch, *geo.kernel, layer.groups, layer.channels
                    sites = overlay(found.view(shape).movedim(4, 0), geo, sizes, (even, odd)).flatten(5, 6)
                (Tensor.copy_ if once else Tensor.add_)(all_sites[read], sites[inside])
            if bias is not None:
                total += bias
            if total is not target or act is not LINEAR:
                # As matrices of one dtype, which torch turns block by block.
                target.flatten(1).copy_(act(total).to(dx.dtype).flatten(1))


def bind_forward(
    problem: Problem, x: Tensor, weight: Tensor, size: tuple[int, ...], stride: tuple[int, ...]
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """The forward of one position, as one product bound to tensors like these and a layout of y; None for others."""
    layer, geo, batch, step = Layer.of(problem), problem.geometry, len(x), Layer.of(problem).tap_stride
    if step is None or problem.tuning_geometry.positions > 1 or layer.pads or geo.regions or not x.is_contiguous():
        return None
    if layer.by_number:  # whose sums have another order elsewhere
        return None
    if not (batch and x.dtype is weight.dtype is compute_dtype(x.dtype)):
        return None
    act, shape, sample = problem.activation, (batch, *geo.bias_shape), x[0].numel()

    def call(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        z = torch.mm(x.as_strided((batch, geo.window), (sample, step)), weight.reshape(geo.window, -1))
        z.resize_(shape)  # no view: one made without gradients takes no change in place
        if bias is not None:
            z += bias
        return act(z).as_strided_(size, stride)

    return call


def _product(layer: Layer, buffers: list[Buffer], batch: int) -> Elementwise | Matrices:
    return Elementwise(layer, buffers, batch) if layer.by_number else Matrices(layer, buffers)


def _native(layer: Layer, *dtypes: torch.dtype) -> bool:
    """Whether products of these dtypes are left to the CPU's own instructions for 16 bits."""
    return not (layer.by_number or layer.geo.regions) and len(set(dtypes)) == 1 and dtypes[0] in multiplied()
