"""The three faces in pure torch, for CPU tensors (and any device torch knows).

A face works on a few output positions at a time in small buffers that stay in cache: the full patch matrix, T times
the input, never exists, but for layers so small that starting torch's functions is all that takes time. 16-bit tensors
are converted to float32 block by block, unless the CPU multiplies them: products accumulate in float32 and every result
is rounded once.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lc_triton._cpu import depthwise, matmul, small
from lc_triton.core.backend import autocast_enabled
from lc_triton.core.problem import Problem

__all__ = ["forward", "input_grad", "weight_grad"]


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, *, store_z: bool
) -> tuple[Tensor, Tensor | None]:
    """y = act(x . w + bias) and, if asked for, the pre-activation."""
    if (few := _small(problem, x)) is not None:
        return small.forward(few, x, weight, bias, problem, store_z=store_z)
    shape = (x.shape[0], *problem.geometry.bias_shape)
    y = torch.empty(shape, dtype=x.dtype, device=x.device)
    z = torch.empty_like(y) if store_z else None
    if y.numel():
        _blocks("forward", problem, x, weight, bias, y, z)
    return y, z


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """act(dx + bias), where dx gathers what each site gave to the windows that read it."""
    if (few := _small(problem, g)) is not None:
        return small.input_grad(few, g, weight, bias, problem)
    geo = problem.geometry
    dx = torch.empty((g.shape[0], *geo.in_spatial, geo.in_channels), dtype=g.dtype, device=g.device)
    if dx.numel():
        _blocks("input_grad", problem, g, weight, bias, dx)
    return dx


def weight_grad(
    x: Tensor, g: Tensor, problem: Problem, dtype: torch.dtype, *, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """dw and, if asked for, the bias gradient of each position, in `dtype`."""
    if (few := _small(problem, x)) is not None:
        return small.weight_grad(few, x, g, dtype, with_bias=with_bias)
    dw = torch.empty(problem.geometry.weight_shape, dtype=dtype, device=x.device)
    if len(x):
        _blocks("weight_grad", problem, x, g, dw)
    else:
        dw.zero_()
    if not with_bias:
        return dw, None
    with torch.no_grad():
        return dw, g.sum(0, dtype=torch.promote_types(g.dtype, torch.float32)).to(dtype)


def _small(problem: Problem, x: Tensor) -> small.Small | None:
    """The layer if it is a small one for x, unless autocast would change what its products compute."""
    found = small.Small.of(problem, x.shape[0])
    return None if found is None or autocast_enabled(x.device.type) else found


def _blocks(face: str, problem: Problem, *tensors: Any) -> None:
    """Run a face without autograd or autocast: both would change what the products inside it compute."""
    geo = problem.geometry
    kind: ModuleType = depthwise if geo.in_channels == geo.groups > 1 else matmul
    run, device = getattr(kind, face), tensors[0].device.type
    if autocast_enabled(device):
        with torch.no_grad(), torch.autocast(device, enabled=False):
            run(*tensors, problem)
    elif torch.is_grad_enabled():
        with torch.no_grad():
            run(*tensors, problem)
    else:
        run(*tensors, problem)
