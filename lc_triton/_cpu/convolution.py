"""The passes of a float32 layer whose positions all share their filters: torch's own convolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem

DIMS = 3  # of torch's convolutions


def is_convolution(problem: Problem, *tensors: Tensor) -> bool:
    """Whether a layer is one; for float64 torch would write the windows of all samples at once."""
    geo = problem.geometry
    one = bool(geo.regions) and geo.filter_sets == 1 and geo.ndim <= DIMS
    return one and all(len(t) and t.dtype == torch.float32 for t in tensors)


def _arguments(geo: Geometry) -> tuple[Any, ...]:
    """Those of torch's convolution after its tensors."""
    return geo.stride, _padding(geo) or [0] * geo.ndim, geo.dilation, False, [0] * geo.ndim, geo.groups


def _padding(geo: Geometry) -> list[int] | None:
    """Padding as torch's convolution knows it, alike on both sides; None for other padding."""
    return [low for low, _ in geo.padding] if all(low == high for low, high in geo.padding) else None


def _padded(geo: Geometry, x: Tensor, sign: int = 1) -> Tensor:
    """Channels-first sites and the padding that torch's convolution does not know, or without it for a sign of -1."""
    if _padding(geo) is not None:
        return x
    return F.pad(x, [sign * side for pair in reversed(geo.padding) for side in pair])


def _filters(geo: Geometry, weight: Tensor) -> Tensor:
    """Weights `(*ones, *kernel, C // G, F)` as `(F, C // G, *kernel)`, a view."""
    return weight.reshape(weight.shape[geo.ndim :]).movedim(-1, 0).movedim(-1, 1)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, *, store_z: bool
) -> tuple[Tensor, Tensor | None]:
    """y and z."""
    geo = problem.geometry
    sites = _padded(geo, x.movedim(-1, 1))
    z = torch.convolution(sites, _filters(geo, weight), None, *_arguments(geo)).movedim(1, -1).contiguous()
    if bias is not None:
        z += bias
    y = problem.activation(z)
    return y, (z.clone() if y is z else z) if store_z else None


def weight_grad(x: Tensor, g: Tensor, dw: Tensor, problem: Problem) -> None:
    """dw."""
    geo = problem.geometry
    filters = _filters(geo, dw)
    filters.copy_(_gradients(geo, g, _padded(geo, x.movedim(-1, 1)), filters, False, True)[1])


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """act(dx + bias)."""
    geo = problem.geometry
    shape_only = g.new_empty(1).expand(len(g), geo.in_channels, *geo.in_spatial)
    found = _gradients(geo, g, _padded(geo, shape_only), _filters(geo, weight), True, False)[0]
    dx = _padded(geo, found, -1).movedim(1, -1).contiguous()
    return problem.activation(dx if bias is None else dx.add_(bias))


def _gradients(geo: Geometry, g: Tensor, x: Tensor, filters: Tensor, *mask: bool) -> Any:
    """Those of the input and of the filters; the other of the two gives its shape alone."""
    return torch.ops.aten.convolution_backward(g.movedim(-1, 1), x, filters, None, *_arguments(geo), (*mask, False))
