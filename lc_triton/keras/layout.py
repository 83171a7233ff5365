"""Between our weights and the arrays of Keras's implementation 1."""

from __future__ import annotations

from torch import Tensor

from lc_triton._geometry import Geometry


def kernel_shape(geometry: Geometry) -> tuple[int, int, int]:
    """(P, D, F), the shape of the kernel."""
    return geometry.positions, geometry.window, geometry.out_channels


def kernel_to_keras(weight: Tensor, geometry: Geometry, data_format: str) -> Tensor:
    """The kernel `(P, D, F)`, its windows in the order (taps, C) for channels_last, a view, else (C, taps)."""
    if data_format == "channels_first":
        weight = weight.movedim(-2, geometry.ndim)
    return weight.reshape(kernel_shape(geometry))


def kernel_from_keras(kernel: Tensor, geometry: Geometry, data_format: str) -> Tensor:
    """The weight `(*out_spatial, *kernel, C // groups, F)` of a Keras kernel."""
    if data_format == "channels_last":
        return kernel.reshape(geometry.weight_shape)
    channels = geometry.in_channels // geometry.groups
    first = kernel.reshape(*geometry.out_spatial, channels, *geometry.kernel, geometry.out_channels)
    return first.movedim(geometry.ndim, -2)


def bias_to_keras(bias: Tensor, data_format: str) -> Tensor:
    """The bias `(*out_spatial, F)`.

    With channels_first, Keras reshapes it where it should transpose, so that its memory is (F, P).
    """
    return bias if data_format == "channels_last" else bias.movedim(-1, 0).reshape(bias.shape)


def bias_from_keras(bias: Tensor, data_format: str) -> Tensor:
    """Our bias `(*out_spatial, F)` of a Keras bias of that shape."""
    if data_format == "channels_last":
        return bias
    return bias.reshape(bias.shape[-1], *bias.shape[:-1]).movedim(0, -1)
