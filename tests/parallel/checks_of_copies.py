"""Copies, checkpoints and compiled programs of a model whose layers ranks share."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

import lc_triton
from lc_triton import errors as E
from lc_triton.parallel import PositionParallel
from tests.cases import assert_close
from tests.parallel import ranks
from tests.parallel.networks import LAYOUTS, data, full, network, shared

NAMED = "set_model_state_dict and StateDictOptions\\(full_state_dict=True"


def check_copies_compute_the_same(mesh, folder):
    for layout in LAYOUTS:
        net, x = shared(mesh, network(rows=4), layout), data(4)
        y = net(x)
        for rebuilt in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.equal(rebuilt(x), y)
            rebuilt(x).sum().backward()
            assert net[0].weight.grad is None
            with torch.no_grad():
                rebuilt[0].weight.zero_()
            assert torch.equal(net(x), y)
            rebuilt[0].activation = "relu"  # another plan
            assert not torch.equal(rebuilt(x), y)
            assert torch.equal(net(x), y)


def check_a_pickled_layer_is_read_only_by_its_rank(mesh, folder):
    if mesh.get_local_rank() == 0:
        torch.save(shared(mesh, network(rows=4)), f"{folder}/whole.pt")
    else:
        shared(mesh, network(rows=4))
    dist.barrier()
    if mesh.get_local_rank() == 0:
        torch.load(f"{folder}/whole.pt", weights_only=False)
    else:
        with pytest.raises(E.ParallelError, match=r"rank 0 of 3 wrote its part, and it is read by rank . of 3: save"):
            torch.load(f"{folder}/whole.pt", weights_only=False)


def check_averaged_models(mesh, folder):
    for arguments in ({}, {"avg_fn": get_ema_avg_fn(0.9)}):
        found = []
        for net in (network(rows=4), shared(mesh, network(rows=4))):
            averaged = AveragedModel(net, **arguments)
            for step in range(3):
                with torch.no_grad():
                    for p in net.parameters():
                        p.mul_(1 + step)
                averaged.update_parameters(net)
            found.append([averaged(data(4)), *map(full, averaged.module.parameters())])
        for got, want in zip(found[1], found[0], strict=True):
            assert_close(got, want.detach(), 1e-12)


def check_an_ordinary_checkpoint(mesh, folder):
    """As in docs/scale.md, only the first rank reads the file."""
    torch.manual_seed(5)
    single = network(rows=4)
    with torch.no_grad():
        for p in single.parameters():
            p.copy_(torch.randn_like(p))
    for bias in ("position", "channel"):
        with torch.device("meta"):
            net = network(rows=4, bias=bias)
        single = network(rows=4, bias=bias)
        net = shared(mesh, net)
        net.to_empty(device="cpu")
        state = single.state_dict() if mesh.get_local_rank() == 0 else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(net, state, options=options)
        assert_close(net(data(4)), single(data(4)).detach(), 1e-12)
        for name, tensor in get_model_state_dict(net, options=StateDictOptions(full_state_dict=True)).items():
            assert torch.equal(full(tensor), single.state_dict()[name])


def check_plain_tensors_are_refused(mesh, folder):
    single, net, x = network(rows=4), shared(mesh, network(rows=4)), data(4)
    state = single.state_dict()
    before = [full(p).clone() for p in net.parameters()]
    for assign in (False, True):
        with pytest.raises(E.ParallelError, match=f"0.weight is a plain Tensor, and ranks share this layer: .*{NAMED}"):
            net.load_state_dict(state, assign=assign)
    assert all(torch.equal(full(p), b) for p, b in zip(net.parameters(), before, strict=True))
    with pytest.raises(E.ParallelError, match=f"weight is a plain Tensor.*{NAMED}"):
        torch.func.functional_call(net, state, (x,))
    with pytest.raises(E.ParallelError, match=f"bias is a plain Tensor.*{NAMED}"):
        torch.func.functional_call(net, {"1.bias": state["1.bias"]}, (x,))
    y = torch.func.functional_call(net, dict(net.named_parameters()), (x,))
    assert torch.equal(y, net(x))
    net.load_state_dict(net.state_dict(), assign=True)
    assert torch.equal(y, net(x))
    net[0].weight = nn.Parameter(net[0].weight.redistribute(placements=[Shard(5)]))
    with pytest.raises(E.ParallelError, match=r"weight lies as .*Shard\(dim=5\).*the layer needs .*Shard\(dim=0\)"):
        net(x)
    net[0].weight = single[0].weight
    with pytest.raises(E.ParallelError, match=f"weight is a plain Parameter.*{NAMED}"):
        net(x)
    with pytest.raises(E.ParallelError, match=f"weight is a plain Parameter.*{NAMED}"):
        net[0].reset_parameters()


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def check_a_parametrized_layer(mesh, folder):
    found = []
    for net in (network(rows=4), shared(mesh, network(rows=4))):
        parametrize.register_parametrization(net[0], "weight", Twice())
        found.append(net(data(4)))
    assert_close(found[1], found[0].detach(), 1e-12)
    with pytest.raises(E.ParallelError, match="weight is computed by a parametrization: draw what it is computed from"):
        net[0].reset_parameters()


def check_methods_that_need_the_full_weight(mesh, folder):
    conv = parallelize_module(lc_triton.LocalConv2d(2, 3, 3, input_size=5), mesh, PositionParallel())
    keras = parallelize_module(lc_triton.LocallyConnected2D(3, 3, input_shape=(5, 5, 2)), mesh, PositionParallel())
    for call in (conv.to_conv, keras.get_weights, lambda: keras.set_weights([])):
        with pytest.raises(E.ParallelError, match="ranks share this layer, and none has its whole weight: read and"):
            call()
    for draw in (lc_triton.init.orthogonal_, lc_triton.init.dirac_):
        with pytest.raises(E.ParallelError, match="initialise the layer before parallelize_module"):
            draw(conv.weight)
    with pytest.raises(E.ParallelError, match=r"knows no process groups: use torch\.export"):
        torch.jit.trace(conv, torch.zeros(1, 2, 5, 5))


def check_compiled_chains(mesh, folder):
    single, x = network(rows=4), data(4).requires_grad_()
    net = shared(mesh, network(rows=4))
    want = torch.autograd.grad(single(x).square().sum(), [x, *single.parameters()])
    y = torch.compile(net, backend="aot_eager", fullgraph=True)(x)
    assert_close(y, single(x).detach(), 1e-12)
    got = torch.autograd.grad(y.square().sum(), [x, *net.parameters()])
    for a, b in zip(got, want, strict=True):
        assert_close(full(a), b, 1e-10)
    for one in (copy.deepcopy(net), shared(mesh, network(rows=4), "whole")):
        assert_close(torch.compile(one, backend="eager", fullgraph=True)(x), single(x).detach(), 1e-12)
    torch.compiler.reset()


def check_softmax_in_rows_of_keras_like_layers(mesh, folder):
    for name in ("softmax", "log_softmax"):
        for data_format, shape, dim in (("channels_last", (5, 4, 2), 1), ("channels_first", (2, 5, 4), 2)):

            def make(name=name, data_format=data_format, shape=shape):
                torch.manual_seed(0)
                return lc_triton.LocallyConnected2D(3, 2, activation=name, input_shape=shape, data_format=data_format)

            x, single = torch.randn(2, *shape), make()
            layer = parallelize_module(make(), mesh, PositionParallel(output_layouts=Shard(dim)), src_data_rank=None)
            assert_close(layer(x), ranks.local_part(single(x).detach(), mesh, dim), 1e-6)
    one = lc_triton.LocallyConnected1D(3, 2, activation="softmax", input_shape=(2, 6), data_format="channels_first")
    one = parallelize_module(one, mesh, PositionParallel(output_layouts=Shard(2)))
    with pytest.raises(E.ParallelError, match="would see one rank's part of the output"):
        one(torch.randn(2, 2, 6))
