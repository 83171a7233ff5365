"""Debug checks that compare over ranks what must be identical, and raise an error on all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.parameter import is_lazy

from lc_triton.errors import ArgumentTypeError, ArgumentValueError, LocalConvError, ParallelError
from lc_triton.layers._planned import PlannedLayer

__all__ = ["check_replicated"]


def check_replicated(module: nn.Module, mesh: DeviceMesh | None = None) -> None:
    """Compare replicated parameters and buffers over ranks; all ranks must call it.

    Plain tensors are replicated on the meshes of the shared layers; DTensors are replicated along the dimensions of
    their mesh in which they are `Replicate()`. It is a debug check: each tensor is copied to the host and hashed, and
    the hashes are sent.

    Args:
        module: a model, some of whose layers are shared by `PositionParallel` or `FilterParallel`.
        mesh: the ranks that plain tensors are compared over; those of the shared layers if None.

    Raises:
        ParallelError: tensors whose values, shapes, dtypes or requires_grad differ between ranks, by their names. Every
            rank of the mesh raises it.
        ArgumentValueError: a module without shared layers, and no mesh.

    Source: `torch.distributed.utils._verify_param_shape_across_processes`, of values too.

    Example:
        >>> import torch, lc_triton, torch.distributed as dist
        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> from torch.distributed.tensor.parallel import parallelize_module
        >>> from lc_triton.parallel import PositionParallel, check_replicated
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> layer = lc_triton.LocalConv2d(3, 8, 3, input_size=6, bias="channel")
        >>> layer = parallelize_module(layer, init_device_mesh("cpu", (1,)), PositionParallel())
        >>> check_replicated(layer)
        >>> dist.destroy_process_group()
    """
    if not isinstance(module, nn.Module):
        raise ArgumentTypeError(name="module", value=module, allowed="a torch.nn.Module")
    if mesh is not None and not isinstance(mesh, DeviceMesh):
        raise ArgumentTypeError(name="mesh", value=mesh, allowed="None or a DeviceMesh")
    shared = [m._shared.mesh for m in module.modules() if isinstance(m, PlannedLayer) and m._shared is not None]
    meshes = _unique(shared if mesh is None else [mesh])
    if not meshes:
        allowed = "a DeviceMesh where no layer of the module is shared by ranks"
        raise ArgumentValueError(name="mesh", value=mesh, allowed=allowed)
    named = [*module.named_parameters(), *module.named_buffers()]
    meshes = _unique([*meshes, *(t.device_mesh for _, t in named if isinstance(t, DTensor))])
    plain_on = len(_unique(shared if mesh is None else [mesh]))

    found: dict[str, str] = {}
    for number, one in enumerate(meshes):
        for dim in range(one.ndim):
            own = {
                name: _summary(tensor)
                for name, tensor in named
                if (_is_replicated(tensor, one, dim) if isinstance(tensor, DTensor) else number < plain_on)
            }
            for name, ranks in _differing(_of_all_ranks(own, one.get_group(dim))).items():
                found.setdefault(name, f"{name} (on rank {ranks} other than on rank 0, along dimension {dim} of {one})")
    for one in meshes:  # so that a rank whose own group agrees raises too
        for dim in range(one.ndim):
            for other in _of_all_ranks(found, one.get_group(dim)):
                found = {**other, **found}
    if found:
        reason = (
            f"values, shape, dtype or requires_grad differ between ranks: {'; '.join(found.values())}. Draw what is "
            "replicated alike on all ranks, or send it from one with torch.distributed.broadcast"
        )
        raise ParallelError(style=", ".join(found), reason=reason)


def compare_calls(group: dist.ProcessGroup, x: Any, check: Callable[[], None]) -> None:
    """Run a check of a call's arguments on each rank, and raise on all ranks an error of any of them.

    Args:
        group: the ranks.
        x: the input of this rank.
        check: raises a LocalConvError where this rank's arguments are wrong.

    Raises:
        ParallelError: what a rank's check raised, or inputs that differ in batch, dtype or requires_grad.
    """
    error = None
    try:
        check()
    except LocalConvError as caught:
        error = f"{type(caught).__name__}: {caught}"
    batch = (x.ndim, x.shape[0], str(x.dtype), x.requires_grad) if isinstance(x, Tensor) and error is None else None
    everyone = _of_all_ranks((error, batch), group)
    wrong = [f"rank {rank}: {error}" for rank, (error, _) in enumerate(everyone) if error is not None]
    if wrong:
        raise ParallelError(style="A call of a layer that ranks share", reason="; ".join(wrong))
    if any(batch != everyone[0][1] for _, batch in everyone):
        reason = "x differs between ranks in (dimensions, batch, dtype, requires_grad): " + "; ".join(
            f"rank {rank} has {batch}" for rank, (_, batch) in enumerate(everyone)
        )
        raise ParallelError(style="A call of a layer that ranks share", reason=reason)


def _unique(meshes: Iterable[DeviceMesh]) -> list[DeviceMesh]:
    """Each mesh once, in their order."""
    return list(dict.fromkeys(meshes))


def _is_replicated(tensor: DTensor, mesh: DeviceMesh, dim: int) -> bool:
    return tensor.device_mesh == mesh and isinstance(tensor.placements[dim], Replicate)


def _summary(tensor: Tensor) -> tuple[Any, ...]:
    """A summary of a tensor for the comparison: equal tensors have equal summaries."""
    if is_lazy(tensor):
        return (type(tensor).__name__,)
    local = tensor.detach()
    local = local.to_local() if isinstance(local, DTensor) else local
    digest = None
    if not local.is_meta:
        numbers: Any = local.cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest = hashlib.sha256(numbers).hexdigest()
    return tuple(local.shape), str(local.dtype), tensor.requires_grad, digest


def _of_all_ranks(value: Any, group: dist.ProcessGroup) -> list[Any]:
    """The small objects of all ranks of a group, in the order of ranks."""
    everyone: list[Any] = [None] * group.size()
    dist.all_gather_object(everyone, value, group=group)
    return everyone


def _differing(everyone: list[dict[str, Any]]) -> dict[str, str]:
    """The ranks that differ from the first one, by what differs."""
    names = dict.fromkeys(name for own in everyone for name in own)
    found = {name: [r for r, own in enumerate(everyone) if own.get(name) != everyone[0].get(name)] for name in names}
    return {name: ", ".join(map(str, ranks)) for name, ranks in found.items() if ranks}
