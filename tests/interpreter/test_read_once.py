"""Optimizers with read_once=True: the node of a layer updates its weight, unless the gradient has another use."""

import copy
import warnings

import pytest
import torch
from torch import nn

import lc_triton
from lc_triton import FusedAdamW, FusedSGD, LocalConv1d, LocalConvTranspose1d, LocalLinear
from lc_triton.core.fused import slots
from lc_triton.errors import OptimizerStepError
from lc_triton.launch import linear_backward
from lc_triton.ops import dispatch
from lc_triton.optim import slot
from lc_triton.tiles.chooser import chooser
from lc_triton.tiles.config import TileConfig
from tests.optim.backwards import (
    FailingBackward,
    checkpointed,
    checkpointed_by_a_node,
    create_graph_of_weights,
    hooked,
    of_two_graphs,
    retained,
    used_twice,
)
from tests.optim.networks import PAIRS, assert_same, weights

# One tile for all passes, because the model takes longer to choose than these passes take.
TILE = TileConfig(1, 1, 8, 2, 4, dot=False, num_warps=1)


@pytest.fixture(autouse=True)
def _kernels():
    with lc_triton.backend("triton"), chooser.asking(lambda task, gpu: TILE):
        yield


@pytest.fixture
def launch_counts(monkeypatch):
    """The number of launches that read a weight once, and of updates in a launch of their own."""
    counts = {"once": 0, "after": 0}

    def counting(name, run):
        def call(*args, **kwargs):
            counts[name] += 1
            return run(*args, **kwargs)

        return call

    monkeypatch.setattr(dispatch, "input_grad_and_update", counting("once", dispatch.input_grad_and_update))
    monkeypatch.setattr(dispatch, "weight_update", counting("after", dispatch.weight_update))
    return counts


def network():
    """The first layer's input needs no gradient; the other two are read once, in two memory formats."""
    torch.manual_seed(0)
    return nn.Sequential(
        LocalLinear(2, 4, 3, activation="tanh"),
        LocalLinear(2, 3, 5, activation="silu"),
        LocalConv1d(2, 1, 1, input_size=5, activation="relu"),
    ).double()


class OnCpu(nn.Sequential):
    """Layers that run on the CPU path, which is faster than interpreted kernels."""

    def forward(self, x):
        with lc_triton.backend("cpu"):
            return super().forward(x)


