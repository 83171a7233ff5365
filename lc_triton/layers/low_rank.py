"""Locally connected layers of low rank: every position mixes a few basis filters."""

from __future__ import annotations

from torch import nn

from lc_triton.layers._low_rank import LowRankNd
from lc_triton.layers.local_conv import LocalConv1d, LocalConv2d, LocalConv3d

__all__ = ["LowRankLocalConv1d", "LowRankLocalConv2d", "LowRankLocalConv3d"]


class LowRankLocalConv1d(LowRankNd):
    """Locally connected layer over `(B, C, L)` that mixes a few filters: between nn.Conv1d and LocalConv1d.

    `weight[p] = sum over k of mixing[p,k] * basis[k]`. The layer convolves with the basis, then mixes at every
    position. On a GPU, weights are mixed first where they are no larger than what that convolution writes, or are
    mixed in registers where that is faster.

    Args:
        in_channels: C, channels of the input.
        out_channels: F, filters at every position.
        kernel_size: window size in sites, an int or one a dimension.
        input_size: spatial size of the input, an int or one a dimension.
        rank: K, filters of the basis; 1 is a convolution with a factor of each position.
        stride: step between windows in sites.
        padding: as in `LocalConv1d`.
        dilation: sites between the taps of a window.
        groups: blocks the channels and filters are split into.
        bias: "position" or True (one a position and filter), "channel" (one a filter) or False.
        padding_mode: as in `LocalConv1d`.
        activation: None, a name, a (name, constant) pair or a callable; see `lc_triton.local_conv`.
        factored: True for coefficients that are the sum of one of each index of each dimension (row and column), and a
            "position" bias that is the sum of these and of one a filter, as in LRLC.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype.

    Shapes:
        x `(B, C, L)` or `(C, L)`; output `(B, F, L_out)`;
        basis `(K, *kernel_size, C // groups, F)`; mixing `(*output_size, K)`, or factored `mixing_0`, ... `(size, K)`;
        bias `(*output_size, F)` or `(F,)`, or factored `bias_0`, ... `(size,)` beside `(F,)`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: Elsayed et al., "Revisiting spatial invariance with low-rank local connectivity", ICML 2020 (LRLC). Its
        softmax over the basis is `parametrize.register_parametrization(layer, "mixing", torch.nn.Softmax(-1))`.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LowRankLocalConv1d(32, 64, 3, input_size=10, rank=4)
        >>> layer(torch.randn(8, 32, 10)).shape
        torch.Size([8, 64, 8])
    """

    ndim = 1
    convolution = nn.Conv1d
    local = LocalConv1d


class LowRankLocalConv2d(LowRankNd):
    """Locally connected layer over `(B, C, H, W)` that mixes a few filters: between nn.Conv2d and LocalConv2d.

    `weight[p] = sum over k of mixing[p,k] * basis[k]`. The layer convolves with the basis, then mixes at every
    position. On a GPU, weights are mixed first where they are no larger than what that convolution writes, or are
    mixed in registers where that is faster.

    Args:
        in_channels: C, channels of the input.
        out_channels: F, filters at every position.
        kernel_size: window size in sites, an int or one a dimension.
        input_size: spatial size of the input, an int or one a dimension.
        rank: K, filters of the basis; 1 is a convolution with a factor of each position.
        stride: step between windows in sites.
        padding: as in `LocalConv2d`.
        dilation: sites between the taps of a window.
        groups: blocks the channels and filters are split into.
        bias: "position" or True (one a position and filter), "channel" (one a filter) or False.
        padding_mode: as in `LocalConv2d`.
        activation: None, a name, a (name, constant) pair or a callable; see `lc_triton.local_conv`.
        factored: True for coefficients that are the sum of one of each index of each dimension (row and column), and a
            "position" bias that is the sum of these and of one a filter, as in LRLC.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype.

    Shapes:
        x `(B, C, H, W)` or `(C, H, W)`; output `(B, F, H_out, W_out)`;
        basis `(K, *kernel_size, C // groups, F)`; mixing `(*output_size, K)`, or factored `mixing_0`, ... `(size, K)`;
        bias `(*output_size, F)` or `(F,)`, or factored `bias_0`, ... `(size,)` beside `(F,)`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: Elsayed et al., "Revisiting spatial invariance with low-rank local connectivity", ICML 2020 (LRLC). Its
        softmax over the basis is `parametrize.register_parametrization(layer, "mixing", torch.nn.Softmax(-1))`.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LowRankLocalConv2d(3, 64, 3, input_size=32, rank=4, padding="same")
        >>> layer(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 64, 32, 32])
    """

    ndim = 2
    convolution = nn.Conv2d
    local = LocalConv2d


class LowRankLocalConv3d(LowRankNd):
    """Locally connected layer over `(B, C, D, H, W)` that mixes a few filters: between nn.Conv3d and LocalConv3d.

    `weight[p] = sum over k of mixing[p,k] * basis[k]`. The layer convolves with the basis, then mixes at every
    position. On a GPU, weights are mixed first where they are no larger than what that convolution writes, or are
    mixed in registers where that is faster.

    Args:
        in_channels: C, channels of the input.
        out_channels: F, filters at every position.
        kernel_size: window size in sites, an int or one a dimension.
        input_size: spatial size of the input, an int or one a dimension.
        rank: K, filters of the basis; 1 is a convolution with a factor of each position.
        stride: step between windows in sites.
        padding: as in `LocalConv3d`.
        dilation: sites between the taps of a window.
        groups: blocks the channels and filters are split into.
        bias: "position" or True (one a position and filter), "channel" (one a filter) or False.
        padding_mode: as in `LocalConv3d`.
        activation: None, a name, a (name, constant) pair or a callable; see `lc_triton.local_conv`.
        factored: True for coefficients that are the sum of one of each index of each dimension (row and column), and a
            "position" bias that is the sum of these and of one a filter, as in LRLC.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype.

    Shapes:
        x `(B, C, D, H, W)` or `(C, D, H, W)`; output `(B, F, D_out, H_out, W_out)`;
        basis `(K, *kernel_size, C // groups, F)`; mixing `(*output_size, K)`, or factored `mixing_0`, ... `(size, K)`;
        bias `(*output_size, F)` or `(F,)`, or factored `bias_0`, ... `(size,)` beside `(F,)`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: Elsayed et al., "Revisiting spatial invariance with low-rank local connectivity", ICML 2020 (LRLC). Its
        softmax over the basis is `parametrize.register_parametrization(layer, "mixing", torch.nn.Softmax(-1))`.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LowRankLocalConv3d(2, 4, 3, input_size=(5, 6, 7), rank=2, stride=2)
        >>> layer(torch.randn(1, 2, 5, 6, 7)).shape
        torch.Size([1, 4, 2, 2, 3])
    """

    ndim = 3
    convolution = nn.Conv3d
    local = LocalConv3d
