"""A locally connected layer of low rank: one convolution by the basis filters, then a mixture at every position."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lc_triton.core.activations import AFTER_KERNEL
from lc_triton.core.backend import autocast_enabled
from lc_triton.core.dtypes import check_dtypes
from lc_triton.ops.checks import check_devices, check_input
from lc_triton.ops.plan import Plan, input_format_of, to_internal

CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def run_low_rank(x: Tensor, basis: Tensor, mixing: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """The layer's output, channels first.

    Args:
        x: `(B, C, *spatial)` or `(C, *spatial)`.
        basis: `(K, *kernel, C // groups, F)`.
        mixing: `(*out_spatial, K)`.
        bias: `(*out_spatial, F)`, `(F,)` or None.
        plan: of the layer whose weight at a position is the mixture of the basis.
    """
    check_input(x, plan)
    check_devices("x", x, basis, bias)
    dtype = x.dtype
    if autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, basis.dtype):
        dtype = torch.get_autocast_dtype(x.device.type)
    else:
        check_dtypes("x", x, basis, bias)
    batched = input_format_of(x, plan).batched
    x, basis, mixing = to_internal(x, plan).movedim(-1, 1).to(dtype), basis.to(dtype), mixing.to(dtype)
    z = _convolve(x, basis, plan)  # (B, F, K, *out_spatial)
    y = (z * mixing.movedim(-1, 0)).sum(2)
    if bias is not None:
        bias = bias.to(dtype)
        y = y + (bias.movedim(-1, 0) if bias.ndim > 1 else bias.view(-1, *[1] * plan.geometry.ndim))
    y = plan.activation(y)
    if isinstance(plan.after, str):
        y = AFTER_KERNEL[plan.after](y, dim=1)
    y = y if batched else y.squeeze(0)
    return plan.after(y) if callable(plan.after) else y


def unshared_weight(basis: Tensor, mixing: Tensor) -> Tensor:
    """The weight `(*out_spatial, *kernel, C // groups, F)` of the locally connected layer that computes the same."""
    weight: Tensor = torch.tensordot(mixing, basis, 1)
    return weight


def _convolve(x: Tensor, basis: Tensor, plan: Plan) -> Tensor:
    """The filters of the basis, those of a group beside each other, at every position."""
    geo, rank = plan.geometry, basis.shape[0]
    filters = basis.movedim((-1, 0, -2), (0, 1, 2)).flatten(0, 1)  # (F * K, C // groups, *kernel)
    padding = [low for low, _ in geo.padding]
    if any(low != high for low, high in geo.padding):
        x, padding = F.pad(x, [side for pair in reversed(geo.padding) for side in pair]), [0] * geo.ndim
    z: Tensor = CONVOLUTIONS[geo.ndim](
        x, filters, stride=geo.stride, padding=padding, dilation=geo.dilation, groups=geo.groups
    )
    by_filter: Tensor = z.unflatten(1, (geo.out_channels, rank))
    return by_filter
