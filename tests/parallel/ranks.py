"""Checks that run on several processes of this machine by gloo: started once, asked many times."""

from __future__ import annotations

import importlib
import multiprocessing
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh


def run(modules, ranks, folder):
    """The tracebacks of the checks that fail on some rank, by their names.

    A check is a function `check_...(mesh, folder)` of one of the modules. A rank that fails alone leaves others
    waiting, until a minute has passed.
    """
    names = [module.__name__ for module in modules]
    multiprocessing.set_forkserver_preload([*names, "torch._dynamo"])  # import once what all of them import
    mp.start_processes(_work, (names, ranks, str(folder)), nprocs=ranks, start_method="forkserver")
    failed = {}
    for rank in range(ranks):
        for name, text in torch.load(Path(folder) / f"{rank}.pt").items():
            failed.setdefault(name, f"on rank {rank}: {text}")
    return failed


def _work(rank, modules, ranks, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    failed = {}
    try:
        mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("positions",))
        for module in modules:
            for name, check in vars(importlib.import_module(module)).items():
                if name.startswith("check_"):
                    torch.manual_seed(0)
                    try:
                        check(mesh, folder)
                    except Exception:
                        failed[f"{module}.{name}"] = traceback.format_exc()
        torch.save(failed, f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def local_part(tensor, mesh, dim):
    """This rank's part of a tensor that all have, as torch.chunk splits it."""
    parts = tensor.chunk(mesh.size(), dim)
    rank = mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else tensor.narrow(dim, 0, 0)
