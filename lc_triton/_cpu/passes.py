"""The three passes of a layer, box after box of positions: windows, filters and results of a box are multiplied."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lc_triton._cpu import blocks
from lc_triton._cpu.blocks import Layer, OnBlock, Rows, compute_dtype, part_of, results, sites, weights, windows
from lc_triton._cpu.elementwise import Elementwise
from lc_triton._cpu.overlay import overlay
from lc_triton._cpu.products import Matrices
from lc_triton._cpu.workspace import Buffer, buffers
from lc_triton.core.activations import LINEAR
from lc_triton.core.problem import Problem

# Samples from which on the input gradient's sums are turned, so that the batch is innermost as in its products: 1.2 to
# 1.6 times as fast with 512 and more, 0.9 to 1.05 with 64 and fewer.
TURNED_SAMPLES = 128
# Activations that commute with rounding.
ROUNDED_ALIKE = ("linear", "relu", "relu6")


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, z: Tensor | None, problem: Problem) -> None:
    """y and z, of the windows and the filters of each box."""
    layer, act, batch = Layer.of(problem), problem.activation, x.shape[0]
    native = layer.is_native(x.dtype, weight.dtype) and act.name in ROUNDED_ALIKE
    dtype, turned = x.dtype if native else compute_dtype(x.dtype), batch >= layer.turned_from
    x, weight = x if layer.pads or turned else x.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    parts, boxes = layer.cut(batch, dtype, weight.dtype, layer.turned_numbers * dtype.itemsize if turned else 0)
    with buffers(x, dtype) as (copy, *others):
        product = _product(layer, others, batch)
        for part in parts:
            samples, layout = part_of(x, part), results(layer, part.stop - part.start)
            for box in boxes:
                terms = None if bias is None else Rows(box, bias, results(layer, 1, alike=bias.ndim == 1)).view()
                # A sum in 16 bits is rounded where its product ends, so that the bias is one of its terms. Else the
                # bias comes behind: a sum that started from it would round each of its steps at the bias's size.
                inside, terms = (terms, None) if native else (None, terms)
                operands = windows(samples, box, copy, turned=turned), Rows(box, weight, layer.weights)
                rows = Rows(box, part_of(y, part), layout)
                out, target = product.forward(*operands, rows, inside), rows.view()
                if terms is not None and z is None and act is LINEAR:
                    torch.add(out, terms, out=target)
                    continue
                if terms is not None:
                    out += terms
                if z is not None:
                    Rows(box, part_of(z, part), layout).view().copy_(out)
                target.copy_(act(out))


def weight_grad(x: Tensor, g: Tensor, dw: Tensor, problem: Problem, on_block: OnBlock | None = None) -> None:
    """dw, of the windows and the gradients of each box, or what `on_block` makes of it; dw stays as it is then.

    Boxes that have positions of one region add to its filters one after the other.
    """
    layer, shared, batch = Layer.of(problem), bool(problem.geometry.regions), x.shape[0]
    native = layer.is_native(x.dtype, dw.dtype) and len(layer.cut(batch, x.dtype, dw.dtype)[0]) == 1
    dtype = x.dtype if native else compute_dtype(x.dtype)
    turned = batch > 1 and (native or batch >= layer.turned_from)
    x, g = x if layer.pads or turned else x.contiguous(), g.contiguous()
    total = torch.zeros_like(dw, dtype=dtype) if shared else dw
    block_bytes = 0 if on_block is None else layer.geo.window * layer.geo.out_channels * dtype.itemsize
    sample_bytes = layer.turned_numbers * dtype.itemsize if turned and not native else 0
    parts, boxes = layer.cut(batch, dtype, dw.dtype, sample_bytes, block_bytes)
    with buffers(x, dtype) as (copy, made, *others):
        product, start = _product(layer, others, batch), 0
        for box in boxes:
            if on_block is None:
                target = Rows(box, total, layer.weights)
            else:
                block = made.take(math.prod(box.shape), layer.geo.window, layer.groups, layer.filters)
                target = Rows(box, block, weights(layer, box.shape, box.first))
            for part in parts:
                gradients = Rows(box, part_of(g, part), results(layer, part.stop - part.start))
                operands = windows(part_of(x, part), box, copy, turned=turned), gradients, target
                sums = product.weight_grad(*operands, add=part is not parts[0])
            if sums is not None:
                (Tensor.add_ if shared else Tensor.copy_)(target.view(), sums)
            if on_block is not None:
                on_block(slice(start, start := start + len(block)), block)
    if total is not dw:
        dw.copy_(total)


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem) -> None:
    """act(dx + bias): the gradients of each box's windows, added to the sites that they read."""
    layer, dtype, act = Layer.of(problem), compute_dtype(g.dtype), problem.activation
    geo, g, weight = layer.geo, g.contiguous(), weight.contiguous()
    sample_bytes = geo.sites * geo.in_channels * dtype.itemsize
    turned = min(len(g), blocks.MOST_BYTES // sample_bytes) >= TURNED_SAMPLES
    turned = turned and not (layer.apart or layer.by_number or geo.regions)
    in_place = not turned and (dx.dtype == dtype or (layer.apart and bias is None and act is LINEAR))
    parts, boxes = layer.cut(len(g), dtype, weight.dtype, 0 if in_place else sample_bytes)
    with buffers(g, dtype) as (even, odd, held, sums, *others):
        product = _product(layer, others, g.shape[0])
        for part in parts:
            samples, target, batch = part_of(g, part), part_of(dx, part), part.stop - part.start
            if turned:
                total = sums.take(*dx.shape[1:], batch).movedim(-1, 0)  # in memory as the products are
            else:
                total = target if in_place else sums.take(*target.shape)
            if not (layer.apart and geo.positions * geo.taps == geo.sites):
                total.zero_()
            for box in boxes:
                operands, lead = (Rows(box, samples, results(layer, batch)), Rows(box, weight, layer.weights)), box.lead
                if isinstance(product, Elementwise) and not product.at_once:
                    found = product.input_grad_by_tap(*operands)
                else:
                    found = product.input_grad(*operands)
                    if layer.apart:
                        of_windows = Rows(box, total, sites(layer, batch, geo.in_spatial))
                        of_windows.view(*range(lead), -5, -4, -3, -2, -1).copy_(found)
                        continue
                    found = found.permute(*box.order, -1, lead, lead + 1, lead + 2, lead + 3, lead - 1, lead + 4)
                    if box.inner:
                        found = held.take(*found.shape).copy_(found)
                    found = found.view(*box.shape, batch, *geo.kernel, layer.groups, layer.channels).movedim(4, 0)
                    found = overlay(found, geo, box.sites, (even, odd)).flatten(5, 6)
                places = total.view(batch, *geo.in_spatial, geo.in_channels)[box.read]
                (Tensor.copy_ if layer.apart else Tensor.add_)(places, found[box.inside])
            if bias is not None:
                total += bias
            if total is not target or act is not LINEAR:
                # As matrices of one dtype, which torch turns block by block.
                target.flatten(1).copy_(act(total).to(dx.dtype).flatten(1))


def _product(layer: Layer, buffers: list[Buffer], batch: int) -> Elementwise | Matrices:
    return Elementwise(layer, buffers, batch) if layer.by_number else Matrices(layer, buffers)