def batch(step, size=2):
    return torch.randn(size, 2, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def loss_of(net, x):
    return (net(x) - 1).square().sum()


def pair(kind="sgd", read_once=True, **options):
    """A network with a fused optimizer, and a copy of the network with torch's optimizer."""
    ours, theirs, arguments = PAIRS[kind]
    net = network()
    same = OnCpu(*copy.deepcopy(net))
    fused = ours(net, **arguments, **options, read_once=read_once)
    return (net, fused), (same, theirs(same.parameters(), **arguments))


@pytest.mark.parametrize("kind", PAIRS)
def test_training_is_torchs(kind, launch_counts):
    (net, fused), (same, plain) = pair(kind)
    for step in range(2):
        for model, optimizer in ((net, fused), (same, plain)):
            optimizer.zero_grad()
            loss_of(model, batch(step)).backward()
            if model is net:
                assert all(weight.grad is None for weight in weights(net))
            optimizer.step()
    assert launch_counts == {"once": 4, "after": 2}
    assert_same(net, same, 1e-12)


def test_without_read_once_the_updates_follow(launch_counts):
    (net, fused), (same, plain) = pair(read_once=False)
    for model, optimizer in ((net, fused), (same, plain)):
        loss_of(model, batch(0)).backward()
        optimizer.step()
    assert launch_counts == {"once": 0, "after": 3}
    assert_same(net, same, 1e-12)


def test_penalties_and_bounds(launch_counts):
    (net, fused), (same, plain) = pair("adamw", l1=0.1, l2=0.2, non_neg=True)
    loss_of(net, batch(0)).backward()
    penalty = sum(0.1 * p.abs().sum() + 0.2 * p.square().sum() for p in same.parameters())
    (loss_of(same, batch(0)) + penalty).backward()
    fused.step()
    plain.step()
    for p in same.parameters():
        p.data.clamp_(min=0)
    assert launch_counts["once"] == 2
    assert_same(net, same, 1e-12)


def test_micro_batches_are_accumulated(launch_counts):
    (net, fused), (same, plain) = pair("sgd, momentum", accumulate=3)
    for _ in range(2):
        for step in range(3):
            loss_of(net, batch(step)).backward()
            loss_of(same, batch(step)).backward()
        assert all(weight.grad is None for weight in weights(net))
        for optimizer in (fused, plain):
            optimizer.step()
            optimizer.zero_grad()
    assert launch_counts == {"once": 4, "after": 8}  # the rule "add" adds the second of three micro-batches to `.grad`
    assert_same(net, same, 1e-12)


@pytest.mark.parametrize("options", [{"states": "bfloat16"}, {"states": "8 bits"}], ids=lambda o: o["states"])
def test_small_states(options, launch_counts):
    """The results are those without read_once; states in 8 bits use two launches."""
    runs = []
    for read_once in (True, False):
        net = network()
        optimizer = FusedAdamW(net, lr=0.1, read_once=read_once, **options)
        loss_of(net, batch(0)).backward()
        optimizer.step()
        runs.append((net, optimizer))
    assert launch_counts["once"] == (2 if options["states"] == "bfloat16" else 0)
    assert_same(runs[0][0], runs[1][0], 1e-12)
    (one, first), (two, second) = runs
    for p, q in zip(weights(one), weights(two), strict=True):
        for key, state in first.state[p].items():
            torch.testing.assert_close(state, second.state[q][key], rtol=1e-12, atol=1e-12)
            assert key == "step" or state.dtype != p.dtype


def loss_with_older_penalty(net, x):
    """The node of the penalty is older than the layer's, so autograd runs it later."""
    penalty = net[1].weight.sum()
    return loss_of(net, x) + penalty


def loss_with_newer_penalty(net, x):
    loss = loss_of(net, x)
    return loss + net[1].weight.sum()


@pytest.mark.parametrize("run_backward", [loss_with_older_penalty, loss_with_newer_penalty])
def test_another_gradient_of_the_weight_is_refused(run_backward):
    (net, fused), (same, plain) = pair()
    with pytest.raises(OptimizerStepError, match=r"1\.weight.*read_once=True.*is lost.*read_once=False.*l1 and l2"):
        run_backward(net, batch(0)).backward()
    loss_of(same, batch(0)).backward()
    plain.step()
    # Updated only by the layer's gradient.
    torch.testing.assert_close(net[1].weight, same[1].weight, rtol=1e-12, atol=1e-12)
    fused.zero_grad()
    fused.step()
    loss_of(net, batch(1)).backward()  # training continues
    fused.step()


def test_another_use_that_saved_the_weight_is_torchs_error():
    (net, fused), _ = pair()
    penalty = net[1].weight.square().sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss_of(net, batch(0)) + penalty).backward()
    assert not fused.state[net[1].weight]  # plain gradient descent has no state


def in_evaluation_mode(net, x):
    net.eval()
    loss_of(net, x).backward()
    net.train()


def compiled(net, x):
    loss_of(torch.compile(net, backend="aot_eager"), x).backward()


