"""What docs/scale.md reckons is what the ranks send."""

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


class Sent(TorchDispatchMode):
    """Counts the bytes that this process gives to torch.distributed to be sent to others, by operation.

    A gather passes on the parts of others in a ring, a sum as many twice.
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
    """Bytes that the rank which sends most sends in a call."""
    with Sent(mesh.size()) as counter:
        out = call()
    most = torch.tensor(counter.bytes)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return most.item(), out


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
            on_paper = cost(
                kind, geometry, 2, mesh.size(), split_input=split_input, split_output=split_output, itemsize=4
            )
            forward, y = sent(mesh, lambda layer=layer, x=x: layer(x))
            backward, _ = sent(mesh, lambda y=y: y.sum().backward())
            name = kind, arguments, split_input, split_output
            assert (forward, backward) == (on_paper.sent_forward, on_paper.sent_backward), name
