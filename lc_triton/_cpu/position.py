"""The passes of a layer of one position, whose windows are one matrix in x: a product of two matrices each."""

from __future__ import annotations

import torch
from torch import Tensor

from lc_triton._cpu.blocks import Layer, compute_dtype
from lc_triton.core.problem import Problem


def is_position(problem: Problem, x: Tensor, weight: Tensor) -> bool:
    """Whether a layer is one, and its products are of these tensors' dtype."""
    return Layer.of(problem).is_matrix and x.dtype == weight.dtype == compute_dtype(x.dtype) and len(x) > 0


def _windows(x: Tensor, problem: Problem) -> Tensor:
    """The windows of contiguous sites, `(B, D)`."""
    geo, step = problem.geometry, Layer.of(problem).tap_stride or 0
    return x.as_strided((x.shape[0], geo.window), (geo.sites * geo.in_channels, step), x.storage_offset())


def forward(x: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    """x . w, no view: one made without gradients takes no change in place."""
    z = torch.mm(_windows(x.contiguous(), problem), weight.reshape(problem.geometry.window, -1))
    return z.resize_(x.shape[0], *problem.geometry.bias_shape)


def weight_grad(x: Tensor, g: Tensor, dw: Tensor, problem: Problem) -> None:
    """dw."""
    torch.mm(_windows(x.contiguous(), problem).T, g.flatten(1), out=dw.view(problem.geometry.window, -1))


def input_grad(g: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    """dx."""
    geo = problem.geometry
    dx = g.new_zeros(g.shape[0], *geo.in_spatial, geo.in_channels)
    _windows(dx, problem).copy_(torch.mm(g.flatten(1), weight.reshape(geo.window, -1).T))
    return dx
