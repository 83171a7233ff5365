"""How AdamW's two states of a weight are kept: as numbers of some dtype, or in 8 bits, under keys of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lc_triton.optim.blocks import DTYPES, MOST, blocks_of, dequantize, quantize
from lc_triton.optim.rounding import random_bits

# Keys of a state: torch's, and those of codes, which torch's AdamW refuses where it would take codes for numbers.
NUMBERS = "exp_avg", "exp_avg_sq"
CODES = "exp_avg_8_bits", "exp_avg_sq_8_bits"
AMAX = "amax"
# From a weight in bfloat16 to its master of 24 bits.
CORRECTION = "correction"
# The dtype of states by the name that users give it; None is the weight's.
SMALL_STATES = {"float32": None, "bfloat16": torch.bfloat16, "8 bits": torch.uint8}
MASTERS = ("24 bits",)


def to_numbers(state: dict[str, Any], dtype: torch.dtype) -> None:
    """Bring what a state keeps of its weight's shape, but for a correction, to a floating-point dtype."""
    amax = state.pop(AMAX, None)
    if amax is not None:
        for i, (key, codes) in enumerate(zip(NUMBERS, CODES, strict=True)):
            state[key] = dequantize(state.pop(codes), amax[..., i], MOST[i])
    for key, value in state.items():
        if isinstance(value, Tensor) and value.ndim and value.dtype != dtype and key != CORRECTION:
            state[key] = value.to(dtype)


def to_codes(state: dict[str, Any], weight: Tensor) -> None:
    """Bring both states to 8 bits: those of numbers are rounded; where there are none, zeros are made."""
    if AMAX in state:
        return
    numbers = [state.pop(key, None) for key in NUMBERS]
    state[AMAX] = weight.new_zeros((*weight.shape[:-1], blocks_of(weight.shape[-1]), 2), dtype=torch.float32)
    for i, number in enumerate(numbers):
        codes = torch.zeros_like(weight, requires_grad=False, dtype=DTYPES[MOST[i]])
        if number is not None:
            bits = random_bits(0, weight.numel(), 0, weight.device)
            codes, state[AMAX][..., i] = quantize(number, bits >> 16 * i & 0xFFFF, MOST[i])
        state[CODES[i]] = codes


def drop_small(state: dict[str, Any], dtype: torch.dtype) -> None:
    """Make a state what torch's own step takes, of a weight in a dtype."""
    state.pop(CORRECTION, None)
    to_numbers(state, dtype)
