"""Ranks with different numbers of rows or filters, or none, run the same graph: second derivatives, term by term."""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module

import lc_triton
from lc_triton import errors as E
from lc_triton.core.activations import FUSED_NAMES
from lc_triton.parallel import FilterParallel, PositionParallel
from tests.cases import assert_close
from tests.parallel import ranks

SECONDS = 20
ACTIVATIONS = [None, *FUSED_NAMES, ("leaky_relu", 0.3), ("gelu", "tanh"), "softmax", "log_softmax"]
BIASES = ["position", "channel", False]
# The rows or filters of the layer, for each number of ranks.
PARTS = {"full": {2: 4, 3: 6}, "uneven": {2: 3, 3: 5}, "empty": {2: 1, 3: 4}}
# The style, and whether input and output are split. Each is tested with all parts and biases; activations alternate.
STYLES = [
    (PositionParallel, False, False),
    (PositionParallel, True, True),
    (FilterParallel, False, False),
    (FilterParallel, True, False),
    (PositionParallel, True, False),
]


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def second_order(layer, x, loss):
    """The output, the first derivatives of a loss, and the derivatives of each one's square by all tensors."""
    tensors = [x, *layer.parameters()]
    y = layer(x)
    first = torch.autograd.grad(loss(y), tensors, create_graph=True)
    second = []
    for one in first:
        if one.requires_grad:
            term = local(one).square().sum()
            second.append(torch.autograd.grad(term, tensors, retain_graph=True, allow_unused=True))
        else:
            second.append([None] * len(tensors))
    return y, first, second


def linear_loss(y):
    """A loss whose gradient does not depend on the output."""
    return (y.movedim(0, -1) * torch.arange(1.0, len(y) + 1, dtype=y.dtype)).sum()


def quadratic_loss(y):
    return y.square().sum()


def assert_equals_one_process(mesh, style_, make, x, name, loss=quadratic_loss):
    """A layer that ranks share computes what one process does, and its gradients depend on the same tensors."""
    style, split_in, split_out = style_
    dim = 2 if style is PositionParallel else 1

    def part_of(tensor, split):
        return ranks.local_part(tensor, mesh, dim) if split else tensor

    single, layer = make(), make()
    layer.load_state_dict(single.state_dict())
    layout = Shard(dim)
    parallel_style = style(input_layouts=layout if split_in else None, output_layouts=layout if split_out else None)
    layer = parallelize_module(layer, mesh, parallel_style, src_data_rank=None)
    y, first, second = second_order(single, x.clone().requires_grad_(), loss)
    got_y, got_first, got_second = second_order(layer, part_of(x, split_in).clone().requires_grad_(), loss)
    assert_close(got_y, part_of(y.detach(), split_out), name=name)

    def compare(got, want, label):
        if got is None or want is None:  # communication turns None into zeros
            assert all(t is None or not local(t).any() for t in (got, want)), label
            return
        assert got.requires_grad or not want.requires_grad, label
        want = want.detach()
        if isinstance(got, DTensor):
            want = distribute_tensor(want, mesh, got.placements, src_data_rank=None).to_local()
        elif want.shape == x.shape:
            want = part_of(want, split_in)
        assert_close(local(got), want, 1e-9, label)

    graph = [one.requires_grad for one in got_first] + [one is None for many in got_second for one in many]
    pattern = torch.tensor(graph, dtype=torch.int64)
    minimum, maximum = pattern.clone(), pattern.clone()
    dist.all_reduce(minimum, dist.ReduceOp.MIN, group=mesh.get_group())
    dist.all_reduce(maximum, dist.ReduceOp.MAX, group=mesh.get_group())
    assert torch.equal(minimum, maximum), f"{name}: the graphs of two ranks differ"
    for term, (one, exact) in enumerate(zip(got_first, first, strict=True)):
        compare(one, exact, f"{name} gradient {term}")
    for term, (many, exacts) in enumerate(zip(got_second, second, strict=True)):
        for by, (one, exact) in enumerate(zip(many, exacts, strict=True)):
            compare(one, exact, f"{name} term {term} by {by}")


def meshes(mesh):
    """The meshes of two and of three ranks that this rank is in."""
    return [m for m in (ranks.mesh_of_first(2, SECONDS), mesh) if m is not None]


