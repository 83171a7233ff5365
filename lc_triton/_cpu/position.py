"""The passes of a layer of one position, whose windows are one matrix in x: a product of two matrices each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lc_triton._cpu.blocks import Layer, compute_dtype
from lc_triton.core.problem import Problem


def is_position(problem: Problem, x: Tensor, weight: Tensor) -> bool:
    """Whether a layer has one position, whose windows are a matrix in x, and multiplies in these tensors' dtype."""
    return Layer.of(problem).is_matrix and x.dtype == weight.dtype == compute_dtype(x.dtype) and len(x) > 0


def bind_product(x: Tensor, weight: Tensor, problem: Problem) -> Callable[[Tensor, Tensor], Tensor] | None:
    """x . w for tensors like these; None if it is not one product of views of them."""
    if not (is_position(problem, x, weight) and x.is_contiguous() and weight.is_contiguous()):
        return None
    (size, stride), columns = _windows(len(x), problem), problem.geometry.out_channels
    # `as_strided` takes less time than `view`.
    return lambda x, weight: torch.mm(x.as_strided(size, stride), weight.as_strided((size[1], columns), (columns, 1)))


def _windows(batch: int, problem: Problem) -> tuple[tuple[int, int], tuple[int, int]]:
    """Sizes `(B, D)` and strides of the windows of contiguous sites."""
    geo, step = problem.geometry, Layer.of(problem).tap_stride or 0
    return (batch, geo.window), (geo.sites * geo.in_channels, step)


def forward(x: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    """x . w, not a view: autograd refuses changes in place of a view that was made without gradients."""
    z = torch.mm(x.contiguous().as_strided(*_windows(len(x), problem)), weight.reshape(problem.geometry.window, -1))
    return z.resize_(x.shape[0], *problem.geometry.bias_shape)


def weight_grad(x: Tensor, g: Tensor, dw: Tensor, problem: Problem) -> None:
    """dw."""
    torch.mm(x.contiguous().as_strided(*_windows(len(x), problem)).T, g.flatten(1), out=dw.view(-1, dw.shape[-1]))


def input_grad(g: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    """dx."""
    geo = problem.geometry
    dx = g.new_zeros(g.shape[0], *geo.in_spatial, geo.in_channels)
    dx.as_strided(*_windows(len(g), problem)).copy_(torch.mm(g.flatten(1), weight.reshape(geo.window, -1).T))
    return dx
