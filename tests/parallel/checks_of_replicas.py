"""Replicated tensors are identical on all ranks, and `check_replicated` finds those that are not."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import parallelize_module

import lc_triton
from lc_triton import errors as E
from lc_triton import parallel
from lc_triton.parallel import FilterParallel, PositionParallel
from tests.cases import assert_close


def layer_of_docs(mesh, seed, style=PositionParallel, bias="channel"):
    """A layer made as in docs/scale.md, with a seed for each rank."""
    with torch.device("meta"):
        layer = lc_triton.LocalConv2d(3, 8, 3, input_size=12, bias=bias, dtype=torch.float64)
    parallelize_module(layer, mesh, style())
    layer.to_empty(device="cpu")
    torch.manual_seed(seed)
    layer.reset_parameters()
    return layer


def check_the_recipe_of_the_docs(mesh, folder):
    rank = mesh.get_local_rank()
    layer = layer_of_docs(mesh, seed=rank)
    parallel.check_replicated(layer)
    assert_close(layer.weight.full_tensor().std(), torch.tensor((27 * 3) ** -0.5, dtype=torch.float64), 4e-3)
    # Only the first rank's seed counts, and the parts of two ranks differ even if their seeds are equal.
    for seed in (0, 5 * rank):
        rebuilt = layer_of_docs(mesh, seed=seed)
        assert torch.equal(rebuilt.weight.to_local(), layer.weight.to_local())
        assert torch.equal(rebuilt.bias.to_local(), layer.bias.to_local())
    for style, bias in ((PositionParallel, "position"), (FilterParallel, "channel")):
        parts = layer_of_docs(mesh, 0, style, bias).weight
        axis = parts.placements[0].dim
        one, other, *_ = parts.full_tensor().chunk(mesh.size(), axis)
        assert not torch.isin(one, other).any()
    # The default generators advance alike: with equal seeds, later draws are equal on all ranks.
    torch.manual_seed(3)
    layer.reset_parameters()
    new_parameter = nn.Parameter(torch.rand(3))
    parallel.check_replicated(nn.ParameterList([new_parameter]), mesh)


def check_the_numbers_of_keras_like_layers(mesh, folder):
    """An initializer sees the full variable; one with a seed draws the values of one process."""
    for initializer in (
        {"class_name": "GlorotUniform", "config": {"seed": 4, "fan_mode": "keras"}},
        {"class_name": "Orthogonal", "config": {"seed": 4}},
    ):
        arguments = {"kernel_initializer": initializer, "bias_initializer": "ones", "input_shape": (5, 6, 2)}
        alone = lc_triton.LocallyConnected2D(4, 3, **arguments)
        layer = parallelize_module(lc_triton.LocallyConnected2D(4, 3, **arguments), mesh, PositionParallel())
        weight = layer.weight
        with torch.no_grad():
            weight.zero_()
        layer.reset_parameters()
        assert layer.weight is weight
        assert torch.equal(layer.weight.full_tensor(), alone.weight)
        assert torch.equal(layer.bias.full_tensor(), alone.bias)


def network(mesh):
    torch.manual_seed(0)
    made = nn.Sequential(
        lc_triton.LocalConv2d(2, 4, 3, input_size=(5, 4), bias="channel"), nn.BatchNorm2d(4), nn.Linear(2, 2)
    )
    return parallelize_module(made, mesh, {"0": PositionParallel()}, src_data_rank=None)


def check_replicated_names_what_differs(mesh, folder):
    rank = mesh.get_local_rank()
    parallel.check_replicated(network(mesh))

    def change(name):
        made = network(mesh)
        if rank == 1:
            tensor = dict([*made.named_parameters(), *made.named_buffers()])[name].detach()
            (tensor if type(tensor) is torch.Tensor else tensor.to_local()).flatten()[0] += 1
        return made

    for name in ("0.bias", "1.weight", "1.running_var", "1.num_batches_tracked", "2.bias"):
        with pytest.raises(E.ParallelError) as caught:
            parallel.check_replicated(change(name))
        text = str(caught.value)
        assert text.startswith(f"{name} cannot be used: values, shape, dtype or requires_grad differ between ranks"), (
            text
        )
        assert f"{name} (on rank 1 other than on rank 0" in text
    parallel.check_replicated(change("0.weight"))  # a split weight is not compared
    parallel.check_replicated(nn.ModuleList([network(mesh), nn.LazyLinear(3)]))
    other = network(mesh)
    other[2].weight.requires_grad_(rank != 2)
    if rank == 2:
        other[1].double()
    with pytest.raises(E.ParallelError, match=r"^1.weight, 1.bias, 2.weight, 1.running_mean, 1.running_var cannot"):
        parallel.check_replicated(other)
    with pytest.raises(E.ArgumentValueError, match="mesh must be a DeviceMesh where no layer of the module is shared"):
        parallel.check_replicated(nn.Linear(2, 2))
    with pytest.raises(E.ArgumentTypeError, match=r"module must be a torch.nn.Module"):
        parallel.check_replicated([other])
    with pytest.raises(E.ArgumentTypeError, match="mesh must be None or a DeviceMesh"):
        parallel.check_replicated(other, "positions")


def check_a_layer_on_one_dimension_of_a_mesh(mesh, folder):
    """Every rank of the mesh raises, though only some see the difference."""
    grid = DeviceMesh("cpu", torch.arange(mesh.size()).view(-1, 1), mesh_dim_names=("data", "positions"))
    layer = layer_of_docs(grid["positions"], seed=0)
    parallel.check_replicated(layer)
    with torch.no_grad():
        layer.bias.to_local().add_(mesh.get_local_rank())
    parallel.check_replicated(layer)  # it does not compare ranks along "data"
    with pytest.raises(E.ParallelError, match=r"^0 cannot be used"):
        parallel.check_replicated(nn.ParameterList([nn.Parameter(layer.bias.to_local())]), grid)


def check_wrong_calls_are_found_on_all_ranks(mesh, folder):
    """With TORCH_DISTRIBUTED_DEBUG=DETAIL, all ranks raise for an error that one rank finds."""
    import torch.distributed as dist

    level, rank = dist.get_debug_level(), mesh.get_local_rank()
    dist.set_debug_level(dist.DebugLevel.DETAIL)
    try:
        style = PositionParallel(input_layouts=Shard(2))
        layer = parallelize_module(lc_triton.LocalConv2d(2, 4, 3, input_size=(6, 4)), mesh, style, src_data_rank=None)
        assert layer(torch.ones(3, 2, 2, 4)).shape == (3, 4, 4, 2)
        for x, message in (
            (torch.ones(3, 2, 2 + (rank == 1), 4), r"rank 1: PartShapeError: rank 1 of 3 must be given"),
            (torch.ones(3 - (rank == 1), 2, 2, 4), r"x differs between ranks in .*rank 1 has \(4, 2, 'torch.float32'"),
            (torch.ones(3, 2, 2, 4, requires_grad=rank == 2), r"rank 2 has \(4, 3, 'torch.float32', True"),
            (None if rank == 0 else torch.ones(3, 2, 2, 4), r"rank 0: ArgumentTypeError"),
        ):
            with pytest.raises(E.ParallelError, match=message):
                layer(x)
    finally:
        dist.set_debug_level(level)


def check_accumulated_gradients_are_averaged(mesh, folder):
    """DistributedDataParallel reads `.grad` after each backward outside of `no_sync()`, and averages it."""
    rank = mesh.get_local_rank()
    for options in ({}, {"gradient_as_bucket_view": True}, {"find_unused_parameters": True}):
        models = []
        for accumulates in (True, False):
            torch.manual_seed(0)
            layers = (
                lc_triton.LocalConv2d(2, 4, 3, input_size=(5, 4)),
                lc_triton.LocalConv2d(4, 3, 2, input_size=(3, 2)),
            )
            model = nn.Sequential(layers[0], nn.Tanh(), layers[1]).double()
            if accumulates:
                lc_triton.accumulate_gradients(model)
            models.append(nn.parallel.DistributedDataParallel(model, process_group=mesh.get_group(), **options))
        for step in range(6):
            x = torch.randn(2, 2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * step + rank))
            for model in models:
                with model.no_sync() if step % 3 < 2 else nullcontext():
                    model(x).square().sum().backward()
        for p, q in zip(*(model.parameters() for model in models), strict=True):
            assert_close(p.grad, q.grad, 1e-12)
