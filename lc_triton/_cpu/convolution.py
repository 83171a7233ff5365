"""The passes of a float32 layer whose positions all share their filters: torch's own convolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lc_triton.core.geometry import Geometry
from lc_triton.core.padding import for_convolution
from lc_triton.core.problem import Problem


def is_convolution(problem: Problem, samples: Tensor, weight: Tensor) -> bool:
    """Whether torch's convolution computes a layer; in float64 it would write the windows of all samples at once."""
    geo = problem.geometry
    shares_all = bool(geo.regions) and geo.filter_sets == 1 and geo.ndim <= 3  # torch has 1-D to 3-D ones
    return shares_all and samples.dtype == weight.dtype == torch.float32 and len(samples) > 0


def _padded(x: Tensor, sides: list[int]) -> Tensor:
    return F.pad(x, sides) if sides else x


def _channels_first(x: Tensor) -> Tensor:
    """A view of x. With channels-last strides of one channel, torch 2.13.0 computes wrong numbers in 3-D."""
    return x.unsqueeze(1).squeeze(-1) if x.shape[-1] == 1 else x.movedim(-1, 1)


def _filters(geo: Geometry, weight: Tensor) -> Tensor:
    """Weights `(*ones, *kernel, C // G, F)` as `(F, C // G, *kernel)`, a view."""
    return weight.reshape(weight.shape[geo.ndim :]).movedim(-1, 0).movedim(-1, 1)


def forward(x: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    """x . w."""
    geo, (padding, sides) = problem.geometry, for_convolution(problem.geometry.padding)
    more = geo.stride, padding, geo.dilation, False, [0] * geo.ndim, geo.groups
    z = torch.convolution(_padded(_channels_first(x), sides), _filters(geo, weight), None, *more)
    return z.movedim(1, -1).contiguous()


def weight_grad(x: Tensor, g: Tensor, dw: Tensor, problem: Problem) -> None:
    """dw."""
    filters = _filters(problem.geometry, dw)
    # With the strides of one filter, torch refuses a batch of one.
    shape_only = dw.new_empty(1).expand(filters.shape)
    filters.copy_(_gradients(problem.geometry, g, x, shape_only, False, True)[1])


def input_grad(g: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    """dx."""
    geo, (_, sides) = problem.geometry, for_convolution(problem.geometry.padding)
    shape_only = g.new_empty(1).expand(g.shape[0], *geo.in_spatial, geo.in_channels)
    found = _gradients(geo, g, shape_only, _filters(geo, weight), True, False)[0]
    return _padded(found, [-side for side in sides]).movedim(1, -1).contiguous()


def _gradients(geo: Geometry, g: Tensor, x: Tensor, filters: Tensor, *mask: bool) -> Any:
    """The gradients of the padded input and the filters, by `mask`; each is read for the other's gradient only."""
    padding, sides = for_convolution(geo.padding)
    more = None, geo.stride, padding, geo.dilation, False, [0] * geo.ndim, geo.groups, (*mask, False)
    return torch.ops.aten.convolution_backward(_channels_first(g), _padded(_channels_first(x), sides), filters, *more)
