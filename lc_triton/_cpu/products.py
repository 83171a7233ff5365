"""The products of a box as batched matmuls, one matrix a region and group, in the order that MKL multiplies fastest."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lc_triton._cpu.blocks import Layer, Rows
from lc_triton._cpu.workspace import Buffer

# Samples that are the rows of the input gradient's products, two at least, not their columns: MKL reads the weights, a
# transposed matrix then, for two rows in a third (AVX-512) of the time that it takes for so few columns or for one row.
FEW_SAMPLES = 3
# Filters that are the rows of the weight gradient's products, not their columns, if there are more samples: 1.0 to 4
# times as fast for 1 to 8 filters, writing the result in its own order included, and no faster for 12. The forward
# gains as much with some CPUs and loses more with others.
FEW_FILTERS = 8


class Matrices:
    """The three products of a box.

    Args:
        layer: the layer.
        buffers: for operands and results, of the dtype of the products. What a product returns is overwritten by the
            next one.
    """

    def __init__(self, layer: Layer, buffers: list[Buffer]) -> None:
        self.layer = layer
        self.left, self.right, self.out, *_ = buffers
        self.native = self.out.dtype.itemsize == 2  # by the CPU's own instructions for 16 bits
        self.total: Tensor  # of the weight gradient

    def forward(self, windows: Rows, filters: Rows, bias: Tensor | None = None) -> Tensor:
        """Sums `(*regions, G, *positions, B, F // G)`; a bias `(..., G, 1, F // G)` is a term of them."""
        a, b = self._windows(windows), filters.matrices(self.right)
        out = self.out.take(a.shape[0], a.shape[1], b.shape[2])
        if bias is None:
            multiply(a, b, out)
        else:
            terms = bias.expand(*windows.size[: windows.box.lead], 1, -1)
            torch.baddbmm(terms.reshape(out.shape[0], 1, -1), a, b, out=out)
        return out.view(*windows.size[:-5], b.shape[2])

    def weight_grad(self, windows: Rows, gradients: Rows, target: Rows | None, *, add: bool) -> Tensor | None:
        """Sums `(*regions, G, *kernel, C // G, F // G)`, added to those of the call before where asked for.

        None if they are in `target`, which is so where it has one matrix a region and group.
        """
        a, b = self._windows(windows).mT, gradients.matrices(self.right)
        if not add:
            few = not self.native and self.layer.tuning_filters <= min(FEW_FILTERS, b.shape[1] - 1)
            found = None if few or target is None else target.merged(self.out.dtype)
            self.is_target = found is not None
            if found is not None:
                self.total = found
            elif few:
                self.total = self.out.take(a.shape[0], b.shape[2], a.shape[1]).mT
            else:
                self.total = self.out.take(a.shape[0], a.shape[1], b.shape[2])
        multiply(a, b, self.total, add=add)
        if self.is_target:
            return None
        return self.total.view(*windows.size[: windows.box.lead], *windows.size[-5:], b.shape[2])

    def input_grad(self, gradients: Rows, filters: Rows) -> Tensor:
        """What windows get, `(*regions, G, *positions, B, *kernel, C // G)`, any strides."""
        a, b, lead = gradients.matrices(self.right), filters.matrices(self.left), filters.box.lead
        (count, rows, _), window = a.shape, b.shape[1]
        if rows > FEW_SAMPLES and not self.layer.geo.regions:
            out = self.out.take(count, window, rows)
            multiply(b, a.mT, out)
        else:
            a = a.expand(-1, 2, -1).contiguous() if rows == 1 < a.shape[2] else a
            out = self.out.take(count, a.shape[1], window)
            multiply(a, b.mT, out)
            out = out[:, :rows].mT
        found = out.view(*filters.size[:-1], *gradients.size[lead:-1])
        return found.movedim(tuple(range(lead, lead + 5)), tuple(range(-5, 0)))

    def _windows(self, windows: Rows) -> Tensor:
        """Windows as matrices: a view where they lie as such, as in 1-D, else copied in the order of their sites."""
        layout, lead = windows.layout, windows.box.lead
        if layout.stride[0] != 1 or layout.size[0] == 1:
            return windows.matrices(self.left, 5)
        view = windows.view()
        rows = tuple(range(lead, view.ndim - 5))
        source = view.movedim(rows, tuple(range(-len(rows), 0)))
        copy = self.left.take(*source.shape).copy_(source)
        return copy.view(copy.shape[:lead].numel(), -1, math.prod(copy.shape[-len(rows) :])).mT


def multiply(a: Tensor, b: Tensor, out: Tensor, *, add: bool = False) -> None:
    """out = a @ b, or out += a @ b."""
    if out.stride(1) < out.stride(2):  # torch would go through the matrices one by one
        out, a, b = out.mT, b.mT, a.mT
    if add:
        out.baddbmm_(a, b)
    elif a.shape[2] == 1:  # twice as fast as a product of depth 1
        torch.mul(a, b, out=out)
    else:
        torch.bmm(a, b, out=out)
