"""States in 8 bits: codes, and the largest magnitude of each block of filters; the same bits as in the kernels' update.

A number is the fourth power of its code, as a part of the block's largest magnitude: neighbouring codes are 3% apart
at the largest, and 10% a hundred times below it. Numbers are rounded to them stochastically with the right mean, since
a step changes a mean of squares by less than their distance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lc_triton.core.fused import BLOCK

# The largest codes of the mean of gradients, which has a sign, and of the mean of their squares; their dtypes.
MEAN_CODES, SQUARE_CODES = 127, 255
MOST = MEAN_CODES, SQUARE_CODES
DTYPES = {MEAN_CODES: torch.int8, SQUARE_CODES: torch.uint8}


def blocks_of(filters: int) -> int:
    """How many blocks the filters of one weight row are."""
    return -(-filters // BLOCK)


def quantize(x: Tensor, bits: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Codes of numbers, and the largest magnitude of each block.

    No positive number gets the code 0 of unsigned codes, by whose root a step is divided. If a number of a block is
    NaN or infinite, all numbers of the block are from then on.

    Args:
        x: `(..., F)`, computed in float32.
        bits: of x's number of elements, of 16 random bits.
        most: the largest code; of `DTYPES`.

    Returns:
        codes: `(..., F)`.
        amax: `(..., blocks)` in float32.

    Example:
        >>> x, bits = torch.tensor([1.0, -0.5, 0.0]), torch.tensor([0, 1 << 15, 0])
        >>> codes, amax = quantize(x, bits, MEAN_CODES)
        >>> codes.tolist(), amax.tolist()
        ([127, -107, 0], [1.0])
    """
    filters, x = x.shape[-1], x.to(torch.float32)
    size = torch.where(x.isnan(), torch.inf, x.abs())
    padded = torch.nn.functional.pad(size, (0, blocks_of(filters) * BLOCK - filters))
    amax = padded.unflatten(-1, (-1, BLOCK)).amax(-1)
    power = size * _spread(1 / amax.clamp(min=torch.finfo(torch.float32).tiny), filters) * float(most**4)
    low = power.sqrt().sqrt().floor()
    below, above = low.square().square(), (low + 1).square().square()
    up = (bits.view(x.shape).to(torch.float32) + 0.5) * 2.0**-16 * (above - below) < power - below
    code = (low + up).nan_to_num(nan=most).clamp(max=most)
    code = torch.where(x < 0, -code, code) if most == MEAN_CODES else torch.where(x > 0, code.clamp(min=1), code)
    return code.to(DTYPES[most]), amax


def dequantize(codes: Tensor, amax: Tensor, most: int) -> Tensor:
    """The numbers of codes in float32: arguments as `quantize` returns them."""
    part = codes.to(torch.float32) * (1 / most)
    number = part.square().square() * _spread(amax, codes.shape[-1])
    return torch.where(part < 0, -number, number)


def _spread(amax: Tensor, filters: int) -> Tensor:
    """The magnitude of its block, for each filter."""
    return amax.repeat_interleave(BLOCK, -1)[..., :filters]
