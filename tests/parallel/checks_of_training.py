"""Training on several ranks: the weights of one process, and checkpoints that any number of ranks reads."""

import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module

import lc_triton
from lc_triton.errors import OptimizerStepError
from lc_triton.parallel import PositionParallel, clip_grad_norm_
from tests.cases import assert_close
from tests.parallel.networks import WAYS, data, full, network, shared

BATCHES = [data(3, batch=4).roll(i) for i in range(20)]


def train(net, optimizer, batches=BATCHES, clip=None):
    """The weights after some steps."""
    for x in batches:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        if clip is not None:
            clip(net.parameters(), 0.05)
        optimizer.step()
    return [full(p).detach().clone() for p in net.parameters()]


def adamw(net, **kwargs):
    return torch.optim.AdamW(net.parameters(), 0.01, **kwargs)


def fused_adamw(net):
    return lc_triton.FusedAdamW(net, 0.01, l2=0.01)


def by_kind(net, **kwargs):
    """DTensors and others in groups of their own."""
    groups = {kind: [p for p in net.parameters() if isinstance(p, DTensor) == kind] for kind in (True, False)}
    return torch.optim.AdamW([{"params": group} for group in groups.values() if group], 0.01, **kwargs)


def assert_same(got, want, name=""):
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-9, name)


def check_twenty_steps_of_adamw(mesh, folder):
    for way, steps in (("rows between", 20), ("whole", 3), ("DTensors between", 3)):
        net = network(rows=3)
        want = train(net, adamw(net), BATCHES[:steps])
        net = shared(mesh, network(rows=3), way)
        optimizer = adamw(net)
        assert_same(train(net, optimizer, BATCHES[:steps]), want, way)
        for parameter, state in optimizer.state.items():
            if isinstance(parameter, DTensor):
                assert state["exp_avg"].to_local().shape == parameter.to_local().shape


def check_which_optimizers_take_both_kinds(mesh, folder):
    """docs/scale.md says it: all by default, foreach and fused where the kinds are in groups of their own."""
    names = "AdamW Adam SGD RMSprop Adagrad Adadelta Adamax NAdam RAdam ASGD"
    for kind in (getattr(torch.optim, name) for name in names.split()):
        net, alone = shared(mesh, network(rows=3)), network(rows=3)
        want = train(alone, kind(alone.parameters(), 0.01), BATCHES[:3])
        assert_same(train(net, kind(net.parameters(), 0.01), BATCHES[:3]), want, kind.__name__)
    alone = network(rows=3)
    want = train(alone, adamw(alone), BATCHES[:3])
    for option in ({"foreach": True}, {"fused": True}):
        net = shared(mesh, network(rows=3))
        assert_same(train(net, by_kind(net, **option), BATCHES[:3]), want, str(option))
        net = shared(mesh, network(rows=3))
        with pytest.raises(RuntimeError, match=r"mixed torch.Tensor and DTensor"):
            train(net, adamw(net, **option), BATCHES[:1])


FUSED = (
    (lc_triton.FusedAdamW, {"lr": 0.01}),
    (lc_triton.FusedAdamW, {"lr": 0.01, "l1": 0.01, "l2": 0.1, "non_neg": True}),
    (lc_triton.FusedSGD, {"lr": 0.1, "momentum": 0.9, "accumulate": 2}),
)


def check_fused_optimizers(mesh, folder):
    """Weights that ranks share are updated in step(), each rank its part; clip_norm does not take them."""
    for way, (cls, options) in zip(WAYS, FUSED, strict=True):
        alone, net = network(rows=3), shared(mesh, network(rows=3), way)
        for model in (alone, net):
            optimizer = cls(model, **options)
            for i, x in enumerate(BATCHES[:4]):
                model(x).square().mean().backward()
                if (i + 1) % options.get("accumulate", 1) == 0:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # of the stored gradients
                        optimizer.step()
                    optimizer.zero_grad()
        assert_same(map(full, net.parameters()), alone.parameters(), way)
        states = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
        assert sum(isinstance(value, DTensor) for value in states) == 4 * (1 + (cls is lc_triton.FusedAdamW))
    net = shared(mesh, network(rows=3))
    with pytest.raises(OptimizerStepError, match=r"weight is not updated: its gradient is spread over ranks"):
        train(net, lc_triton.FusedAdamW(net, 0.01, clip_norm=1.0), BATCHES[:1])


