"""Stochastic rounding of what is kept in fewer bits, states and masters: the same bits as in the kernels' update.

Rounded to the nearest number, a mean of squares could not decay: with beta2 = 0.999 a step changes it by less than half
of bfloat16's last place. Rounded up or down at random, with the right mean, it follows. So does the master of a weight,
which a small learning rate or weight decay changes by less than half of its own last place.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
# A mixer of 32 bits with low bias (https://github.com/skeeto/hash-prospector), and odd steps between counts.
FIRST, SECOND, OF_COUNT = 0x21F0AAAD, 0x735A2D97, 0x61C88647
# The golden ratio's fraction: the product's high bits depend on all bits of the other factor.
OF_MASTER = 0x9E3779B1


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
    """x in bfloat16, rounded away from 0 or towards it: random bits are added to the 16 bits that are cut off.

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


def join_master(weight: Tensor, correction: Tensor) -> Tensor:
    """The master of a weight, in float32: the 24 bits of the weight and of its correction.

    The correction counts units of the master's last place from the weight, which is the bfloat16 number next to the
    master. A negative correction of a weight that is 0 counts as 0: it belongs to a weight that was changed since.

    Args:
        weight: in bfloat16.
        correction: of its shape, in int8.
    """
    number = weight.contiguous().view(torch.int16).to(torch.int32)
    units = correction.to(torch.int32)
    units = torch.where(number & 0x7FFF == 0, units.clamp(min=0), units)
    return ((number << 16) + (units << 8)).view(torch.float32)


def split_master(master: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """A weight and its correction, of a master that is rounded stochastically to 24 bits.

    Args:
        master: in float32.
        bits: of its number of elements, 32 random ones.

    Example:
        >>> master = torch.full((4096,), 0.1)
        >>> weight, correction = split_master(master, random_bits(0, 4096, 1, torch.device("cpu")))
        >>> error = join_master(weight, correction).double() - 0.1
        >>> weight.dtype, bool(error.abs().max() < 0.1 * 2**-15), bool(error.mean().abs() < 0.1 * 2**-20)
        (torch.bfloat16, True, True)
    """
    own = (bits * OF_MASTER & _MASK) >> 24
    number = (master.contiguous().view(torch.int32) + own.to(torch.int32).view(master.shape)) >> 8
    high = (number + 128) >> 8
    is_nan = master.isnan()
    weight = torch.where(is_nan, master, (high << 16).view(torch.float32)).to(torch.bfloat16)
    return weight, torch.where(is_nan, 0, number - (high << 8)).to(torch.int8)
