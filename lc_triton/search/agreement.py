"""Agree on one tile for all ranks of a job, through the store of torch.distributed.

No collective is used: in a pipeline the ranks run different layers, and rank 0 may never run this one.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta

import torch.distributed as dist

from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import Device
from lc_triton.tiles.task import Task

HEAD_START = 10.0  # seconds that the other ranks leave to rank 0 before one of them decides
POLL = 0.02


def agree(
    task: Task,
    device: Device,
    decide: Callable[[], TileConfig],
    otherwise: Callable[[], TileConfig],
    patience: float,
) -> TileConfig:
    """What `decide` returns on rank 0, on every rank that asks about the same kernel and kind of GPU.

    Args:
        task: the kernel.
        device: the GPU.
        decide: called on one rank: rank 0, or the first to ask if rank 0 does not within `HEAD_START` seconds.
        otherwise: called where the deciding rank failed.
        patience: seconds to wait for the deciding rank.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return decide()
    # torch has no public name for the store of the default group; its own libraries call this one.
    c10d = dist.distributed_c10d
    store = c10d.PrefixStore("lc_triton.tuning", c10d._get_default_store())
    content = json.dumps([task.pass_name, task.key.to_json(), device.folder])
    name = hashlib.sha256(content.encode()).hexdigest()
    claim, result = f"{name}.claim", f"{name}.result"

    if dist.get_rank() != 0:
        start = time.monotonic()
        while not store.check([claim]) and time.monotonic() < start + HEAD_START:
            time.sleep(POLL)
    if store.add(claim, 1) == 1:
        try:
            config = decide()
        except BaseException:
            store.set(result, "")
            raise
        store.set(result, json.dumps(asdict(config)))
        return config
    try:
        store.wait([result], timedelta(seconds=patience))
        published = store.get(result)
    except dist.DistError as error:
        published = b""
        warnings.warn(
            f"lc_triton: no other rank chose a tile for {task.pass_name} within {patience:.0f} s, so ranks may run "
            f"different ones ({error})",
            RuntimeWarning,
            stacklevel=2,
        )
    return TileConfig.from_json(json.loads(published)) if published else otherwise()
