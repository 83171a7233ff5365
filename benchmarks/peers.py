"""The code that people write today without these layers, as fast as we can make it: each has weights in its own layout.

Inputs are channels first, as these idioms take them; `Peer.weight` lays the canonical weight out once, outside of any
timing, and `Peer.forward` is what would be timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lc_triton.core.geometry import Geometry


@dataclass(frozen=True)
class Peer:
    """A way to compute a locally connected layer.

    Args:
        name: as tables show it.
        source: where people find it.
        dims: numbers of spatial dimensions it takes.
        groups: whether it takes groups.
        weight: the canonical weight `(*out_spatial, *kernel, C // G, F)` in its own layout.
        forward: y `(B, F, *out_spatial)` from x `(B, C, *in_spatial)`, its weight and a bias `(F, *out_spatial)`.
    """

    name: str
    source: str
    dims: tuple[int, ...]
    groups: bool
    weight: Callable[[Tensor, Geometry], Tensor]
    forward: Callable[[Tensor, Tensor, Tensor, Geometry], Tensor]

    def refuses(self, geometry: Geometry) -> str | None:
        """Why it cannot compute a layer, or None."""
        if geometry.ndim not in self.dims:
            return f"takes {' or '.join(map(str, self.dims))} dimensions"
        if geometry.groups > 1 and not self.groups:
            return "takes no groups"
        return None


def _unfolded(x: Tensor, geo: Geometry) -> Tensor:
    """`F.unfold`: the patch matrix `(B, C * T, P)`; one dimension passes as two."""
    sizes = [geo.kernel, geo.dilation, geo.stride]
    if geo.ndim == 1:
        x, sizes = x[:, :, None], [(1, *size) for size in sizes]
    kernel, dilation, stride = sizes
    pairs = [side for pair in reversed(geo.padding) for side in pair]
    return F.unfold(F.pad(x, pairs), kernel, dilation, 0, stride)


def windows(x: Tensor, geo: Geometry) -> Tensor:
    """`Tensor.unfold`: all windows `(B, C, *out_spatial, *kernel)`, a view of the padded input."""
    x = F.pad(x, [side for pair in reversed(geo.padding) for side in pair])
    for d in range(geo.ndim):
        x = x.unfold(2 + d, (geo.kernel[d] - 1) * geo.dilation[d] + 1, geo.stride[d])
        x = x[..., :: geo.dilation[d]]
    return x


def _positions_first(weight: Tensor, geo: Geometry) -> Tensor:
    """`(P, T, C // G, F)`."""
    return weight.reshape(geo.positions, geo.taps, -1, geo.out_channels)


def _unfold_einsum_weight(weight: Tensor, geo: Geometry) -> Tensor:
    """`(G, F // G, C // G * T, P)`."""
    w = _positions_first(weight, geo).permute(3, 2, 1, 0)
    return w.reshape(geo.groups, -1, geo.window, geo.positions).contiguous()


def _unfold_einsum(x: Tensor, weight: Tensor, bias: Tensor, geo: Geometry) -> Tensor:
    patches = _unfolded(x, geo).unflatten(1, (geo.groups, geo.window))
    y = torch.einsum("bgdp,gfdp->bgfp", patches, weight)
    return y.reshape(-1, geo.out_channels, *geo.out_spatial) + bias


def _unfold_bmm_weight(weight: Tensor, geo: Geometry) -> Tensor:
    """`(P * G, C // G * T, F // G)`."""
    w = _positions_first(weight, geo).transpose(1, 2).reshape(geo.positions, geo.window, geo.groups, -1)
    return w.transpose(1, 2).reshape(geo.positions * geo.groups, geo.window, -1).contiguous()


def _unfold_bmm(x: Tensor, weight: Tensor, bias: Tensor, geo: Geometry) -> Tensor:
    patches = _unfolded(x, geo).unflatten(1, (geo.groups, geo.window)).permute(3, 1, 0, 2)
    y = torch.bmm(patches.reshape(-1, x.shape[0], geo.window), weight)
    y = y.reshape(geo.positions, geo.groups, x.shape[0], -1).permute(2, 1, 3, 0)
    return y.reshape(-1, geo.out_channels, *geo.out_spatial) + bias


def _windows_weight(weight: Tensor, geo: Geometry) -> Tensor:
    """`(F, C, *out_spatial, *kernel)`."""
    n = geo.ndim
    return weight.permute(2 * n + 1, 2 * n, *range(2 * n)).contiguous()


def _windows_einsum(x: Tensor, weight: Tensor, bias: Tensor, geo: Geometry) -> Tensor:
    out, kernel = "hwd"[: geo.ndim], "ijk"[: geo.ndim]
    return torch.einsum(f"bc{out}{kernel},fc{out}{kernel}->bf{out}", windows(x, geo), weight) + bias


def _broadcast(x: Tensor, weight: Tensor, bias: Tensor, geo: Geometry) -> Tensor:
    """The module of the forum's thread: every product is written to memory before the sum."""
    products = windows(x, geo).unsqueeze(1) * weight
    return products.sum([2, *range(-geo.ndim, 0)]) + bias


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "F.unfold + einsum",
            "https://github.com/pytorch/pytorch/issues/499",
            (1, 2),
            True,
            _unfold_einsum_weight,
            _unfold_einsum,
        ),
        Peer(
            "F.unfold + bmm",
            "https://github.com/pytorch/pytorch/issues/499",
            (1, 2),
            True,
            _unfold_bmm_weight,
            _unfold_bmm,
        ),
        Peer(
            "Tensor.unfold + einsum",
            "https://github.com/pytorch/pytorch/issues/499",
            (1, 2, 3),
            False,
            _windows_weight,
            _windows_einsum,
        ),
        Peer(
            "broadcast, multiply, sum",
            "https://discuss.pytorch.org/t/locally-connected-layers/26979",
            (1, 2, 3),
            False,
            _windows_weight,
            _broadcast,
        ),
    )
}


def broadcast_bytes(geometry: Geometry, batch: int, itemsize: int) -> int:
    """Bytes of the products that the broadcast idiom writes: a run may not have that much memory."""
    return math.prod((batch, geometry.weight_numel, itemsize))
