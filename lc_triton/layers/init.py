"""torch.nn.init for weights `(*positions, *kernel, C // groups, F)`: each position as torch initialises a convolution.

torch.nn.init itself reads the first two dimensions as filters and channels, which are the last two here: its fans and
matrices are those of another layer. The functions here have its names and arguments.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.init import (
    calculate_gain,
    constant_,
    normal_,
    ones_,
    trunc_normal_,
    uniform_,
    zeros_,
)
from torch.nn.parameter import is_lazy

from lc_triton.core.arguments import check_int, check_name
from lc_triton.core.geometry import spatial_dims
from lc_triton.core.parameters import shares_memory
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, GroupsError, NotBuiltError, ParallelError
from lc_triton.ops.checks import check_tensor

__all__ = [
    "calculate_gain",
    "constant_",
    "dirac_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]

FAN_MODES = ("fan_in", "fan_out")


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Uniform within gain * sqrt(6 / (fan_in + fan_out)), in place.

    Args:
        tensor: a weight of a layer of any kind, `(*positions, *kernel, C // groups, F)`; fan_in is
            taps * C // groups, fan_out is taps * F, those of one position.
        gain: factor.
        generator: whose random numbers; None means torch's own.

    Returns:
        The tensor.

    Raises:
        LocalConvError: (also a ValueError or TypeError) a tensor of another rank than 4, 6 or 8, or a computed one.

    Source: `torch.nn.init.xavier_uniform_`; Glorot and Bengio, AISTATS 2010.

    Example:
        >>> import lc_triton
        >>> layer = lc_triton.LocalConv2d(3, 8, 3, input_size=16)
        >>> lc_triton.init.xavier_uniform_(layer.weight, gain=lc_triton.init.calculate_gain("relu")).shape
        torch.Size([14, 14, 3, 3, 3, 8])
    """
    fan_in, fan_out = _fans(tensor)
    return _uniform(tensor, gain * math.sqrt(2 / max(fan_in + fan_out, 1)), generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Normal with the standard deviation gain * sqrt(2 / (fan_in + fan_out)), in place.

    Args:
        tensor: a weight of a layer of any kind, `(*positions, *kernel, C // groups, F)`; fan_in is
            taps * C // groups, fan_out is taps * F, those of one position.
        gain: factor.
        generator: whose random numbers; None means torch's own.

    Returns:
        The tensor.

    Raises:
        LocalConvError: (also a ValueError or TypeError) a tensor of another rank than 4, 6 or 8, or a computed one.

    Source: `torch.nn.init.xavier_normal_`; Glorot and Bengio, AISTATS 2010.

    Example:
        >>> import lc_triton
        >>> layer = lc_triton.LocalConv1d(3, 8, 3, input_size=16)
        >>> lc_triton.init.xavier_normal_(layer.weight).shape
        torch.Size([14, 3, 3, 8])
    """
    fan_in, fan_out = _fans(tensor)
    return _normal(tensor, gain * math.sqrt(2 / max(fan_in + fan_out, 1)), generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Uniform within gain * sqrt(3 / fan), in place.

    Args:
        tensor: a weight of a layer of any kind, `(*positions, *kernel, C // groups, F)`.
        a: negative slope of the activation behind the layer, for "leaky_relu".
        mode: "fan_in", taps * C // groups, or "fan_out", taps * F, those of one position.
        nonlinearity: the activation behind the layer, by its name in torch.nn.functional: it chooses the gain.
        generator: whose random numbers; None means torch's own.

    Returns:
        The tensor.

    Raises:
        LocalConvError: (also a ValueError or TypeError) a tensor of another rank than 4, 6 or 8, a computed one, or an
            unknown name.

    Source: `torch.nn.init.kaiming_uniform_`; He et al., ICCV 2015.

    Example:
        >>> import lc_triton
        >>> layer = lc_triton.LocallyConnected1D(8, 3, input_shape=(16, 2))
        >>> weight = lc_triton.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        >>> bool(weight.abs().max() <= 1)  # sqrt(2) * sqrt(3 / 6)
        True
    """
    return _uniform(tensor, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Normal with the standard deviation gain / sqrt(fan), in place.

    Args:
        tensor: a weight of a layer of any kind, `(*positions, *kernel, C // groups, F)`.
        a: negative slope of the activation behind the layer, for "leaky_relu".
        mode: "fan_in", taps * C // groups, or "fan_out", taps * F, those of one position.
        nonlinearity: the activation behind the layer, by its name in torch.nn.functional: it chooses the gain.
        generator: whose random numbers; None means torch's own.

    Returns:
        The tensor.

    Raises:
        LocalConvError: (also a ValueError or TypeError) a tensor of another rank than 4, 6 or 8, a computed one, or an
            unknown name.

    Source: `torch.nn.init.kaiming_normal_`; He et al., ICCV 2015.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocalConv2d(16, 32, 3, input_size=28)
        >>> weight = lc_triton.init.kaiming_normal_(layer.weight, generator=torch.Generator().manual_seed(0))
        >>> round(weight.std().item(), 3)  # sqrt(2 / 144)
        0.118
    """
    return _normal(tensor, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def orthogonal_(tensor: Tensor, gain: float = 1, generator: torch.Generator | None = None) -> Tensor:
    """An orthogonal matrix for each position, in place: its rows or columns, whichever are fewer, are orthonormal.

    Args:
        tensor: a weight of a layer of any kind, `(*positions, *kernel, C // groups, F)`; the matrix of a position is
            `(F, taps * C // groups)`, as torch makes it of a convolution's weight.
        gain: factor.
        generator: whose random numbers; None means torch's own.

    Returns:
        The tensor.

    Raises:
        LocalConvError: (also a ValueError or TypeError) a tensor of another rank than 4, 6 or 8, or a computed one.

    Source: `torch.nn.init.orthogonal_`; Saxe et al., ICLR 2014.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocalConv1d(2, 4, 3, input_size=8)
        >>> matrices = lc_triton.init.orthogonal_(layer.weight).detach().flatten(1, 2)  # one (D, F) a position
        >>> torch.allclose(matrices.mT @ matrices, torch.eye(4).expand(6, 4, 4), atol=1e-5)
        True
    """
    _, _, window, filters = _sizes(tensor)
    _check_whole("lc_triton.init.orthogonal_", tensor)
    rows, columns = max(window, filters), min(window, filters)
    if tensor.numel() == 0:
        return tensor
    positions = tensor.numel() // (window * filters)
    # Products in 16 bits would leave the columns far from orthogonal, and torch has no decomposition of them.
    dtype = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
    drawn = torch.empty(positions, rows, columns, dtype=dtype, device=tensor.device).normal_(0, 1, generator=generator)
    q, r = torch.linalg.qr(drawn)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # uniform over all orthogonal matrices (Mezzadri 2007)
    matrices = q if window >= filters else q.mT
    with torch.no_grad():
        return tensor.copy_((gain * matrices).reshape(tensor.shape))


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """The identity at each position, in place: filters copy the channels of their group at the middle tap.

    Args:
        tensor: a weight of a layer of any kind, `(*positions, *kernel, C // groups, F)`; as many filters of a group as
            it has channels become the identity, all others zero.
        groups: those of the layer.

    Returns:
        The tensor.

    Raises:
        LocalConvError: (also a ValueError or TypeError) a tensor of another rank than 4, 6 or 8, a computed one, or
            groups that do not divide F.

    Source: `torch.nn.init.dirac_`.

    Example:
        >>> import torch, lc_triton
        >>> layer, x = lc_triton.LocalConv2d(3, 3, 3, input_size=6, padding=1, bias=False), torch.randn(1, 3, 6, 6)
        >>> weight = lc_triton.init.dirac_(layer.weight)
        >>> torch.equal(layer(x), x)
        True
    """
    ndim, channels, _, filters = _sizes(tensor)
    _check_whole("lc_triton.init.dirac_", tensor)
    groups = check_int("groups", groups, 1)
    if filters % groups:
        raise GroupsError(name="F", value=filters, groups=groups)
    per_group = filters // groups
    channel = torch.arange(min(channels, per_group), device=tensor.device)
    group = torch.arange(groups, device=tensor.device)
    middle = tuple(size // 2 for size in tensor.shape[ndim : 2 * ndim])
    index: Any = (..., *middle, channel, per_group * group[:, None] + channel)
    with torch.no_grad():
        tensor.zero_()
        if tensor.numel():
            tensor[index] = 1
    return tensor


def _sizes(tensor: Tensor) -> tuple[int, int, int, int]:
    """Spatial dimensions, channels of a group, D = taps * channels, and F of a weight."""
    if not isinstance(tensor, Tensor):
        raise ArgumentTypeError(name="tensor", value=tensor, allowed="a torch.Tensor, such as layer.weight")
    if is_lazy(tensor):
        raise NotBuiltError(name="the layer of this weight", remedy="call it once on an input, then initialise it")
    check_tensor("tensor", tensor)
    ndim = spatial_dims(tensor.shape)
    if tensor.grad_fn is not None and not tensor._is_view():
        allowed = (
            f"a parameter: a tensor that {tensor.grad_fn.name()} computed, as a parametrization or pruning does, is "
            "made anew at each call: initialise the layer first"
        )
        raise ArgumentValueError(name="tensor", value=tuple(tensor.shape), allowed=allowed)
    if shares_memory(tensor):
        allowed = (
            f"a tensor whose entries lie apart in memory (its strides are {tensor.stride()}): make it contiguous()"
        )
        raise ArgumentValueError(name="tensor", value=tuple(tensor.shape), allowed=allowed)
    channels, filters = tensor.shape[-2:]
    return ndim, channels, math.prod(tensor.shape[ndim : 2 * ndim]) * channels, filters


def _check_whole(function: str, tensor: Tensor) -> None:
    """Refuse a DTensor, of which a rank has only a part."""
    if hasattr(tensor, "placements"):
        reason = "this weight is a DTensor: initialise the layer before parallelize_module or fully_shard"
        raise ParallelError(style=function, reason=reason)


def _fans(tensor: Tensor) -> tuple[int, int]:
    """fan_in and fan_out of one position, as torch counts those of a convolution, transposed or not."""
    _, channels, window, filters = _sizes(tensor)
    taps = window // max(channels, 1)
    return window, taps * filters


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    fans = dict(zip(FAN_MODES, _fans(tensor), strict=True))
    name = mode.lower() if isinstance(mode, str) else mode
    fan = fans[check_name("mode", name, FAN_MODES)]
    try:
        gain: float = calculate_gain(nonlinearity, a)  # type: ignore[arg-type]  # any name: torch checks it
    except ValueError as error:
        allowed = f"a name that torch.nn.init.calculate_gain knows ({error})"
        raise ArgumentValueError(name="nonlinearity", value=nonlinearity, allowed=allowed) from None
    return gain / math.sqrt(max(fan, 1))


def _uniform(tensor: Tensor, std: float, generator: torch.Generator | None) -> Tensor:
    bound = math.sqrt(3) * std
    with torch.no_grad():
        return tensor.uniform_(-bound, bound, generator=generator)


def _normal(tensor: Tensor, std: float, generator: torch.Generator | None) -> Tensor:
    with torch.no_grad():
        return tensor.normal_(0, std, generator=generator)
