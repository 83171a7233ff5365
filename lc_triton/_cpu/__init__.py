"""The three faces in pure torch, for CPU tensors (and any device torch knows).

Every face works on a few output positions at a time in small buffers that stay in cache: the full patch matrix, T times
the input, never exists. 16-bit tensors are converted to float32 block by block: products accumulate in float32 and
every result is rounded once.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lc_triton._backend import autocast_enabled
from lc_triton._cpu import depthwise, matmul
from lc_triton._cpu.pages import empty
from lc_triton._problem import Problem

__all__ = ["empty", "forward", "input_grad", "weight_grad"]


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, z: Tensor | None, problem: Problem) -> None:
    """Write y = act(x . w + bias), and the pre-activation into z unless it is None."""
    _plain("forward", problem, x, weight, bias, y, z)


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem) -> None:
    """Write act(dx + bias), where dx gathers what each site gave to the windows that read it."""
    _plain("input_grad", problem, g, weight, bias, dx)


def weight_grad(x: Tensor, g: Tensor, dw: Tensor, db: Tensor | None, problem: Problem) -> None:
    """Write dw and, unless it is None, the bias gradient of each position."""
    _plain("weight_grad", problem, x, g, dw)
    if db is not None:
        with torch.no_grad():
            db.copy_(g.sum(0, dtype=torch.promote_types(g.dtype, torch.float32)))


def _plain(face: str, problem: Problem, *tensors: Any) -> None:
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
