"""Stochastic rounding to bfloat16, of states that are kept in 16 bits: the same bits as in the kernels' update.

Rounded to the nearest number, a mean of squares could not decay: with beta2 = 0.999 a step changes it by less than half
of bfloat16's last place. Rounded up or down at random, with the right mean, it follows.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
# A mixer of 32 bits with low bias (https://github.com/skeeto/hash-prospector), and odd steps between counts.
FIRST, SECOND, OF_COUNT = 0x21F0AAAD, 0x735A2D97, 0x61C88647


def random_bits(start: int, numel: int, count: int, device: torch.device) -> Tensor:
    """32 random bits, as int64, for each of the numbers from an offset on, at a step.

    Args:
        start: the offset of the first number.
        numel: of how many.
        count: the number of the step.
        device: of the result.
    """
    x = (torch.arange(start, start + numel, device=device) + count * OF_COUNT % (1 << 32)) & _MASK
    x ^= x >> 16
    x *= FIRST
    x &= _MASK
    x ^= x >> 15
    x *= SECOND
    x &= _MASK
    x ^= x >> 15
    return x


def round_stochastically(x: Tensor, bits: Tensor) -> Tensor:
    """x in bfloat16, rounded up if 16 random bits are larger than what is cut off leaves room for.

    Args:
        x: a floating-point tensor; computed in float32.
        bits: of x's number of elements, of 16 bits.

    Example:
        >>> bits = torch.arange(1 << 16)
        >>> mean = round_stochastically(torch.full((1 << 16,), 1.001), bits).double().mean()
        >>> abs(mean.item() - 1.001) < 1e-6
        True
    """
    x = x.to(torch.float32)
    number = x.contiguous().view(torch.int32) + bits.to(torch.int32).view(x.shape)
    rounded = (number & -(1 << 16)).view(torch.float32)
    return torch.where(x.isnan(), x, rounded).to(torch.bfloat16)