BACKWARDS = [
    *(used_twice, of_two_graphs, retained, create_graph_of_weights, hooked),
    *(checkpointed, checkpointed_by_a_node, in_evaluation_mode),
    pytest.param(compiled, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("run_backward", BACKWARDS)
def test_stored_gradients_are_not_bypassed(run_backward, launch_counts):
    (net, fused), (same, plain) = pair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer warns of stored gradients
        run_backward(net, batch(0))
        # Only the last backward.
        assert launch_counts["once"] == (2 if run_backward in (of_two_graphs, retained) else 0)
        fused.step()
    run_backward(same, batch(0))
    plain.step()
    assert_same(net, same, 1e-12)


def test_requested_gradients_update_nothing(launch_counts):
    (net, fused), _ = pair()
    before = copy.deepcopy(net.state_dict())
    x = batch(0).requires_grad_()
    torch.autograd.grad(loss_of(net, x), x)
    runs = torch.autograd.grad(loss_of(net, x), weights(net))
    assert [g.shape for g in runs] == [w.shape for w in weights(net)]
    loss_of(net, x).backward(inputs=[x])
    with fused.paused():
        loss_of(net, x).backward()
    torch.testing.assert_close([w.grad for w in weights(net)], list(runs), rtol=1e-12, atol=1e-12)
    for p in net.parameters():
        p.grad = None
        p.requires_grad_(False)
    loss_of(net, x).backward()
    assert launch_counts == {"once": 0, "after": 0}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_weight_frozen_between_forward_and_backward(launch_counts):
    (net, fused), _ = pair()
    loss, before = loss_of(net, batch(0)), net[1].weight.detach().clone()
    net[1].weight.requires_grad_(False)
    loss.backward()
    assert torch.equal(net[1].weight, before)
    assert launch_counts["once"] == 1
    fused.step()


def test_a_second_backward_is_stored_and_refused(launch_counts):
    (net, fused), _ = pair()
    loss_of(net, batch(0)).backward()
    before = net[1].weight.detach().clone()
    loss_of(net, batch(1)).backward()
    assert torch.equal(net[1].weight, before)
    assert net[1].weight.grad is not None
    with pytest.raises(OptimizerStepError, match="a backward updated it"):
        fused.step()


def test_a_grad_scaler_stores_gradients(launch_counts):
    (net, fused), (same, plain) = pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(loss_of(net, batch(0))).backward()
    scaler.step(fused)
    loss_of(same, batch(0)).backward()
    plain.step()
    assert launch_counts == {"once": 0, "after": 0}
    assert_same(net, same, 1e-12)


def test_clipping_uses_two_launches(launch_counts):
    (net, fused), (same, plain) = pair(clip_norm=0.1)
    loss_of(net, batch(0)).backward()
    fused.step()
    loss_of(same, batch(0)).backward()
    torch.nn.utils.clip_grad_norm_(same.parameters(), 0.1)
    plain.step()
    assert launch_counts["once"] == 0
    assert_same(net, same, 1e-6)


def test_large_batches_and_other_windows_use_two_launches(launch_counts):
    layers = {
        LocalLinear(2, 3, 1): torch.ones(129, 2, 3),
        LocalConv1d(2, 3, 2, input_size=3): torch.ones(2, 2, 3),
        LocalConvTranspose1d(2, 3, 1, input_size=3): torch.ones(2, 2, 3),
    }
    for layer, x in layers.items():
        optimizer = FusedSGD(layer, lr=0.1, read_once=True)
        layer(x.requires_grad_()).sum().backward()
        assert layer.weight.grad is None
        optimizer.step()
    assert launch_counts == {"once": 0, "after": 3}


def test_training_goes_on_after_a_failed_backward(launch_counts):
    (net, fused), _ = pair()
    with pytest.raises(ValueError, match="no gradient"):
        net[2](net[1](FailingBackward.apply(net[0](batch(0))))).sum().backward()
    assert launch_counts["once"] == 2
    fused.step()
    loss_of(net, batch(1)).backward()
    fused.step()
    assert launch_counts["once"] == 4


def test_a_launch_is_bound_at_the_first_step(monkeypatch):
    (net, fused), _ = pair()
    bind, count = linear_backward.bind, []
    monkeypatch.setattr(linear_backward, "bind", lambda *args: count.append(args) or bind(*args))
    for step in range(3):
        loss_of(net, batch(step)).backward()
        fused.step()
    assert len(count) == 2


def test_accumulated_gradients_of_a_layer_of_matrices():
    layer, x = LocalLinear(2, 3, 4).double(), torch.ones(2, 2, 3, dtype=torch.float64)
    with lc_triton.accumulate_gradients(layer):
        for _ in range(3):
            layer(x).square().sum().backward()
    (single,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    torch.testing.assert_close(layer.weight.grad, 3 * single, rtol=1e-12, atol=0)


def test_the_stream_of_the_weight_waits_for_that_of_the_layer(monkeypatch):
    """On a GPU the layer's node and AccumulateGrad may use two streams, and autograd gets no gradient to wait for."""

    class Stream:
        def __init__(self):
            self.waited_for = []

        def wait_stream(self, other):
            self.waited_for.append(other)

    layer, x = LocalLinear(2, 3, 4).double(), torch.ones(2, 2, 3, dtype=torch.float64, requires_grad=True)
    optimizer = FusedSGD(layer, lr=0.1, read_once=True)
    streams = layer_stream, weight_stream = Stream(), Stream()
    next_stream = iter(streams)
    monkeypatch.setattr(slot, "current_stream", lambda weight: next(next_stream))
    layer(x).sum().backward()
    optimizer.step()
    assert weight_stream.waited_for == [layer_stream]
    assert layer_stream.waited_for == []


def test_slots_of_views_are_removed_with_their_graphs():
    layer, x = LocalLinear(2, 3, 4), torch.ones(2, 2, 3)
    optimizer = FusedSGD(layer, read_once=True)
    before = set(slots)
    y = layer(x)
    assert len(slots) == len(before) + 1
    y.sum().backward()
    del y
    optimizer.step()
    assert set(slots) == before
