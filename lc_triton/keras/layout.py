"""Conversion between weights and the arrays of Keras's three implementations.

P output positions, T taps, C channels, F filters. Implementation 1 keeps a window a position. Implementation 2 keeps
the whole matrix from every input to every output, zeros included; implementation 3 keeps the numbers of that matrix
between what is connected. A tap that falls on padding connects nothing: it has no place in those two, and is 0 when set
from them. In groups the matrix is block-diagonal in the channels, which leaves 2 with more zeros and 3 with fewer
numbers.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from lc_triton.core.geometry import Geometry

IMPLEMENTATIONS = (1, 2, 3)

Index: TypeAlias = tuple[Tensor | slice, ...]


def kernel_shape(geometry: Geometry, data_format: str = "channels_last", implementation: int = 1) -> tuple[int, ...]:
    """The shape of the kernel.

    1: `(P, D, F)`. 2: `(*in_spatial, C, *out_spatial, F)`, with channels_first `(C, *in_spatial, F, *out_spatial)`.
    3: `(n,)`.
    """
    channels, filters = geometry.in_channels, geometry.out_channels
    if implementation == 1:
        return geometry.positions, geometry.window, filters
    if implementation == 3:
        connected = int(inside(geometry, torch.device("cpu")).sum())
        return (connected * (channels // geometry.groups) * filters,)
    if data_format == "channels_first":
        return channels, *geometry.in_spatial, filters, *geometry.out_spatial
    return *geometry.in_spatial, channels, *geometry.out_spatial, filters


def kernel_to_keras(weight: Tensor, geometry: Geometry, data_format: str, implementation: int = 1) -> Tensor:
    """The kernel of a weight `(*out_spatial, *kernel, C // groups, F)`.

    1: the windows are in the order (taps, C) for channels_last, a view, else (C, taps). 2: zeros between what is not
    connected. 3: sorted by output, then by input, each counted as it lies in memory in this data format.
    """
    if implementation == 2:
        dense = weight.new_zeros(kernel_shape(geometry, data_format, 2))
        tap, entry = _connections(geometry, weight.device)
        _matrices(dense, geometry, data_format)[entry] = _windows(weight, geometry)[tap]
        return dense
    if implementation == 3:
        numbers, mask = _sorted(weight, geometry, data_format)
        # Selecting takes five times the memory of what is selected.
        return numbers.reshape(-1) if mask.all() else numbers.masked_select(mask)
    if data_format == "channels_first":
        weight = weight.movedim(-2, geometry.ndim)
    return weight.reshape(kernel_shape(geometry))


def kernel_from_keras(kernel: Tensor, geometry: Geometry, data_format: str, implementation: int = 1) -> Tensor:
    """The weight `(*out_spatial, *kernel, C // groups, F)` of a Keras kernel; what it masks is not read."""
    if implementation == 2:
        weight = kernel.new_zeros(geometry.weight_shape)
        tap, entry = _connections(geometry, kernel.device)
        _windows(weight, geometry)[tap] = _matrices(kernel, geometry, data_format)[entry]
        return weight
    if implementation == 3:
        weight = kernel.new_zeros(geometry.weight_shape)
        numbers, mask = _sorted(weight, geometry, data_format)
        numbers.masked_scatter_(mask, kernel)
        return weight
    if data_format == "channels_last":
        return kernel.reshape(geometry.weight_shape)
    channels = geometry.in_channels // geometry.groups
    first = kernel.reshape(*geometry.out_spatial, channels, *geometry.kernel, geometry.out_channels)
    return first.movedim(geometry.ndim, -2)


def connected(weight: Tensor, geometry: Geometry) -> Tensor:
    """The weight with 0 where a tap falls on padding."""
    if not has_padding(geometry):
        return weight
    mask = inside(geometry, weight.device).reshape(*geometry.out_spatial, *geometry.kernel, 1, 1)
    return torch.where(mask, weight, 0)


def has_padding(geometry: Geometry) -> bool:
    """Whether a tap may fall on padding."""
    return any(map(any, geometry.padding))


def inside(geometry: Geometry, device: torch.device) -> Tensor:
    """Which taps of each position are inside the input, not on padding, `(P, T)`."""
    mask = torch.ones((), dtype=torch.bool, device=device)
    for dim, size in enumerate(geometry.in_spatial):
        site = _axis_sites(geometry, dim, device)
        mask = mask & (site >= 0) & (site < size)
    return mask.reshape(geometry.positions, geometry.taps)


def bias_to_keras(bias: Tensor, data_format: str) -> Tensor:
    """The bias `(*out_spatial, F)`.

    With channels_first, Keras reshapes it where it should transpose, so that its memory is (F, P).
    """
    return bias if data_format == "channels_last" else bias.movedim(-1, 0).reshape(bias.shape)


def bias_from_keras(bias: Tensor, data_format: str) -> Tensor:
    """The bias `(*out_spatial, F)` of a Keras bias of that shape."""
    if data_format == "channels_last":
        return bias
    return bias.reshape(bias.shape[-1], *bias.shape[:-1]).movedim(0, -1)


def _sites(geometry: Geometry, device: torch.device) -> Tensor:
    """The input site that each tap of each position reads, `(P, T)`; -1 on padding."""
    flat = torch.zeros((), dtype=torch.int64, device=device)
    for dim, size in enumerate(geometry.in_spatial):
        flat = flat * size + _axis_sites(geometry, dim, device)
    return torch.where(inside(geometry, device), flat.reshape(geometry.positions, geometry.taps), -1)


def _axis_sites(geometry: Geometry, dim: int, device: torch.device) -> Tensor:
    """The place along one axis that each tap of each position reads, with an axis for each of theirs."""
    position = torch.arange(geometry.out_spatial[dim], device=device) * geometry.stride[dim] - geometry.padding[dim][0]
    tap = torch.arange(geometry.kernel[dim], device=device) * geometry.dilation[dim]
    shape = [1] * (2 * geometry.ndim)
    shape[dim], shape[geometry.ndim + dim] = len(position), len(tap)
    return (position[:, None] + tap).reshape(shape)


def _connections(geometry: Geometry, device: torch.device) -> tuple[Index, Index]:
    """Where each connection is: its tap as an index into `_windows`, its entry as one into `_matrices`."""
    sites = _sites(geometry, device)
    position, tap = (sites >= 0).nonzero(as_tuple=True)
    group = torch.arange(geometry.groups, device=device)
    return (position, tap), (sites[position, tap][:, None], group, slice(None), position[:, None], group)


def _windows(weight: Tensor, geometry: Geometry) -> Tensor:
    """A view of the weight as `(P, T, G, C // G, F // G)`."""
    channels, filters = geometry.in_channels // geometry.groups, geometry.out_channels // geometry.groups
    return weight.reshape(geometry.positions, geometry.taps, channels, geometry.groups, filters).movedim(3, 2)


def _matrices(dense: Tensor, geometry: Geometry, data_format: str) -> Tensor:
    """A view of implementation 2's kernel as `(sites, G, C // G, P, G, F // G)`."""
    groups, sites, positions = geometry.groups, geometry.sites, geometry.positions
    channels, filters = geometry.in_channels // groups, geometry.out_channels // groups
    if data_format == "channels_first":
        return dense.reshape(groups, channels, sites, groups, filters, positions).permute(2, 0, 1, 5, 3, 4)
    return dense.reshape(sites, groups, channels, positions, groups, filters)


def _sorted(weight: Tensor, geometry: Geometry, data_format: str) -> tuple[Tensor, Tensor]:
    """A view of the weight with its axes in implementation 3's order, and which of its numbers are connected.

    A window's taps are on sites in rising order, so sorted axes are sorted numbers.
    """
    mask = inside(geometry, weight.device)
    numbers = weight.reshape(geometry.positions, geometry.taps, -1, geometry.out_channels)
    if data_format == "channels_first":
        return numbers.permute(3, 0, 2, 1), mask[:, None, :]
    return numbers.permute(0, 3, 1, 2), mask[:, None, :, None]
