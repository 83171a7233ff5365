"""Training on several ranks: the weights equal those of one process, and any number of ranks reads a checkpoint."""

import itertools
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
from lc_triton.parallel import FilterParallel, PositionParallel, clip_grad_norm_
from tests.cases import assert_close
from tests.parallel.networks import LAYOUTS, data, full, network, shared

BATCHES = [data(3, batch=4).roll(i) for i in range(20)]


def train(net, optimizer, batches=BATCHES, clip=None):
    """Train for the given batches; return the weights."""
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


def adamw_with_groups(net, **kwargs):
    """AdamW with one group of DTensors and one of plain tensors."""
    groups = {kind: [p for p in net.parameters() if isinstance(p, DTensor) == kind] for kind in (True, False)}
    return torch.optim.AdamW([{"params": group} for group in groups.values() if group], 0.01, **kwargs)


def assert_same(got, want, name=""):
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-9, name)


def check_twenty_steps_of_adamw(mesh, folder):
    for layout, steps in (("rows between", 20), ("whole", 3), ("DTensors between", 3)):
        net = network(rows=3)
        want = train(net, adamw(net), BATCHES[:steps])
        net = shared(mesh, network(rows=3), layout)
        optimizer = adamw(net)
        assert_same(train(net, optimizer, BATCHES[:steps]), want, layout)
        for parameter, state in optimizer.state.items():
            if isinstance(parameter, DTensor):
                assert state["exp_avg"].to_local().shape == parameter.to_local().shape


def check_optimizers_of_dtensors_and_plain_tensors(mesh, folder):
    """As in docs/scale.md: all take both by default; foreach and fused need a group for each kind."""
    names = "AdamW Adam SGD RMSprop Adagrad Adadelta Adamax NAdam RAdam ASGD"
    for kind in (getattr(torch.optim, name) for name in names.split()):
        net, single = shared(mesh, network(rows=3)), network(rows=3)
        want = train(single, kind(single.parameters(), 0.01), BATCHES[:3])
        assert_same(train(net, kind(net.parameters(), 0.01), BATCHES[:3]), want, kind.__name__)
    single = network(rows=3)
    want = train(single, adamw(single), BATCHES[:3])
    for option in ({"foreach": True}, {"fused": True}):
        net = shared(mesh, network(rows=3))
        assert_same(train(net, adamw_with_groups(net, **option), BATCHES[:3]), want, str(option))
        net = shared(mesh, network(rows=3))
        with pytest.raises(RuntimeError, match=r"mixed torch.Tensor and DTensor"):
            train(net, adamw(net, **option), BATCHES[:1])


FUSED = (
    (lc_triton.FusedAdamW, {"lr": 0.01}),
    (lc_triton.FusedAdamW, {"lr": 0.01, "l1": 0.01, "l2": 0.1, "non_neg": True, "clip_norm": 0.05}),
    (lc_triton.FusedAdamW, {"lr": 0.01, "states": "8 bits", "clip_norm": 1e9}),
    (lc_triton.FusedSGD, {"lr": 0.1, "momentum": 0.9, "accumulate": 2}),
)


def train_and_record_stored(model, optimizer, batches, options):
    """Train, and return whether each weight of a shared layer had a stored gradient before each step."""
    stored = []
    for i, x in enumerate(batches):
        model(x).square().mean().backward()
        if (i + 1) % options.get("accumulate", 1) == 0:
            stored += [model[n].weight.grad is not None for n in (0, 1)]
            optimizer.step()
            optimizer.zero_grad()
    return stored


