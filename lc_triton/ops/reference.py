"""The definition of a locally connected layer, in plain torch: slow, obvious, any floating dtype, differentiable.

    z[b,p,f] = sum over t,c of  x[b, site(p,t), c] * w[p,t,c,f]  + bias[p,f]          y = act(z)

Everything fast in this library is compared with this file; nothing fast imports it.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from lc_triton.core.activations import LINEAR, Activation
from lc_triton.core.geometry import Geometry


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: Activation = LINEAR
) -> Tensor:
    """y of a locally connected layer, tap by tap.

    Args:
        x: input, `(B, *in_spatial, C)`.
        weight: `(*out_spatial, *kernel, C // groups, F)`, or where positions share filters `(*regions, ...)`.
        bias: `(*out_spatial, F)`, `(F,)` or None.
        geometry: sizes, stride, padding, dilation, groups and regions.
        activation: applied last.

    Returns:
        `(B, *out_spatial, F)` in x's dtype.

    Source: Taigman et al., "DeepFace", CVPR 2014, section 3.1; Keras 2's LocallyConnected1D and 2D.
    """
    geo = geometry
    batch, groups = x.shape[0], geo.groups
    filters = geo.out_channels // groups
    per_position = unshared(weight, geo).to(x.dtype)
    per_position = per_position.reshape(*geo.out_spatial, geo.taps, geo.in_channels // groups, groups, filters)
    z = x.new_zeros(batch, *geo.out_spatial, groups, filters)
    for t, tap in enumerate(itertools.product(*(range(k) for k in geo.kernel))):
        sites = x
        inside = torch.ones(geo.out_spatial, dtype=torch.bool, device=x.device)
        for dim in range(geo.ndim):
            position = torch.arange(geo.out_spatial[dim], device=x.device)
            site = position * geo.stride[dim] + tap[dim] * geo.dilation[dim] - geo.padding[dim][0]
            valid = (site >= 0) & (site < geo.in_spatial[dim])
            sites = sites.index_select(dim + 1, site.clamp(0, geo.in_spatial[dim] - 1))
            inside = inside & valid.reshape((-1,) + (1,) * (geo.ndim - 1 - dim))
        sites = torch.where(inside[..., None], sites, 0)  # (B, *out_spatial, C)
        sites = sites.reshape(batch, *geo.out_spatial, groups, geo.in_channels // groups)
        z = z + torch.einsum(
            "...gc,...cgf->...gf", sites, per_position.select(geo.ndim, t).expand(batch, *[-1] * (geo.ndim + 3))
        )
    z = z.reshape(batch, *geo.out_spatial, geo.out_channels)
    return activation(z if bias is None else z + bias.to(x.dtype))


def unshared(weight: Tensor, geometry: Geometry) -> Tensor:
    """The weight with an entry for each position, `(*out_spatial, *kernel, C // groups, F)`.

    Args:
        weight: `(*regions, *kernel, C // groups, F)`; the region of a position p is `p // block % count`, dimension by
            dimension.
        geometry: of the layer.

    Source: Gregor and LeCun, "Emergence of complex-like cells in a temporal product network with local receptive
        fields", 2010, for tiled convolutions; a convolution is one region of all positions.
    """
    for dim, (block, count) in enumerate(geometry.regions):
        region = torch.arange(geometry.out_spatial[dim], device=weight.device) // block % count
        weight = weight.index_select(dim, region)
    return weight


def transpose(
    y: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: Activation = LINEAR
) -> Tensor:
    """x of a transposed locally connected layer, tap by tap: what `forward` reads from a site, this adds to it.

    Args:
        y: input, `(B, *out_spatial, F)` of the geometry.
        weight: `(*out_spatial, *kernel, C // groups, F)`.
        bias: `(*in_spatial, C)`, `(C,)` or None.
        geometry: of the layer whose adjoint this is.
        activation: applied last.

    Returns:
        `(B, *in_spatial, C)` in y's dtype.

    Source: the adjoint, <forward(x), y> = <x, transpose(y)>; asked of PyTorch in its issue 15617.
    """
    geo = geometry
    batch, groups, channels = y.shape[0], geo.groups, geo.in_channels // geo.groups
    per_position = unshared(weight, geo).to(y.dtype)
    per_position = per_position.reshape(geo.positions, geo.taps, channels, groups, geo.out_channels // groups)
    filters = y.reshape(batch, geo.positions, groups, geo.out_channels // groups)
    z = y.new_zeros(batch, geo.sites, geo.in_channels)
    for t, tap in enumerate(itertools.product(*(range(k) for k in geo.kernel))):
        site = torch.zeros(geo.out_spatial, dtype=torch.long, device=y.device)
        inside = torch.ones(geo.out_spatial, dtype=torch.bool, device=y.device)
        for dim in range(geo.ndim):
            at = torch.arange(geo.out_spatial[dim], device=y.device) * geo.stride[dim]
            at = at + tap[dim] * geo.dilation[dim] - geo.padding[dim][0]
            at = at.reshape((-1,) + (1,) * (geo.ndim - 1 - dim))
            site = site * geo.in_spatial[dim] + at
            inside = inside & (at >= 0) & (at < geo.in_spatial[dim])
        given = torch.einsum("bpgf,pcgf->bpgc", filters, per_position[:, t]).flatten(2)
        z = z.index_add(1, site[inside], given[:, inside.flatten()])
    z = z.reshape(batch, *geo.in_spatial, geo.in_channels)
    return activation(z if bias is None else z + bias.to(y.dtype))
