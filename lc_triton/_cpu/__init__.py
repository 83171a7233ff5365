"""The three passes in pure torch, for CPU tensors (and any device torch knows).

A pass works on boxes of output positions in buffers that stay in cache: the full patch matrix, T times the input,
exists only where it is one box. 16-bit tensors are converted to float32 box by box, unless the CPU multiplies
them: products accumulate in float32 and every result is rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lc_triton._cpu import convolution, passes
from lc_triton._cpu.blocks import OnBlock
from lc_triton._cpu.passes import bind_forward
from lc_triton.core.backend import without_autocast
from lc_triton.core.problem import Problem

__all__ = ["bind_forward", "forward", "input_grad", "weight_grad", "weight_grad_blocks"]


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, *, store_z: bool
) -> tuple[Tensor, Tensor | None]:
    """y = act(x . w + bias) and, if asked for, the pre-activation."""
    with torch.no_grad(), without_autocast(x.device.type):
        if convolution.is_convolution(problem, x, weight):
            return convolution.forward(x, weight, bias, problem, store_z=store_z)
        y = torch.empty((x.shape[0], *problem.geometry.bias_shape), dtype=x.dtype, device=x.device)
        z = torch.empty_like(y) if store_z else None
        if len(x):
            passes.forward(x, weight, bias, y, z, problem)
        return y, z


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """act(dx + bias), where dx gathers what each site gave to the windows that read it."""
    geo = problem.geometry
    with torch.no_grad(), without_autocast(g.device.type):
        if convolution.is_convolution(problem, g, weight):
            return convolution.input_grad(g, weight, bias, problem)
        dx = torch.empty((g.shape[0], *geo.in_spatial, geo.in_channels), dtype=g.dtype, device=g.device)
        if len(g):
            passes.input_grad(g, weight, bias, dx, problem)
        return dx


def weight_grad(
    x: Tensor, g: Tensor, problem: Problem, dtype: torch.dtype, *, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """dw and, if asked for, the bias gradient of each position, in `dtype`."""
    with torch.no_grad(), without_autocast(x.device.type):
        dw = torch.empty(problem.geometry.weight_shape, dtype=dtype, device=x.device)
        if not len(x):
            dw.zero_()
        elif convolution.is_convolution(problem, x, dw):
            convolution.weight_grad(x, g, dw, problem)
        else:
            passes.weight_grad(x, g, dw, problem)
        if not with_bias:
            return dw, None
        return dw, g.sum(0, dtype=torch.promote_types(g.dtype, torch.float32)).to(dtype)


def weight_grad_blocks(x: Tensor, g: Tensor, problem: Problem, weight: Tensor, on_block: OnBlock) -> None:
    """Give `on_block` the weight gradient block by block, each while it is in cache; the weight shows its dtype."""
    with torch.no_grad(), without_autocast(x.device.type):
        passes.weight_grad(x, g, weight, problem, on_block)
