"""Checks that run on several processes of this machine by gloo: started once, asked many times."""

from __future__ import annotations

import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh


def run(checks, ranks, folder, *arguments):
    """What each check came to on each rank: None, or the traceback.

    Args:
        checks: functions `(mesh, *arguments)` of a module, by name; a rank that fails alone leaves others waiting, so
            each check should fail on all ranks or on none.
        ranks: how many processes.
        folder: for what they leave behind.
        arguments: for all checks.
    """
    mp.spawn(_work, (checks, ranks, str(folder), arguments), nprocs=ranks)
    each = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(ranks)]
    return {name: [found[name] for found in each] for name in checks}


def _work(rank, checks, ranks, folder, arguments):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    found = {}
    try:
        mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("positions",))
        for name, check in checks.items():
            torch.manual_seed(0)
            try:
                check(mesh, *arguments)
                found[name] = None
            except Exception:
                found[name] = traceback.format_exc()
        torch.save(found, f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def local_part(tensor, mesh, dim):
    """This rank's part of a tensor that all have, as torch.chunk splits it."""
    parts = tensor.chunk(mesh.size(), dim)
    rank = mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else tensor.narrow(dim, 0, 0)
