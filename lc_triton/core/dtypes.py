"""The dtypes of an operator's tensors, and which go together."""

from __future__ import annotations

import torch
from torch import Tensor

from lc_triton.errors import ArgumentTypeError, DtypeError

HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32, torch.float64)


def check_floating(name: str, dtype: object) -> None:
    """Refuse a dtype the operator does not take; None means torch's default."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ArgumentTypeError(name=name, value=dtype, allowed="a torch.dtype, such as torch.float16, or None")
    if dtype is not None and dtype not in DTYPES:
        allowed = "allowed are float16, bfloat16, float32 and float64: convert it with .to(dtype)"
        raise DtypeError(name=name, value=str(dtype).removeprefix("torch."), allowed=allowed)


def check_dtypes(operand: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Refuse a weight or bias of a dtype that does not go with x's."""

    def name(tensor: Tensor) -> str:
        return str(tensor.dtype).removeprefix("torch.")

    if weight.dtype != x.dtype and not (weight.dtype == torch.float32 and x.dtype in HALF):
        allowed = f"with {operand} in {name(x)} it must be {name(x)}" + (" or float32" if x.dtype in HALF else "")
        raise DtypeError(name="weight", value=name(weight), allowed=allowed + ": convert one of them with .to(dtype)")
    if bias is not None and bias.dtype != weight.dtype:
        allowed = f"it must be of weight's dtype {name(weight)}: convert it with .to(dtype)"
        raise DtypeError(name="bias", value=name(bias), allowed=allowed)
