"""Run checks on several processes of this machine with gloo; the processes start once for all checks."""

from __future__ import annotations

import importlib
import multiprocessing
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


def run(modules, ranks, folder, seconds=60):
    """Run the checks of modules on ranks; return the tracebacks of those that failed, by name.

    A check is a function `check_...(mesh, folder)` of one of the modules. If one rank fails, the others wait for it for
    at most `seconds`.
    """
    names = [module.__name__ for module in modules]
    multiprocessing.set_forkserver_preload([*names, "torch._dynamo"])  # import once what all of them import
    failed = {}
    try:
        mp.start_processes(_run_rank, (names, ranks, str(folder), seconds), nprocs=ranks, start_method="forkserver")
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        failed["processes"] = str(error)
    for rank in range(ranks):
        path = Path(folder) / f"{rank}.pt"
        for name, text in torch.load(path).items() if path.exists() else ():
            failed[name] = f"{failed.get(name, '')}on rank {rank}: {text}"
    return failed


def _run_rank(rank, modules, ranks, folder, seconds):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=seconds))
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
        if not failed:
            dist.barrier()
    finally:
        dist.destroy_process_group()


def mesh_of_first(count, seconds):
    """A mesh of the first ranks alone; None on the others. All ranks call it."""
    group = dist.new_group(list(range(count)), timeout=timedelta(seconds=seconds))
    return DeviceMesh.from_group(group, "cpu") if dist.get_rank() < count else None


def local_part(tensor, mesh, dim):
    """This rank's part of a tensor that all ranks have, split by torch.chunk."""
    parts = tensor.chunk(mesh.size(), dim)
    rank = mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else tensor.narrow(dim, 0, 0)
