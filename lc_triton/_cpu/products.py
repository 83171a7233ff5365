"""The products of a box as batched matmuls, one matrix a region and group, in the order that MKL multiplies fastest."""

from __future__ import annotations

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
    """The three products of a box, in the dtype of the buffers; what one returns is overwritten by the next one."""

    def __init__(self, layer: Layer, buffers: list[Buffer]) -> None:
        self.layer = layer
        self.left, self.right, self.out, *_ = buffers
        self.native = self.out.dtype.itemsize == 2  # by the CPU's own instructions for 16 bits
        self.few = False  # whether filters are the rows of the weight gradient's products

    def forward(self, windows: Rows, filters: Rows, target: Rows, bias: Tensor | None) -> Tensor:
        """Sums of the size of the target; a bias `(..., G, 1, F // G)` is a term of them."""
        a, b = self._windows(windows), filters.matrices(self.right)
        out = self.out.take(a.shape[0], a.shape[1], b.shape[2])
        if bias is None:
            multiply(a, b, out)
        else:
            terms = bias.expand(*target.size[: target.box.lead], 1, -1)
            torch.baddbmm(terms.reshape(out.shape[0], 1, -1), a, b, out=out)
        return out.view(target.size)

    def weight_grad(self, windows: Rows, gradients: Rows, target: Rows, *, add: bool) -> Tensor | None:
        """Sums of the size of the target, added to those of the call before where asked for.

        None if they are in the target, which has one matrix a region and group then.
        """
        a, b = self._windows(windows).mT, gradients.matrices(self.right)
        if not add:  # a later part is added to sums in the order of the first one's, and may have fewer samples
            self.few = not self.native and self.layer.tuning_filters <= min(FEW_FILTERS, b.shape[1] - 1)
        total = None if self.few or self.layer.geo.regions else target.merged(self.out.dtype)
        if total is not None:
            multiply(a, b, total, add=add)
            return None
        count, rows, columns = a.shape[0], a.shape[1], b.shape[2]
        total = self.out.take(count, columns, rows).mT if self.few else self.out.take(count, rows, columns)
        multiply(a, b, total, add=add)
        return total.view(target.size)

    def input_grad(self, gradients: Rows, filters: Rows) -> Tensor:
        """The gradient of windows, `(*regions, G, *kernel, C // G, *positions, B)`, with any strides."""
        a, b = gradients.matrices(self.right), filters.matrices(self.left)
        (count, rows, _), window = a.shape, b.shape[1]
        if rows > FEW_SAMPLES and not self.layer.geo.regions:
            out = self.out.take(count, window, rows)
            multiply(b, a.mT, out)
        else:
            a = a.expand(-1, 2, -1).contiguous() if rows == 1 < a.shape[2] else a
            out = self.out.take(count, a.shape[1], window)
            multiply(a, b.mT, out)
            out = out[:, :rows].mT
        return out.view(*filters.size[:-1], *gradients.size[filters.box.lead : -1])

    def _windows(self, windows: Rows) -> Tensor:
        """Windows as matrices: a view if their strides allow it, as in 1-D, else a copy in the order of their sites."""
        return windows.matrices(self.left).mT if windows.layout.turned else windows.matrices(self.left, 5)


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
