"""The process of one contender: it checks what the contender computes, then times a call whenever it is asked to."""

from __future__ import annotations

import resource
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

import lc_triton
from benchmarks.peers import PEERS, broadcast_bytes
from benchmarks.rows import Data, Results, Row, fault
from lc_triton._geometry import Geometry

OURS = "lc_triton"
MODES = ("forward", "step")
COPIES = 3  # of the input take turns
LEAST_SECONDS = 0.02  # of one timing: shorter calls are repeated, for a process that slept starts slowly
MOST_BYTES = 8 << 30  # of a peer's buffers: more would stop the machine instead of the peer

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


def refuses(row: Row, name: str) -> str | None:
    """Why a contender does not run a row, or None."""
    geo = row.task.geometry
    if name == OURS:
        return None
    if PEERS[name].refuses(geo):
        return PEERS[name].refuses(geo)
    itemsize = row.task.itemsize
    patches = row.batch * geo.positions * geo.window * geo.groups * itemsize
    needed = broadcast_bytes(geo, row.batch, itemsize) if name.startswith("broadcast") else patches
    if 3 * needed > MOST_BYTES:
        return f"its buffers would take {3 * needed / 2**30:.0f} GiB"
    return None


def work(pipe: Connection, row: Row, name: str, want: Results) -> None:
    """Send None or what is wrong, then answer each mode with seconds, until told None; then send the peak bytes."""
    try:
        torch.set_num_threads(row.threads)
        data, geo = Data.make(row), row.task.geometry
        forward, tensors, first = _contender(name, data, geo)
        if name != OURS:  # its weights, and so their gradient, lie in an order of its own
            want = want | {"dw": PEERS[name].weight(want["dw"], geo)}
        pipe.send(fault(row, _results(forward, tensors, data, first), want))
        x, weight, bias, g = tensors
        inputs = [x.clone() for _ in range(COPIES)]

        def call(mode: str, turn: int) -> None:
            leaves = [t.detach().requires_grad_(mode == "step") for t in (inputs[turn % COPIES], weight, bias)]
            if mode == "forward":
                with torch.no_grad():
                    forward(*leaves)
            else:
                torch.autograd.grad(forward(*leaves), leaves, g)

        calls = dict.fromkeys(MODES, 1)
        while (mode := pipe.recv()) is not None:
            start = time.perf_counter()
            for turn in range(calls[mode]):
                call(mode, turn)
            taken = (time.perf_counter() - start) / calls[mode]
            calls[mode] = max(calls[mode], min(1000, round(LEAST_SECONDS / taken)))
            pipe.send(taken)
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    except EOFError:
        pass
    except BaseException:
        pipe.send(traceback.format_exc().strip().splitlines()[-1])


def _contender(name: str, data: Data, geo: Geometry) -> tuple[Forward, tuple[Tensor, ...], bool]:
    """Its forward, its (x, weight, bias, g), and whether they are channels first."""
    if name == OURS:
        layer: dict[str, Any] = {"stride": geo.stride, "padding": list(geo.padding), "dilation": geo.dilation}
        layer |= {"groups": geo.groups, "data_format": "channels_last"}
        return (
            lambda x, w, b: lc_triton.local_conv(x, w, b, **layer),
            (data.x, data.weight, data.bias, data.g),
            False,
        )
    peer = PEERS[name]
    x, g = (t.movedim(-1, 1).contiguous() for t in (data.x, data.g))
    tensors = (x, peer.weight(data.weight, geo), data.bias.movedim(-1, 0).contiguous(), g)
    return lambda x, w, b: peer.forward(x, w, b, geo), tensors, True


def _results(forward: Forward, tensors: tuple[Tensor, ...], data: Data, first: bool) -> Results:
    """y and dx of the picked samples, and db, channels last, of `sparse_g`; dw as the weight lies."""
    x, weight, bias, _ = tensors
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y = forward(*leaves)
    g = data.sparse_g.movedim(-1, 1).contiguous() if first else data.sparse_g
    dx, dw, db = torch.autograd.grad(y, leaves, g)
    y, dx = y.detach()[data.picked], dx[data.picked]
    if first:
        y, dx, db = y.movedim(1, -1), dx.movedim(1, -1), db.movedim(0, -1)
    return {"y": y, "dx": dx, "db": db, "dw": dw}
