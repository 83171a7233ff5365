"""The three passes in pure torch, for CPU tensors (and any device torch knows).

A pass works on blocks of output positions in buffers that stay in cache: the full patch matrix, T times the input,
exists only where it is one block. 16-bit tensors are converted to float32 block by block, unless the CPU multiplies
them: products accumulate in float32 and every result is rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lc_triton._cpu import convolution, depthwise, direct, matmul, shared
from lc_triton._cpu.blocks import OnBlock, is_single
from lc_triton._cpu.direct import Direct, bind_forward
from lc_triton.core.backend import autocast_enabled
from lc_triton.core.problem import Problem

__all__ = ["bind_forward", "forward", "input_grad", "weight_grad", "weight_grad_blocks"]


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, *, store_z: bool
) -> tuple[Tensor, Tensor | None]:
    """y = act(x . w + bias) and, if asked for, the pre-activation."""
    with _plain(x):
        if len(x) and (layer := Direct.of(problem, x, weight)):
            return direct.forward(layer, x, weight, bias, problem, store_z=store_z)
        if convolution.is_convolution(problem, x, weight):
            return convolution.forward(x, weight, bias, problem, store_z=store_z)
        shape = (x.shape[0], *problem.geometry.bias_shape)
        y = torch.empty(shape, dtype=x.dtype, device=x.device)
        z = torch.empty_like(y) if store_z else None
        if len(x):
            _in_blocks(problem, len(x)).forward(x, weight, bias, y, z, problem)
        return y, z


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """act(dx + bias), where dx gathers what each site gave to the windows that read it."""
    geo = problem.geometry
    with _plain(g):
        if convolution.is_convolution(problem, g, weight):
            return convolution.input_grad(g, weight, bias, problem)
        dx = torch.empty((g.shape[0], *geo.in_spatial, geo.in_channels), dtype=g.dtype, device=g.device)
        if len(g) and (layer := Direct.of(problem, g, weight, input_grad=True)):
            direct.input_grad(layer, g, weight, bias, dx, problem)
        elif len(g):
            _in_blocks(problem, len(g)).input_grad(g, weight, bias, dx, problem)
        return dx


def weight_grad(
    x: Tensor, g: Tensor, problem: Problem, dtype: torch.dtype, *, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """dw and, if asked for, the bias gradient of each position, in `dtype`."""
    with _plain(x):
        dw = torch.empty(problem.geometry.weight_shape, dtype=dtype, device=x.device)
        if not len(x):
            dw.zero_()
        elif layer := Direct.of(problem, x, dw):
            direct.weight_grad(layer, x, g, dw)
        elif convolution.is_convolution(problem, x, dw):
            convolution.weight_grad(x, g, dw, problem)
        else:
            _in_blocks(problem, len(x)).weight_grad(x, g, dw, problem)
        if not with_bias:
            return dw, None
        return dw, g.sum(0, dtype=torch.promote_types(g.dtype, torch.float32)).to(dtype)


def weight_grad_blocks(x: Tensor, g: Tensor, problem: Problem, weight: Tensor, on_block: OnBlock) -> None:
    """Give `on_block` the weight gradient block by block, each while it is in cache; the weight shows its dtype."""
    with _plain(x):
        _in_blocks(problem, len(x)).weight_grad(x, g, weight, problem, on_block)


def _in_blocks(problem: Problem, batch: int) -> Any:
    """The module whose passes work on blocks of positions."""
    if problem.geometry.regions:
        return shared
    is_depthwise = problem.geometry.in_channels == problem.geometry.groups > 1 or is_single(problem, batch)
    return depthwise if is_depthwise else matmul


@contextmanager
def _without_autograd_and_autocast(device: str) -> Iterator[None]:
    with torch.no_grad(), torch.autocast(device, enabled=False):
        yield


def _plain(x: Tensor) -> AbstractContextManager[Any]:
    """Where products are computed as they are written, and none is recorded: no autograd and no autocast."""
    if torch._C._is_any_autocast_enabled() and autocast_enabled(x.device.type):
        return _without_autograd_and_autocast(x.device.type)
    return torch.no_grad() if torch.is_grad_enabled() else nullcontext()