def make_layer(style, size, activation, bias):
    along_rows = style is PositionParallel
    rows, filters = (size, 3) if along_rows else (3, size)
    layer = lc_triton.LocalConv2d(
        2, filters, (3, 2), (rows, 4), padding=(1, 0), activation=activation, bias=bias, dtype=torch.float64
    )
    return layer, torch.randn(2, 2, rows, 4, dtype=torch.float64)


def check_each_term_of_a_penalty(mesh, folder):
    sub_meshes = meshes(mesh)
    for number, (part, bias, activation) in enumerate(itertools.product(PARTS, BIASES, ACTIVATIONS)):
        for one in sub_meshes:  # the third rank waits for one case of two ranks, not for all of them
            style_ = STYLES[number % len(STYLES)]
            size = PARTS[part][one.size()]
            torch.manual_seed(number)
            _, x = make_layer(style_[0], size, activation, bias)
            name = f"{one.size()} ranks {part} {bias} {activation} {style_[0].__name__} {style_[1:]}"
            for loss in (linear_loss, quadratic_loss) if part == "empty" else (linear_loss,):

                def make(style_=style_, size=size, activation=activation, bias=bias):
                    return make_layer(style_[0], size, activation, bias)[0]

                assert_equals_one_process(one, style_, make, x, f"{name} {loss.__name__}", loss)


def check_padding_of_fewer_channels_than_ranks(mesh, folder):
    for one, mode, split in itertools.product(meshes(mesh), ("reflect", "replicate", "circular"), (True, False)):
        for channels, filters, groups in ((1, 4, 1), (2, 4, 1), (2, 2, 1), (3, 6, 3)):
            if groups > 1 and one.size() == 2:
                continue

            def make(c=channels, f=filters, g=groups, m=mode):
                arguments = {"padding": 1, "padding_mode": m, "groups": g, "activation": "relu"}
                return lc_triton.LocalConv2d(c, f, 3, 4, dtype=torch.float64, **arguments)

            torch.manual_seed(channels)
            x = torch.randn(2, channels, 4, 4, dtype=torch.float64)
            for loss in (linear_loss, quadratic_loss):
                name = f"{mode} {channels} {filters} {groups} {loss.__name__}"
                assert_equals_one_process(one, (FilterParallel, split, False), make, x, name, loss)


def check_an_empty_batch(mesh, folder):
    """An empty batch is not sent, and no rank waits."""
    sub_meshes = meshes(mesh)
    for (part, bias), style_ in itertools.product((("empty", "channel"), ("uneven", "position")), STYLES):
        for one in sub_meshes:
            size = PARTS[part][one.size()]

            def make(style_=style_, size=size, bias=bias):
                return make_layer(style_[0], size, "tanh", bias)[0]

            x = make_layer(style_[0], size, "tanh", bias)[1][:0]
            assert_equals_one_process(
                one, style_, make, x, f"{one.size()} ranks {part} {bias} {style_[0].__name__} {style_[1:]}"
            )


def check_an_empty_rank_refuses_what_the_others_refuse(mesh, folder):
    """Wrong arguments are refused on all ranks, so that none waits for the others."""
    layer = lc_triton.LocalConv2d(2, 3, 3, input_size=(3, 4))
    layer = parallelize_module(layer, mesh, PositionParallel(), src_data_rank=None)
    for x, kind in (
        (torch.ones(1, 2, 3, 4, dtype=torch.float64), E.DtypeError),
        (torch.ones(1, 2, 3, 4, dtype=torch.int64), E.DtypeError),
        (torch.ones(1, 2, 3, 4, device="meta"), E.DeviceMismatchError),
        (torch.ones(1, 2, 4, 4), E.SpatialSizeError),
    ):
        with pytest.raises(kind):
            layer(x)
    # A DTensor of the wrong size, of which some ranks have a part of the right size.
    rows = lc_triton.LocalConv2d(2, 3, 3, input_size=(6, 4))
    rows = parallelize_module(rows, mesh, PositionParallel(input_layouts=Shard(2)), src_data_rank=None)
    x = distribute_tensor(torch.ones(1, 2, 5, 4), mesh, [Shard(2)], src_data_rank=None)
    with pytest.raises(E.SpatialSizeError):
        rows(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.ones(1, 2, 3, 4))
    assert y.dtype == torch.bfloat16
    assert y.shape == (1, 3, 1, 2)
