"""Initialisation of the parameters of a layer that ranks share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from lc_triton.layers._keras_weights import KerasWeights
from lc_triton.layers._planned import PlannedLayer


def reset_parameters(layer: PlannedLayer) -> None:
    """Draw each rank's part from separate random numbers, and replicated parameters once for all ranks.

    What is drawn follows from the first rank's generator alone, so ranks may be seeded alike or each by its own seed.
    A Keras-like layer's initializer sees the whole variable, one parameter at a time, as its arguments ask for; a
    layer in torch's convention draws a rank's own part only.

    Args:
        layer: one whose parameters are DTensors. Those on the meta device stay as they are.
    """
    named = [(name, cast(DTensor, p)) for name, p in layer.named_parameters(recurse=False)]
    seeds = torch.randint(2**62, (len(named),))  # every rank's generator moves on alike
    for seed, (name, parameter) in zip(seeds, named, strict=True):
        local = cast(DTensor, parameter.detach()).to_local()
        if not local.is_meta:
            _draw(layer, name, parameter, local, _of_first_rank(seed.to(local.device), parameter))


def _draw(layer: PlannedLayer, name: str, parameter: DTensor, local: Tensor, seed: Tensor) -> None:
    """Draw one parameter into this rank's part of it."""
    whole = isinstance(layer, KerasWeights)
    index = 0 if whole else _part_index(parameter)
    drawn = torch.empty(parameter.shape, dtype=local.dtype, device=local.device) if whole else local
    with torch.no_grad():
        with _seeded(int(seed) + index, local.device):
            layer._draw(name, drawn)
        if whole:
            mesh, placements = parameter.device_mesh, parameter.placements
            local.copy_(distribute_tensor(drawn, mesh, placements, src_data_rank=None).to_local())
        for dim, placement in enumerate(parameter.placements):
            if isinstance(placement, Replicate):  # an initializer may have numbers of its own on each rank
                dist.broadcast(local, group=parameter.device_mesh.get_group(dim), group_src=0)


def _of_first_rank(tensor: Tensor, parameter: DTensor) -> Tensor:
    """The tensor that the first rank of a parameter's mesh has, on all its ranks."""
    for dim in range(parameter.device_mesh.ndim):
        dist.broadcast(tensor, group=parameter.device_mesh.get_group(dim), group_src=0)
    return tensor


def _part_index(parameter: DTensor) -> int:
    """A number for each part of a parameter; ranks that have the same part have the same number."""
    mesh = parameter.device_mesh
    index = 0
    for dim, placement in enumerate(parameter.placements):
        if not isinstance(placement, Replicate):
            index = index * mesh.size(dim) + mesh.get_local_rank(dim)
    return index


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the default generator of a device within a block."""
    module: Any = torch.random if device.type == "cpu" else torch.get_device_module(device)
    where = () if device.type == "cpu" else (device,)
    state = module.get_rng_state(*where)
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        with module.device(device):
            module.manual_seed(seed)
    try:
        yield
    finally:
        module.set_rng_state(state, *where)
