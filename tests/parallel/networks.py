"""A small network, and the layouts in which ranks may share its two locally connected layers."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import parallelize_module

import lc_triton
from lc_triton.parallel import PositionParallel

# Layouts of the rows between the two layers: gathered, split as plain tensors, or split as DTensors.
LAYOUTS = {
    "whole": ({}, {}),
    "rows between": ({"output_layouts": Shard(2)}, {"input_layouts": Shard(2)}),
    "DTensors between": ({"output_layouts": Shard(2), "use_local_output": False}, {"input_layouts": Shard(-2)}),
}


def network(activation="tanh", rows=6, **kwargs):
    """Two layers and a head, in float64; with 3 rows the last of four ranks has none."""
    torch.manual_seed(1)
    return nn.Sequential(
        lc_triton.LocalConv2d(2, 4, 3, input_size=(rows, 5), padding=1, activation=activation, **kwargs),
        lc_triton.LocalConv2d(4, 3, (3, 2), input_size=(rows, 5), padding=(1, 0), activation=activation, **kwargs),
        nn.Flatten(),
        nn.Linear(3 * rows * 4, 3),
    ).double()


def shared(mesh, net, layout="rows between"):
    """The network with its first two layers shared by the ranks of a mesh."""
    one, other = LAYOUTS[layout]
    plan = {"0": PositionParallel(**one), "1": PositionParallel(**other)}
    return parallelize_module(net, mesh, plan, src_data_rank=None)  # all ranks draw the same weights


def data(rows=6, batch=3):
    """A batch for the network."""
    return torch.randn(batch, 2, rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def full(tensor):
    """The full tensor of a DTensor, or a plain tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
