"""The demonstration on several processes: they share the locally connected layers, and each has all the rest."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lc_triton.core.backend import environment
from lc_triton.errors import LocalConvError
from lc_triton.layers import LocalConv2d

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def launch(work: Callable[[], Any], nproc: int) -> int:
    """Run `work` in so many processes, as torchrun does; returns the worst of their exit statuses."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="lc-triton-demo",
        max_restarts=0,
    )
    try:
        statuses: dict[int, int] = elastic_launch(config, _one_of_them)(work, nproc)
        return max(statuses.values())
    except SignalException as signal:
        raise KeyboardInterrupt from signal


def _one_of_them(work: Callable[[], Any], nproc: int) -> int:
    """What runs in each process."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // nproc))
    try:
        work()
    except (LocalConvError, OSError) as error:  # all processes raise the same error, and one of them prints it
        if environment("RANK", "0") == "0":
            print(f"lc-triton: {error}", file=sys.stderr)
        return 2 if isinstance(error, LocalConvError) else 1
    return 0


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[DeviceMesh | None]:
    """This process's ranks as a mesh while it is one of torchrun's, else None; all but the first print nothing."""
    if not dist.is_torchelastic_launched():
        yield None
        return
    from torch.distributed.device_mesh import init_device_mesh

    if device.type == "cuda":
        torch.cuda.set_device(int(environment("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        mesh = init_device_mesh(device.type, (dist.get_world_size(),), mesh_dim_names=("positions",))
        with contextlib.ExitStack() as stack:
            if dist.get_rank() > 0:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            yield mesh
    finally:
        dist.destroy_process_group()


def first() -> bool:
    """Whether this process is the one that writes: the first, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def by_the_first(write: Callable[[], Any]) -> None:
    """Have the first process write.

    Raises:
        OSError: it cannot, in every process, so that none waits for one that has ended.
    """
    said: list[str | None] = [None]
    if first():
        try:
            write()
        except OSError as error:
            if not dist.is_initialized():
                raise
            said[0] = str(error)
    if dist.is_initialized():
        dist.broadcast_object_list(said)
    if said[0] is not None:
        raise OSError(said[0])


def share(network: nn.Module, mesh: DeviceMesh) -> None:
    """Give each rank its positions of the network's locally connected layers."""
    from torch.distributed.tensor.parallel import parallelize_module

    from lc_triton.parallel import PositionParallel

    names = [name for name, layer in network.named_modules() if isinstance(layer, LocalConv2d)]
    parallelize_module(network, mesh, {name: PositionParallel() for name in names})


def whole(state: Any) -> Any:
    """A state with the whole of every tensor that ranks share; all of them must ask."""
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list):
        return [whole(value) for value in state]
    return state.full_tensor() if hasattr(state, "full_tensor") else state


def parts_of(state: dict[Any, Any], like: Mapping[Any, Tensor]) -> dict[Any, Any]:
    """The inverse of `whole` for tensors, or dictionaries of them, of shared parameters of the same key."""
    return {key: _part(value, like[key]) if key in like else value for key, value in state.items()}


def _part(value: Any, like: Any) -> Any:
    if isinstance(value, dict):
        return {key: _part(entry, like) for key, entry in value.items()}
    if not isinstance(value, Tensor) or not hasattr(like, "placements") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
