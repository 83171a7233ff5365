"""Batched products of a matrix a position, in the order of operands that MKL multiplies fastest."""

from __future__ import annotations

import torch
from torch import Tensor

from lc_triton._cpu.workspace import Buffer

# Samples that are the rows of the input gradient's products, two at least, not their columns: MKL reads the weights, a
# transposed matrix then, for two rows in a third (AVX-512) of the time that it takes for so few columns or for one row.
FEW_SAMPLES = 3
# Filters that are the rows of the weight gradient's products, not their columns, if there are more samples: 1.0 to 4
# times as fast for 1 to 8 filters, writing the result in its own order included, and no faster for 12. The forward
# gains as much with some CPUs and loses more with others.
FEW_FILTERS = 8


def few_filters(filters: int, batch: int) -> bool:
    """Whether filters are the rows of the weight gradient's products."""
    return filters <= FEW_FILTERS and filters < batch


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


def window_gradients(weights: Tensor, gradients: Tensor, buffer: Buffer) -> Tensor:
    """Weights `(n, D, F)` times gradients `(n, B, F)`: `(n, D, B)`, any strides."""
    (count, window, filters), batch = weights.shape, gradients.shape[1]
    if batch > FEW_SAMPLES:
        out = buffer.take(count, window, batch)
        multiply(weights, gradients.transpose(1, 2), out)
        return out
    rows = gradients.expand(-1, 2, -1).contiguous() if batch == 1 < filters else gradients
    out = buffer.take(count, rows.shape[1], window)
    multiply(rows, weights.transpose(1, 2), out)
    return out[:, :batch].transpose(1, 2)
