"""A linear map of its own at every position: on a CPU one batched product, elsewhere the passes of local_conv."""

from __future__ import annotations

import torch
from torch import Tensor

from lc_triton.core import fused
from lc_triton.core.activations import AFTER_KERNEL
from lc_triton.core.backend import autocast_enabled, resolve
from lc_triton.core.fused import PartSlot
from lc_triton.core.storage import check_memory
from lc_triton.ops.checks import check_tensor
from lc_triton.ops.plan import Plan
from lc_triton.ops.run import run


def run_linear(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """y `(B, P, F)` of x `(B, P, C)`, weight `(P, C, F)`, bias `(P, F)` or None, and the plan of one tap.

    A CPU's memory is by position, as torch.baddbmm writes it: a copy in the order of samples takes up to half as long
    as the product. Numbers of 16 bits go the passes' way, which rounds once.
    """
    if not _is_one_product(x, weight, bias):
        return run(x, _of_one_tap(weight), bias, plan)
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        check_memory(name, tensor)
    by_position = x.transpose(0, 1)
    z = torch.bmm(by_position, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), by_position, weight)
    y = plan.activation(z.transpose(0, 1))
    if isinstance(plan.after, str):
        return AFTER_KERNEL[plan.after](y, dim=-1)
    return y if plan.after is None else plan.after(y)


def _of_one_tap(weight: Tensor) -> Tensor:
    """The weight as `(P, 1, C, F)`. Where kernels read it, the node of the layer finds the optimizer's slot by it."""
    try:
        view = weight.unsqueeze(1)
    except RuntimeError:
        check_tensor("weight", weight)
        raise
    if torch.compiler.is_compiling() or not fused.slots or not view.requires_grad or type(view) is not Tensor:
        return view
    slot = fused.slot_of(weight)
    if slot is not None and resolve(weight.device.type) == "triton":
        fused.register(view, PartSlot(slot), keep=True)
    return view


def _is_one_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are tensors of a CPU, of one dtype that has no 16 bits; all else is checked by `run`."""
    device, dtype = x.device, x.dtype
    return (
        device.type == "cpu"
        and weight.layout is torch.strided
        and (bias is None or bias.layout is torch.strided)
        and weight.device == device
        and dtype == weight.dtype
        and (bias is None or (bias.dtype == dtype and bias.device == device))
        and dtype in (torch.float32, torch.float64)
        and resolve("cpu") == "cpu"
        and not (torch._C._is_any_autocast_enabled() and autocast_enabled("cpu"))
    )