def check_clipping(mesh, folder):
    alone = network(rows=3)
    want = train(alone, adamw(alone), BATCHES[:3], nn.utils.clip_grad_norm_)
    net = shared(mesh, network(rows=3))
    assert_same(train(net, adamw(net), BATCHES[:3], clip_grad_norm_), want)
    net = shared(mesh, network(rows=3))
    with pytest.raises(RuntimeError, match=r"mixed torch.Tensor and DTensor"):
        train(net, adamw(net), BATCHES[:1], nn.utils.clip_grad_norm_)
    # Where all are DTensors, torch's own does.
    norms = []
    for part in (shared(mesh, network(rows=3), "whole")[:2], network(rows=3)[:2]):
        part(data(3)).square().sum().backward()
        norms.append(full(nn.utils.clip_grad_norm_(part.parameters(), 0.1)))
    assert_close(*norms)


def state_of(net, optimizer):
    model, optim = get_state_dict(net, optimizer)
    return {"model": model, "optim": optim}


def check_a_checkpoint_is_read_by_another_number_of_ranks(mesh, folder):
    """By torch's optimizer and by ours; of ours, also from one rank by all, whose states are then DTensors."""
    two = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "positions"))["positions"]
    makes = (lambda: shared(mesh, network(rows=3))), (lambda: shared(two, network(rows=3))), (lambda: network(rows=3))
    for begin, make_optimizer in ((0, adamw), (0, fused_adamw), (2, fused_adamw)):
        alone = network(rows=3)
        want = train(alone, make_optimizer(alone), BATCHES[:5])
        net = makes[begin]()
        optimizer = make_optimizer(net)
        train(net, optimizer, BATCHES[:3])
        path = f"{folder}/checkpoint-{begin}-{make_optimizer.__name__}"
        dcp.save(state_of(net, optimizer), checkpoint_id=path)
        for make in makes:
            net = make()
            with torch.no_grad():
                for p in net.parameters():
                    p.zero_()
            optimizer = make_optimizer(net)
            state = state_of(net, optimizer)
            dcp.load(state, checkpoint_id=path)
            set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
            assert_same(train(net, optimizer, BATCHES[3:5]), want)


def halves(batches, mesh):
    """This data-parallel rank's half of each batch."""
    return [x.chunk(2)[mesh.get_local_rank()] for x in batches]


def check_beside_data_parallel(mesh, folder):
    """Two groups of ranks, a half of the batch each; fully_shard averages gradients between the groups."""
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "positions"))
    alone = network(rows=4)
    batches = [data(4, batch=4).roll(i) for i in range(3)]
    want = train(alone, adamw(alone), batches)
    for way in ("whole", "rows between"):
        net = shared(grid["positions"], network(rows=4), way)
        for layer in (net[0], net[1], net[3]):
            fully_shard(layer, mesh=grid["data"])
        fully_shard(net, mesh=grid["data"])
        assert_same(train(net, adamw(net), halves(batches, grid["data"])), want, way)


def check_fsdp_on_the_other_layers(mesh, folder):
    alone = network(rows=3)
    want = train(alone, adamw(alone), BATCHES[:3])
    net = shared(mesh, network(rows=3))
    fully_shard(net[3], mesh=mesh)
    assert_same(train(net, adamw(net), BATCHES[:3]), want)


def check_a_layer_that_never_was_on_one_rank(mesh, folder):
    """Made without memory, shared, then given memory and values."""
    with torch.device("meta"):
        layer = lc_triton.LocalConv2d(3, 8, 3, input_size=40, dtype=torch.float64)
    layer = parallelize_module(layer, mesh, PositionParallel())
    assert layer.weight.to_local().is_meta
    layer.to_empty(device="cpu")
    assert layer.weight.to_local().shape == (10 if mesh.get_local_rank() < 3 else 8, 38, 3, 3, 3, 8)
    torch.manual_seed(mesh.get_local_rank())
    layer.reset_parameters()
    weight = layer.weight.full_tensor()
    assert_close(weight.std(), torch.tensor((27 * 3) ** -0.5, dtype=torch.float64), 1e-3)
    assert not torch.equal(weight[:10], weight[10:20])
