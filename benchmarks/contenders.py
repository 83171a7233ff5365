"""All contenders of a benchmark: lc_triton, the idioms of PyTorch's users, and other frameworks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

import lc_triton
from benchmarks import jax_peers, keras_peers
from benchmarks.peers import PEERS, Peer, broadcast_bytes
from benchmarks.products import Products
from benchmarks.rows import Data, Results, Row, synchronize, turns
from lc_triton.core.geometry import Geometry

OURS = "lc_triton"
CAST = "lc_triton, weights cast first"  # as autocast does; only where x and weight have different dtypes
BMM = "torch.bmm on ready-made patches"  # no layer can do this: its input is the patches, and its result their gradient
NOT_PEERS = (OURS, CAST, BMM)
MODES = ("forward", "step")
MOST_BYTES = {"cpu": 4 << 30, "cuda": 32 << 30}  # of a peer's buffers: more would stop the machine instead of the peer


class Ready(Protocol):
    """A contender with its tensors in place, in a process of its own."""

    def results(self) -> Results:
        """y and dx of the chosen samples and db, channels last, of `Data.sparse_g`; dw in its own layout."""

    def call(self, mode: str, turn: int) -> None:
        """Compute y ("forward"), or y and the gradients of x, weight and bias ("step").

        On a CPU the work is done when this returns; on a GPU it may only be queued.
        """

    def wait(self) -> None:
        """Wait until all calls are done."""


@dataclass(frozen=True)
class Contender:
    """One way to compute a layer, which a benchmark times.

    Args:
        name: as tables show it.
        source: where people find it.
        refuses: why it cannot run a row, or None.
        ready: lays its tensors out; called in the process that times it.
        lay_out: a canonical weight in its own layout.
    """

    name: str
    source: str
    refuses: Callable[[Row], str | None]
    ready: Callable[[Row, Data], Ready]
    lay_out: Callable[[Tensor, Geometry], Tensor]


Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


class Torch:
    """A PyTorch function of (x, weight, bias)."""

    def __init__(self, forward: Forward, tensors: tuple[Tensor, ...], data: Data, first: bool) -> None:
        self.forward, self.tensors, self.data, self.first = forward, tensors, data, first
        self.sets = turns(tensors)

    def results(self) -> Results:
        """As `Ready` says."""
        x, weight, bias, _ = self.tensors
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        y = self.forward(*leaves)
        g = self.data.sparse_g.movedim(-1, 1).contiguous() if self.first else self.data.sparse_g
        dx, dw, db = torch.autograd.grad(y, leaves, g)
        y, dx = y.detach()[self.data.sample_indices], dx[self.data.sample_indices]
        if self.first:
            y, dx, db = y.movedim(1, -1), dx.movedim(1, -1), db.movedim(0, -1)
        return {"y": y, "dx": dx, "db": db, "dw": dw}

    def call(self, mode: str, turn: int) -> None:
        """As `Ready` says."""
        *leaves, g = self.sets[turn % len(self.sets)]
        leaves = [t.detach().requires_grad_(mode == "step") for t in leaves]
        if mode == "forward":
            with torch.no_grad():
                self.forward(*leaves)
        else:
            torch.autograd.grad(self.forward(*leaves), leaves, g)

    def wait(self) -> None:
        """As `Ready` says."""
        synchronize(self.data.x.device.type)


def _ours(row: Row, data: Data) -> Torch:
    geo = row.task.geometry
    layer: dict[str, Any] = {"stride": geo.stride, "padding": list(geo.padding), "dilation": geo.dilation}
    layer |= {"groups": geo.groups, "data_format": "channels_last"}
    weight = _layer_of(row).weight.detach().copy_(data.weight)  # in memory as a layer makes it
    tensors = (data.x, weight, data.bias, data.g)
    return Torch(partial(lc_triton.local_conv, **layer), tensors, data, False)


def _layer_of(row: Row) -> lc_triton.LocalConv1d | lc_triton.LocalConv2d | lc_triton.LocalConv3d:
    geo, dtype = row.task.geometry, getattr(torch, row.task.weight_dtype)
    kind = (lc_triton.LocalConv1d, lc_triton.LocalConv2d, lc_triton.LocalConv3d)[geo.ndim - 1]
    sizes: dict[str, Any] = {"input_size": geo.in_spatial, "stride": geo.stride, "padding": list(geo.padding)}
    sizes |= {"dilation": geo.dilation, "groups": geo.groups}
    return kind(geo.in_channels, geo.out_channels, geo.kernel, **sizes, bias=False, device=row.device, dtype=dtype)


def _cast(forward: Forward, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return forward(x, weight.to(x.dtype), bias.to(x.dtype))


def _ours_cast(row: Row, data: Data) -> Ready:
    ready = _ours(row, data)
    ready.forward = partial(_cast, ready.forward)
    return ready


def _peer(peer: Peer, inductor: bool, row: Row, data: Data) -> Ready:
    geo = row.task.geometry
    x, g = (t.movedim(-1, 1).contiguous() for t in (data.x, data.g))
    tensors = (x, peer.weight(data.weight, geo), data.bias.movedim(-1, 0).contiguous(), g)
    forward: Forward = partial(peer.forward, geo=geo)
    if row.mixed:
        forward = partial(_cast, forward)
    return Torch(torch.compile(forward, dynamic=False) if inductor else forward, tensors, data, True)


def _peer_refuses(peer: Peer, row: Row) -> str | None:
    geo = row.task.geometry
    if reason := peer.refuses(geo):
        return reason
    patches = row.batch * geo.positions * geo.window * geo.groups * row.task.itemsize
    products = broadcast_bytes(geo, row.batch, row.task.itemsize)
    return too_large(row, 3 * (products if peer.name.startswith("broadcast") else patches))


def compiled(name: str) -> str:
    """The name of the contender that is an idiom under torch.compile."""
    return f"torch.compile of {name}"


def too_large(row: Row, needed: int) -> str | None:
    """Why buffers of so many bytes are not made, or None."""
    most = MOST_BYTES["cpu" if row.device == "cpu" else "cuda"]
    return f"its buffers would take {needed / 2**30:.0f} GiB" if needed > most else None


def _cast_refuses(row: Row) -> str | None:
    return None if row.mixed else "weights are of x's dtype"


def _bmm_refuses(row: Row) -> str | None:
    geo = row.task.geometry
    if row.device == "cpu":
        return "is timed on a GPU alone"
    return too_large(row, 3 * row.batch * geo.positions * geo.window * geo.groups * row.task.itemsize)


def missing(module: str) -> str | None:
    """Why a peer of another framework does not run, or None."""
    return None if find_spec(module) else f"{module} is not installed: pip install 'lc-triton[bench]'"


def _jax_refuses(module: str, row: Row) -> str | None:
    return missing(module) or jax_peers.refuses(row)


def _keras_refuses(implementation: int, row: Row) -> str | None:
    return missing("tf_keras") or keras_peers.refuses(implementation, row)


def _all() -> list[Contender]:
    jax = "https://docs.jax.dev/en/latest/_autosummary/jax.lax.conv_general_dilated_local.html"
    flax = "https://flax.readthedocs.io/en/latest/api_reference/flax.linen/layers.html"
    keras = "https://github.com/keras-team/tf-keras/tree/master/tf_keras/layers/locally_connected"
    found = [Contender(OURS, "https://pypi.org/project/lc-triton", lambda row: None, _ours, lambda weight, geo: weight)]
    found.append(replace(found[0], name=CAST, refuses=_cast_refuses, ready=_ours_cast))
    for peer in PEERS.values():
        refuses = partial(_peer_refuses, peer)
        found.append(Contender(peer.name, peer.source, refuses, partial(_peer, peer, False), peer.weight))
    for peer in PEERS.values():
        if not peer.name.startswith("broadcast"):
            name, refuses = compiled(peer.name), partial(_peer_refuses, peer)
            found.append(Contender(name, peer.source, refuses, partial(_peer, peer, True), peer.weight))
    for name, module, source in (("jax.lax", "jax", jax), ("flax.linen", "flax", flax)):
        title = {"jax.lax": "JAX conv_general_dilated_local", "flax.linen": "flax ConvLocal"}[name]
        found.append(Contender(title, source, partial(_jax_refuses, module), jax_peers.READY[name], jax_peers.lay_out))
    bmm = "https://docs.pytorch.org/docs/stable/generated/torch.bmm.html"
    found.append(Contender(BMM, bmm, _bmm_refuses, Products, lambda weight, geo: weight))
    for n in (1, 2, 3):
        found.append(
            Contender(
                f"tf_keras implementation {n}",
                keras,
                partial(_keras_refuses, n),
                partial(keras_peers.Keras, n),
                partial(keras_peers.lay_out, n),
            )
        )
    return found


CONTENDERS = {contender.name: contender for contender in _all()}
