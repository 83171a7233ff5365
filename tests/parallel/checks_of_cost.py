"""The bytes that ranks send are those that `lc_triton.parallel.cost` predicts, as in docs/scale.md."""

import itertools

import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode

import lc_triton
from lc_triton.parallel import FilterParallel, PositionParallel, cost
from tests.parallel import ranks

STYLES = {"positions": (PositionParallel, Shard(2)), "filters": (FilterParallel, Shard(1))}


class SentBytes(TorchDispatchMode):
    """Counts the bytes that this process sends by torch.distributed.

    In a ring, an all-gather sends the part of each other rank once, and an all-reduce sends twice as much.
    """

    def __init__(self, ranks):
        super().__init__()
        self.ranks, self.bytes = ranks, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split(".")[0]
        if name == "c10d::_allgather_base_":
            self.bytes += (self.ranks - 1) * args[1].nbytes
        elif name == "c10d::alltoall_base_":
            self.bytes += args[1].nbytes
        elif name == "c10d::allreduce_":
            self.bytes += sum(2 * t.nbytes * (self.ranks - 1) // self.ranks for t in args[0])
        else:
            assert not name.startswith("c10d::"), name
        return function(*args, **(kwargs or {}))


def sent(mesh, call):
    """The bytes that a call sends from the rank that sends most, and its result."""
    with SentBytes(mesh.size()) as counter:
        out = call()
    max_bytes = torch.tensor(counter.bytes)
    dist.all_reduce(max_bytes, dist.ReduceOp.MAX)
    return max_bytes.item(), out


def check_counted_bytes(mesh, folder):
    layers = [
        {"input_size": (12, 5), "kernel_size": 3, "padding": 1},
        {"input_size": (11, 5), "kernel_size": 5, "stride": 2, "padding": 2},
        {"input_size": (16, 4), "kernel_size": (7, 1)},
        {"input_size": (3, 3), "kernel_size": 1},
    ]
    for kind, arguments in itertools.product(STYLES, layers):
        for split_input, split_output in ((True, True), (False, False)):
            style, split = STYLES[kind]
            made = lc_triton.LocalConv2d(8, 4, **arguments)
            geometry = made._plan.source
            layer = parallelize_module(
                made,
                mesh,
                style(input_layouts=split if split_input else None, output_layouts=split if split_output else None),
            )
            x = torch.randn(2, 8, *arguments["input_size"])
            x = (ranks.local_part(x, mesh, split.dim) if split_input else x).requires_grad_()
            predicted = cost(
                kind, geometry, 2, mesh.size(), split_input=split_input, split_output=split_output, itemsize=4
            )
            forward, y = sent(mesh, lambda layer=layer, x=x: layer(x))
            backward, _ = sent(mesh, lambda y=y: y.sum().backward())
            name = kind, arguments, split_input, split_output
            assert (forward, backward) == (predicted.sent_forward, predicted.sent_backward), name