def check_fused_optimizers(mesh, folder):
    """Backward updates each rank's part of a shared weight; the last rank has none."""
    for layout, (cls, options) in zip(itertools.cycle(LAYOUTS), FUSED, strict=False):
        plain = {name: value for name, value in options.items() if name != "states"}  # split weights ignore `states`
        single, net = network(rows=3), shared(mesh, network(rows=3), layout)
        train_and_record_stored(single, cls(single, **plain), BATCHES[:4], options)
        optimizer = cls(net, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a stored gradient is warned of
            stored = train_and_record_stored(net, optimizer, BATCHES[:4], options)
        assert not any(stored), (layout, options)
        assert_same(map(full, net.parameters()), single.parameters(), f"{layout} {options}")
        states = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
        assert sum(isinstance(value, DTensor) for value in states) == 4 * (1 + (cls is lc_triton.FusedAdamW))


def check_fused_optimizers_of_layers_shared_by_filters(mesh, folder):
    """Of three filters on four ranks, the last rank has none."""
    models = [lc_triton.LocalConv2d(2, 3, 3, input_size=(4, 5), dtype=torch.float64) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1] = parallelize_module(models[1], mesh, FilterParallel(), src_data_rank=None)
    for model in models:
        optimizer = lc_triton.FusedAdamW(model, 0.01, clip_norm=0.05)
        for i in range(3):
            model(data(4).roll(i)).square().mean().backward()
            assert model.weight.grad is None
            optimizer.step()
            optimizer.zero_grad()
    assert_same(map(full, models[1].parameters()), models[0].parameters())


def check_a_conversion_of_weights_that_an_optimizer_has(mesh, folder):
    """The conversion swaps the contents of DTensors, which needs that nothing refers to them weakly."""
    single, net = network(rows=3).float(), shared(mesh, network(rows=3).float())
    optimizers = [lc_triton.FusedAdamW(model, 0.01) for model in (single, net)]
    for model, optimizer in zip((single, net), optimizers, strict=True):
        model.double()
        stored = train_and_record_stored(model, optimizer, BATCHES[:3], {})
        assert not any(stored)
    assert_same(map(full, net.parameters()), single.parameters())
    net = shared(mesh, network(rows=3).float())
    lc_triton.accumulate_gradients(net)
    net.double()


def hooked(net, x):
    handle = net[0].weight.register_hook(lambda grad: 2 * grad)
    net(x).square().mean().backward()
    handle.remove()


def retained(net, x):
    loss = net(x).square().mean()
    loss.backward(retain_graph=True)
    net.zero_grad()
    loss.backward()


def used_twice(net, x):
    (net(x).square().mean() + net(x.flip(0)).mean()).backward()


def in_evaluation_mode(net, x):
    net.eval()
    net(x).square().mean().backward()
    net.train()


def saved_through_hooks(net, x):
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        loss = net(x).square().mean()
    loss.backward()


def paused(net, x, optimizer):
    with optimizer.paused():
        net(x).square().mean().backward()


def check_fused_optimizers_where_a_gradient_is_stored(mesh, folder):
    """Weights equal those of one process, also with clipping, whose communication ignores what a rank has stored."""
    for run_backward in (hooked, retained, used_twice, in_evaluation_mode, saved_through_hooks, paused):
        for clip_norm in (None, 0.05):
            single, net = network(rows=3), shared(mesh, network(rows=3))
            for model in (single, net):
                optimizer = lc_triton.FusedAdamW(model, 0.01, clip_norm=clip_norm)
                for i, x in enumerate(BATCHES[:3]):
                    optimizer.zero_grad()
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # stored gradients are warned of
                        if i == 1:
                            run_backward(model, x, *([optimizer] if run_backward is paused else []))
                        else:
                            model(x).square().mean().backward()
                        optimizer.step()
                if model is net and i == 2:
                    assert net[0].weight.grad is None or run_backward is not paused
            assert_same(map(full, net.parameters()), single.parameters(), f"{run_backward.__name__} {clip_norm}")


def check_a_graph_that_reads_an_updated_weight_is_refused(mesh, folder):
    """Autograd refuses it as on one process, also for a graph that holds the DTensor."""
    net = shared(mesh, network(rows=6))
    optimizer = lc_triton.FusedAdamW(net, 0.01)
    net(data(6)).square().mean().backward()
    optimizer.step()
    later = net[0].weight.square()
    net(data(6)).square().mean().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        later.sum().backward()


def check_clipping(mesh, folder):
    single = network(rows=3)
    want = train(single, adamw(single), BATCHES[:3], nn.utils.clip_grad_norm_)
    net = shared(mesh, network(rows=3))
    assert_same(train(net, adamw(net), BATCHES[:3], clip_grad_norm_), want)
    net = shared(mesh, network(rows=3))
    with pytest.raises(RuntimeError, match=r"mixed torch.Tensor and DTensor"):
        train(net, adamw(net), BATCHES[:1], nn.utils.clip_grad_norm_)
    # torch's function works if all parameters are DTensors.
    norms = []
    for part in (shared(mesh, network(rows=3), "whole")[:2], network(rows=3)[:2]):
        part(data(3)).square().sum().backward()
        norms.append(full(nn.utils.clip_grad_norm_(part.parameters(), 0.1)))
    assert_close(*norms)


def state_of(net, optimizer):
    model, optim = get_state_dict(net, optimizer)
    return {"model": model, "optim": optim}


def check_a_checkpoint_is_read_by_another_number_of_ranks(mesh, folder):
    """Checkpoints of torch's optimizer and of FusedAdamW, also one that a single process wrote."""
    two = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "positions"))["positions"]
    builders = (
        (lambda: shared(mesh, network(rows=3))),
        (lambda: shared(two, network(rows=3))),
        (lambda: network(rows=3)),
    )
    for begin, make_optimizer in ((0, adamw), (0, fused_adamw), (2, fused_adamw)):
        single = network(rows=3)
        want = train(single, make_optimizer(single), BATCHES[:5])
        net = builders[begin]()
        optimizer = make_optimizer(net)
        train(net, optimizer, BATCHES[:3])
        path = f"{folder}/checkpoint-{begin}-{make_optimizer.__name__}"
        dcp.save(state_of(net, optimizer), checkpoint_id=path)
        for make in builders:
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
    """Each of two groups of ranks has half of the batch; fully_shard averages gradients between the groups."""
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "positions"))
    single = network(rows=4)
    batches = [data(4, batch=4).roll(i) for i in range(3)]
    want = train(single, adamw(single), batches)
    for layout in ("whole", "rows between"):
        net = shared(grid["positions"], network(rows=4), layout)
        for layer in (net[0], net[1], net[3]):
            fully_shard(layer, mesh=grid["data"])
        fully_shard(net, mesh=grid["data"])
        assert_same(train(net, adamw(net), halves(batches, grid["data"])), want, layout)


def check_fsdp_on_the_other_layers(mesh, folder):
    single = network(rows=3)
    want = train(single, adamw(single), BATCHES[:3])
    net = shared(mesh, network(rows=3))
    fully_shard(net[3], mesh=mesh)
    assert_same(train(net, adamw(net), BATCHES[:3]), want)


def check_a_layer_that_never_was_on_one_rank(mesh, folder):
    """The layer is made on the meta device, parallelized, then allocated and initialised."""
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
