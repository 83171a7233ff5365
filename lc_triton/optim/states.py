"""How AdamW's two states of a weight are kept: as numbers of some dtype, or in 8 bits, under keys of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lc_triton.errors import ArgumentValueError
from lc_triton.optim.blocks import DTYPES, MOST, blocks_of, dequantize, quantize
from lc_triton.optim.rounding import random_bits

# Keys of a state: torch's, and those of codes, which torch's AdamW refuses where it would take codes for numbers.
NUMBERS = "exp_avg", "exp_avg_sq"
CODES = "exp_avg_8_bits", "exp_avg_sq_8_bits"
AMAX = "amax"
# From a weight in bfloat16 to its master of 24 bits.
CORRECTION = "correction"
# What has its parameter's shape, or follows from it.
OF_SHAPE = {*NUMBERS, *CODES, AMAX, CORRECTION, "max_exp_avg_sq", "momentum_buffer"}
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


def check_shapes(state_dict: Mapping[str, Any], groups: list[dict[str, Any]], names: Mapping[int, str]) -> None:
    """Refuse a saved state of parameters of other shapes: torch's operators and the kernels would read beyond it.

    Args:
        state_dict: of an optimizer.
        groups: those of the optimizer that loads it, whose parameters need not be as many.
        names: of the parameters, by identity.
    """
    for number, (saved, group) in enumerate(zip(state_dict["param_groups"], groups, strict=False)):
        for place, (index, parameter) in enumerate(zip(saved["params"], group["params"], strict=False)):
            if is_lazy(parameter):
                continue
            shape = tuple(parameter.shape)
            of_amax = (*shape[:-1], blocks_of(shape[-1]), 2) if shape else ()
            for key, value in state_dict["state"].get(index, {}).items():
                expected = of_amax if key == AMAX else shape
                if key in OF_SHAPE and type(value) is Tensor and tuple(value.shape) != expected:
                    name = names.get(id(parameter), f"parameter {place} of group {number}")
                    allowed = f"of shape {expected}, for {name}, whose shape is {shape}: load a state of the same model"
                    raise ArgumentValueError(name=f'"{key}" in state_dict', value=tuple(value.shape), allowed=allowed)


def drop_small(state: dict[str, Any], dtype: torch.dtype) -> None:
    """Make a state fit for torch's own step: no correction, and all numbers in the weight's dtype."""
    state.pop(CORRECTION, None)
    to_numbers(state, dtype)
