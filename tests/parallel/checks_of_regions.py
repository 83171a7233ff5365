"""Layers whose positions share filters, with rows split over ranks: regions of one rank, and of several ranks."""

import itertools

import pytest
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import parallelize_module

import lc_triton
from lc_triton import errors, parallel
from lc_triton.core.ranges import splits_regions
from lc_triton.parallel import PositionParallel, cost
from tests.cases import assert_close, expected, tensors
from tests.parallel import ranks
from tests.parallel.checks_of_cost import sent
from tests.parallel.checks_of_styles import channels_first, layer_of, penalized
from tests.parallel.checks_of_training import adamw, assert_same, fused_adamw, train
from tests.parallel.networks import LAYOUTS, data, full, network, shared
from tests.shared_cases import SHARED

SECONDS = 20


def meshes(mesh):
    """The mesh of all ranks, and on the first two ranks also a mesh of these two."""
    two = ranks.mesh_of_first(2, SECONDS)
    return [mesh] if two is None else [mesh, two]


def check_values_and_gradients(mesh, folder):
    for sub_mesh, case, split in itertools.product(meshes(mesh), SHARED, (False, True)):
        t, layout = tensors(case), Shard(2) if split else None
        layer, style = layer_of(case, t), PositionParallel(input_layouts=layout, output_layouts=layout)
        try:
            is_split = splits_regions(case.geometry, sub_mesh.size())
        except errors.ParallelError:
            with pytest.raises(errors.ParallelError, match=r"blocks of \d rows, and \d ranks would cut one at row"):
                parallelize_module(layer, sub_mesh, style, src_data_rank=None)
            continue

        def part(tensor, split=split, sub_mesh=sub_mesh):
            return ranks.local_part(tensor, sub_mesh, 2) if split else tensor

        layer = parallelize_module(layer, sub_mesh, style, src_data_rank=None)
        want, name = expected(case, t), f"{case.name} on {sub_mesh.size()} {split}"
        assert layer.weight.placements == (Shard(0) if is_split else Replicate(),), name
        x = part(channels_first(t.x)).clone().requires_grad_()
        y = layer(x)
        dx, dw, db = torch.autograd.grad(y, [x, layer.weight, layer.bias], part(channels_first(t.g)))
        assert_close(y, part(channels_first(want["y"])), name=name)
        assert_close(dx, part(channels_first(want["dx"])), name=name)
        assert dw.placements == layer.weight.placements, name
        assert_close(full(dw), want["dw"], name=name)
        assert_close(full(db), want["db"], name=name)


SHARES = ("rows", "all", ("tile", 2, 3))


def check_gradients_of_second_order_of_regions(mesh, folder):
    """With 3 rows, the last of four ranks has none."""
    for share, rows, layout in itertools.product(SHARES, (3, 6), ("whole", "rows between")):
        want = penalized(network(rows=rows, share=share), data(rows))
        got = penalized(shared(mesh, network(rows=rows, share=share), layout), data(rows))
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            assert_close(a, b, 1e-10, f"{share} {rows} {layout} {i}")


def clipping_adamw(net):
    """FusedAdamW with clip_norm, which counts replicated weights once."""
    return lc_triton.FusedAdamW(net, 0.01, clip_norm=0.05)


def check_training_of_regions(mesh, folder):
    """Optimizers that update weights in backward receive the sum of the ranks' gradients."""
    batches = [data(3, batch=4).roll(i) for i in range(3)]
    for optimizer, share, layout in itertools.product((adamw, fused_adamw, clipping_adamw), SHARES, LAYOUTS):
        net = network(rows=3, share=share)
        want = train(net, optimizer(net), batches)
        net = shared(mesh, network(rows=3, share=share), layout)
        assert_same(train(net, optimizer(net), batches), want, f"{share} {layout}")
        parallel.check_replicated(net)


def check_values_drawn_for_regions(mesh, folder):
    net = shared(mesh, network(share="all"))
    torch.manual_seed(mesh.get_local_rank())
    before = full(net[0].weight).clone()
    net[0].reset_parameters()
    assert isinstance(net[0].weight, DTensor)
    assert not full(net[0].weight).equal(before)
    parallel.check_replicated(net)


def check_counted_bytes_of_regions(mesh, folder):
    for share, split in itertools.product(SHARES, (False, True)):
        made = lc_triton.LocalConv2d(8, 4, 3, input_size=(12, 5), padding=1, share=share)
        layout = Shard(2) if split else None
        geometry, style = made._plan.source, PositionParallel(input_layouts=layout, output_layouts=layout)
        layer = parallelize_module(made, mesh, style)
        x = torch.randn(2, 8, 12, 5)
        x = (ranks.local_part(x, mesh, 2) if split else x).requires_grad_()
        predicted = cost(
            "positions", geometry, 2, mesh.size(), split_input=split, split_output=split, itemsize=4, weight_itemsize=4
        )
        forward, y = sent(mesh, lambda layer=layer, x=x: layer(x))
        backward, _ = sent(mesh, lambda y=y: y.sum().backward())
        assert (forward, backward) == (predicted.sent_forward, predicted.sent_backward), (share, split)
