"""The products of a box as batched matmuls, one matrix a region and group, in the order that MKL multiplies fastest."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lc_triton._cpu.blocks import Layer, merged_stride
from lc_triton._cpu.workspace import Buffer

# Samples that are the rows of the input gradient's products, two at least, not their columns: MKL reads the weights, a
# transposed matrix then, for two rows in a third (AVX-512) of the time that it takes for so few columns or for one row.
FEW_SAMPLES = 3
# Filters that are the rows of the weight gradient's products, not their columns, if there are more samples: 1.0 to 4
# times as fast for 1 to 8 filters, writing the result in its own order included, and no faster for 12. The forward
# gains as much with some CPUs and loses more with others.
FEW_FILTERS = 8


class Matrices:
    """The three products of a box: `(*regions, G, ...)` each, of `lead` dimensions, groups among them.

    Args:
        layer: the layer.
        buffers: for operands and results, of the dtype of the products. What a product returns is overwritten by the
            next one.
    """

    def __init__(self, layer: Layer, buffers: list[Buffer]) -> None:
        self.layer = layer
        self.left, self.right, self.out, _ = buffers
        self.native = self.out.typed.itemsize == 2  # by the CPU's own instructions for 16 bits
        self.total: Tensor | None = None  # of the weight gradient

    def forward(self, windows: Tensor, filters: Tensor, lead: int, bias: Tensor | None = None) -> Tensor:
        """Sums `(*regions, G, *positions, B, F // G)`; a bias `(..., G, 1, F // G)` is a term of them."""
        a, b = self._windows(windows, lead), matrices(filters, lead, 1, self.right)
        out = self.out.take(a.shape[0], a.shape[1], b.shape[2])
        if bias is None:
            multiply(a, b, out)
        else:
            terms = bias.expand(*windows.shape[:lead], 1, -1)
            torch.baddbmm(terms.reshape(out.shape[0], 1, -1), a, b, out=out)
        return out.view(*windows.shape[:-5], b.shape[2])

    def weight_grad(self, windows: Tensor, gradients: Tensor, lead: int, target: Tensor | None, *, add: bool) -> Tensor:
        """Sums `(*regions, G, *kernel, C // G, F // G)`, added to those of the call before where asked for.

        They are in the memory of `target` if it has one matrix a region and group there.
        """
        a, b = self._windows(windows, lead).mT, matrices(gradients, lead, 1, self.right)
        if not add:
            few = not self.native and self.layer.tuning_filters <= min(FEW_FILTERS, b.shape[1] - 1)
            self.total = None if few or target is None else merged(target, lead, 1, self.out.typed.dtype)
            if few:
                self.total = self.out.take(a.shape[0], b.shape[2], a.shape[1]).mT
            elif self.total is None:
                self.total = self.out.take(a.shape[0], a.shape[1], b.shape[2])
        assert self.total is not None
        multiply(a, b, self.total, add=add)
        return self.total.view(*windows.shape[:lead], *windows.shape[-5:], b.shape[2])

    def input_grad(self, gradients: Tensor, filters: Tensor, lead: int) -> Tensor:
        """What windows get, `(*regions, G, *positions, B, *kernel, C // G)`, any strides."""
        a, b = matrices(gradients, lead, 1, self.right), matrices(filters, lead, 1, self.left)
        (count, rows, _), window = a.shape, b.shape[1]
        if rows > FEW_SAMPLES and not self.layer.geo.regions:
            out = self.out.take(count, window, rows)
            multiply(b, a.mT, out)
        else:
            a = a.expand(-1, 2, -1).contiguous() if rows == 1 < a.shape[2] else a
            out = self.out.take(count, a.shape[1], window)
            multiply(a, b.mT, out)
            out = out[:, :rows].mT
        found = out.view(*filters.shape[:-1], *gradients.shape[lead:-1])
        return found.movedim(tuple(range(lead, lead + 5)), tuple(range(-5, 0)))

    def _windows(self, windows: Tensor, lead: int) -> Tensor:
        """Windows as matrices: a view where they lie as such, as in 1-D, else copied in the order of their sites."""
        if windows.stride(-6) != 1 or windows.shape[-6] == 1:
            return matrices(windows, lead, 5, self.left)
        rows = tuple(range(lead, windows.ndim - 5))
        source = windows.movedim(rows, tuple(range(-len(rows), 0)))
        copy = self.left.take(*source.shape).copy_(source)
        return copy.view(copy.shape[:lead].numel(), -1, math.prod(copy.shape[-len(rows) :])).mT


def merged(tensor: Tensor, lead: int, columns: int, dtype: torch.dtype) -> Tensor | None:
    """`(*leading, *rows, *columns)` as `(n, rows, columns)`; None where that is no view of a dtype."""
    found = _merged(tensor.shape, tensor.stride(), lead, columns) if tensor.dtype == dtype else None
    return None if found is None else tensor.as_strided(*found)


@lru_cache(maxsize=4096)
def _merged(size: torch.Size, stride: tuple[int, ...], lead: int, columns: int) -> tuple[Any, Any] | None:
    """Size and stride of `merged`."""
    spans = slice(lead), slice(lead, -columns), slice(-columns, None)
    found = [merged_stride(size[span], stride[span]) for span in spans]
    return None if None in found else ([math.prod(size[span]) for span in spans], found)


def matrices(tensor: Tensor, lead: int, columns: int, buffer: Buffer) -> Tensor:
    """`merged`, or a copy."""
    found = merged(tensor, lead, columns, buffer.typed.dtype)
    if found is not None:
        return found
    copy = buffer.take(*tensor.shape).copy_(tensor)
    return copy.view(copy.shape[:lead].numel(), -1, copy.shape[-columns:].numel())


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
