"""Share one locally connected layer over two processes, and check that they compute what one process computes.

Each process holds the weights of its rows, their gradients and their optimizer state. On GPUs, `torchrun` starts the
processes and the backend is "nccl"; the rest is the same.

    python examples/share.py
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.multiprocessing.spawn import spawn

import lc_triton
from lc_triton.parallel import PositionParallel

PROCESSES = 2


def network() -> nn.Module:
    """A locally connected layer and a dense layer, the same in each process."""
    torch.manual_seed(0)
    layer = lc_triton.LocalConv2d(1, 4, 3, input_size=12, activation="relu")
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(4 * 10 * 10, 3))


def train(model: nn.Module, steps: int = 3) -> list[float]:
    """Train on random data, and return the loss of each step."""
    torch.manual_seed(1)  # every process has the same samples
    x, target = torch.randn(16, 1, 12, 12), torch.randint(3, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def work(rank: int, folder: str) -> None:
    """Train in one of the processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    model = network()
    parallelize_module(model, mesh, {"0": PositionParallel()})
    rows = cast(DTensor, model.get_parameter("0.weight")).to_local().shape[0]
    losses = train(model)
    print(f"process {rank}: {rows} of 10 rows of positions, losses {losses}")
    if rank == 0:
        torch.save(losses, f"{folder}/losses.pt")
    dist.destroy_process_group()


def main() -> tuple[list[float], list[float]]:
    """Train in two processes and in one, and return the losses of both."""
    with TemporaryDirectory() as folder:
        spawn(partial(work, folder=folder), nprocs=PROCESSES)
        shared = torch.load(Path(folder) / "losses.pt")
    alone = train(network())
    print(f"one process: losses {alone}")
    return shared, alone


if __name__ == "__main__":
    main()
