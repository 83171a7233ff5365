"""The three passes in pure torch, for CPU tensors (and any device torch knows).

A pass works on boxes of output positions in buffers that stay in cache: the full patch matrix, T times the input,
exists only where it is one box. 16-bit tensors are converted to float32 box by box, unless the CPU multiplies
them: products accumulate in float32 and every result is rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lc_triton._cpu import convolution, passes, position
from lc_triton._cpu.blocks import OnBlock
from lc_triton._cpu.position import bind_product
from lc_triton.core.backend import without_autograd_and_autocast
from lc_triton.core.problem import Problem

__all__ = ["bind_product", "forward", "input_grad", "weight_grad", "weight_grad_blocks"]


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, *, store_z: bool
) -> tuple[Tensor, Tensor | None]:
    """y = act(x . w + bias) and, if asked for, the pre-activation."""
    with without_autograd_and_autocast(x.device.type):
        if (operator := _operator(problem, x, weight)) is not None:
            z = operator.forward(x, weight, problem)
            z = z if bias is None else z.add_(bias)
            y = problem.activation(z)
            return y, (z.clone() if y is z else z) if store_z else None
        y = x.new_empty((x.shape[0], *problem.geometry.bias_shape))
        z = torch.empty_like(y) if store_z else None
        if x.shape[0]:
            passes.forward(x, weight, bias, y, z, problem)
        return y, z


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """act(dx + bias), where dx sums the gradients of all windows at the sites that they read."""
    with without_autograd_and_autocast(g.device.type):
        if (operator := _operator(problem, g, weight)) is not None:
            dx = operator.input_grad(g, weight, problem)
            return problem.activation(dx if bias is None else dx.add_(bias))
        dx = g.new_empty((g.shape[0], *problem.geometry.in_spatial, problem.geometry.in_channels))
        if g.shape[0]:
            passes.input_grad(g, weight, bias, dx, problem)
        return dx


def weight_grad(
    x: Tensor, g: Tensor, problem: Problem, dtype: torch.dtype, *, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """dw and, if asked for, the bias gradient of each position, in `dtype`."""
    with without_autograd_and_autocast(x.device.type):
        dw = torch.empty(problem.geometry.weight_shape, dtype=dtype, device=x.device)
        if x.shape[0]:
            (_operator(problem, x, dw) or passes).weight_grad(x, g, dw, problem)
        else:
            dw.zero_()
        if not with_bias:
            return dw, None
        return dw, g.sum(0, dtype=torch.promote_types(g.dtype, torch.float32)).to(dtype)


def weight_grad_blocks(x: Tensor, g: Tensor, problem: Problem, weight: Tensor, on_block: OnBlock) -> None:
    """Give `on_block` the weight gradient block by block, each while it is in cache; the weight gives its dtype."""
    with without_autograd_and_autocast(x.device.type):
        passes.weight_grad(x, g, weight, problem, on_block)


def _operator(problem: Problem, samples: Tensor, weight: Tensor) -> Any:
    """The module for a layer whose linear passes are one operator of torch each; None for other layers."""
    if position.is_position(problem, samples, weight):
        return position
    return convolution if convolution.is_convolution(problem, samples, weight) else None
