"""Weights whose gradient must be stored are updated in step(), with one warning; no weight is updated twice."""

import copy
import gc
import re
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

import lc_triton
from lc_triton import FusedAdamW, FusedSGD, LocalConv1d, LocalConv2d
from lc_triton.errors import OptimizerStepError
from tests.optim.backwards import STORED, FailingBackward, plainly
from tests.optim.networks import assert_same, batch, loss_of, pair, train, weights


@pytest.mark.slow
@pytest.mark.parametrize("run_backward", STORED, ids=lambda run_backward: run_backward.__name__)
def test_stored_gradients_update_as_in_torch_with_one_warning(run_backward):
    """Plain steps alternate with others; float64 shows any difference of the sums."""
    (net, fused), (same, plain) = pair(dtype=torch.float64)
    messages = []
    for step, kind in enumerate((plainly, run_backward, run_backward, plainly, run_backward)):
        for model, optimizer in ((net, fused), (same, plain)):
            optimizer.zero_grad()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                kind(model, batch(step, torch.float64))
                optimizer.step()
            messages += [str(w.message) for w in caught if "FusedAdamW" in str(w.message)]
    assert_same(net, same, 1e-10)
    if STORED[run_backward] is None:
        assert messages == []
    else:
        with pytest.warns(UserWarning, match=f"0.weight.*{STORED[run_backward]}"):
            warnings.warn(messages[0], stacklevel=1)
        assert len(messages) <= 2  # other layers may have other reasons


def test_a_graph_that_waits_for_its_backward():
    """An evaluation without no_grad leaves such a graph, which may still need the old weight."""
    (net, fused), (same, plain) = pair(dtype=torch.float64)
    for model, optimizer in ((net, fused), (same, plain)):
        kept = loss_of(model, batch(0, torch.float64))
        loss_of(model, batch(1, torch.float64)).backward()
        if model is net:
            with pytest.warns(UserWarning, match=r"0\.weight, .*waits for its backward: evaluate under"):
                optimizer.step()
        else:
            optimizer.step()
    assert kept.requires_grad
    assert_same(net, same, 1e-10)


def test_requested_gradients_update_nothing():
    (net, fused), _ = pair()
    before = [p.detach().clone() for p in net.parameters()]
    x = batch(0).requires_grad_()
    (x_grad,) = torch.autograd.grad(loss_of(net, x), x)
    weight_grads = torch.autograd.grad(loss_of(net, x), weights(net))
    loss_of(net, x).backward(inputs=[x])
    assert torch.equal(x.grad, x_grad)
    assert all(g.shape == w.shape and g.abs().max() > 0 for g, w in zip(weight_grads, weights(net), strict=True))
    with fused.paused():
        loss_of(net, x).backward()
    torch.testing.assert_close([w.grad for w in weights(net)], list(weight_grads))
    assert all(torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True))


def test_backward_into_chosen_parameters():
    (net, fused), (same, plain) = pair(dtype=torch.float64)
    for model, optimizer in ((net, fused), (same, plain)):
        loss_of(model, batch(0, torch.float64)).backward(inputs=[model[0].weight, model[0].bias])
        optimizer.step()
    assert_same(net, same, 1e-10)
    assert len(fused.state[net[2].weight]) == 0


def test_a_second_backward_is_refused_by_the_step():
    (net, fused), _ = pair()
    loss_of(net, batch(0)).backward()
    before = [w.detach().clone() for w in weights(net)]
    loss_of(net, batch(1)).backward()
    assert all(torch.equal(a, w) and w.grad is not None for a, w in zip(before, weights(net), strict=True))
    bias = net[0].bias.detach().clone()
    with pytest.raises(OptimizerStepError, match=r"0\.weight is not updated: a backward updated it"):
        fused.step()
    assert torch.equal(bias, net[0].bias)
    fused.zero_grad()
    fused.step()  # ends the step of the first backward
    assert all(torch.equal(a, w) for a, w in zip(before, weights(net), strict=True))
    loss_of(net, batch(2)).backward()
    assert not torch.equal(before[0], net[0].weight)


def test_a_later_use_of_an_updated_weight_is_torchs_error():
    """An update raises the version of the weight, which autograd compares."""
    layer = LocalConv2d(1, 2, 2, input_size=3)
    optimizer = FusedAdamW(layer)
    other = layer.weight.square().sum()
    version = layer.weight._version
    layer(torch.ones(1, 1, 3, 3)).sum().backward()
    assert layer.weight._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()
    optimizer.step()


def test_a_grad_scaler_after_the_first_step_is_refused():
    layer = LocalConv2d(1, 2, 2, input_size=3)
    optimizer, x = FusedAdamW(layer), torch.ones(1, 1, 3, 3)
    layer(x).sum().backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(layer(x).sum()).backward()
    with pytest.raises(OptimizerStepError, match="a GradScaler appeared"):
        scaler.step(optimizer)


def test_training_goes_on_after_a_failed_backward():
    (net, fused), (same, plain) = pair(dtype=torch.float64)
    with pytest.raises(ValueError, match="no gradient"):
        net[3](FailingBackward.apply(net[:3](batch(0, torch.float64)))).sum().backward()
    assert not torch.equal(net[3].weight, same[3].weight)  # updated before the failure
    assert torch.equal(net[0].weight, same[0].weight)
    with torch.no_grad():
        same[3].load_state_dict(net[3].state_dict())
        fused.zero_grad()
        fused.step()
        fused.state.clear()
    for model, optimizer in ((net, fused), (same, plain)):
        loss_of(model, batch(1, torch.float64)).backward()
        optimizer.step()
    assert_same(net, same, 1e-10)


def test_parametrized_weights():
    class Double(nn.Module):
        def forward(self, w):
            return 2 * w

    (net, fused), (same, plain) = pair(dtype=torch.float64)
    for model in (net, same):
        parametrize.register_parametrization(model[0], "weight", Double())
    with pytest.warns(UserWarning, match="by another way"):
        train([(net, fused), (same, plain)], range(3))
    assert_same(net, same, 1e-10)


def test_amsgrad_of_a_loaded_state():
    (net, fused), (same, _) = pair(dtype=torch.float64)
    plain = torch.optim.AdamW(same.parameters(), lr=0.01, amsgrad=True)
    loss_of(same, batch(0, torch.float64)).backward()
    plain.step()
    net.load_state_dict(same.state_dict())
    fused.load_state_dict(copy.deepcopy(plain.state_dict()))
    with pytest.warns(UserWarning, match="amsgrad=True"):
        train([(net, fused), (same, plain)], [1])
    assert_same(net, same, 1e-10)


def test_parameters_with_gaps_in_memory():
    """Torch's fused update treats such parameters as dense."""
    layers = [LocalConv2d(1, 2, 2, input_size=3, dtype=torch.float64) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer in layers:
        layer.weight = nn.Parameter(torch.stack([layer.weight.detach()] * 2, -1)[..., 0])
        layer.bias = nn.Parameter(torch.stack([layer.bias.detach()] * 2, -1)[..., 0])
    runs = [(layers[0], FusedAdamW(layers[0])), (layers[1], torch.optim.AdamW(layers[1].parameters(), lr=1e-3))]
    x = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    for layer, optimizer in runs:
        layer(x).square().sum().backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
    assert_same(*layers, 1e-10)


def test_a_scaler_refuses_parameters_with_gaps_in_memory():
    layer = LocalConv2d(1, 2, 2, input_size=3)
    layer.weight = nn.Parameter(torch.stack([layer.weight.detach()] * 2, -1)[..., 0])
    scaler, optimizer = torch.amp.GradScaler("cpu"), FusedAdamW(layer)
    scaler.scale(layer(torch.ones(1, 1, 3, 3)).sum()).backward()
    before = layer.weight.detach().clone()
    with pytest.raises(OptimizerStepError, match=r"of shape \(2, 2, 2, 2, 1, 2\) .*make it contiguous"):
        scaler.step(optimizer)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_sparse_gradients_of_other_layers(l2):
    """Torch's SGD takes them, and its fused update does not."""
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(nn.Sequential(nn.Embedding(5, 4, sparse=True), LocalConv1d(2, 3, 2, input_size=4)).double())
    fused, plain = FusedSGD(nets[0], lr=0.1, l2=l2), torch.optim.SGD(nets[1].parameters(), lr=0.1)
    for i in range(2):
        for net, optimizer in zip(nets, (fused, plain), strict=True):
            optimizer.zero_grad()
            penalty = sum(p.square().sum() for p in net.parameters()) if optimizer is plain else 0
            if l2 and optimizer is plain:
                net[0].sparse = False  # torch adds no sparse gradient to that of a penalty
            (net(torch.tensor([[0, 1], [i, 3]])).square().sum() + l2 * penalty).backward()
            optimizer.step()
    assert nets[0][0].weight.grad.is_sparse
    assert nets[0][1].weight.grad is None
    assert_same(*nets, 1e-10)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(nets[0](torch.tensor([[0, 1]])).sum()).backward()
    with pytest.raises(OptimizerStepError, match=r"of shape \(5, 4\) is not updated: .* give its layer sparse=False"):
        scaler.step(FusedSGD(nets[0], lr=0.1))


def test_16_bit_weights_are_updated_by_torch():
    layer = LocalConv2d(1, 2, 2, input_size=3, dtype=torch.bfloat16)
    optimizer = FusedAdamW(layer)
    layer(torch.ones(1, 1, 3, 3, dtype=torch.bfloat16)).sum().backward()
    with pytest.warns(UserWarning, match=r"of weight and updates.*its dtype is bfloat16"):
        optimizer.step()


def under_a_dispatch_mode(layer, x):
    loss = layer(x).square().sum()
    with FlopCounterMode(display=False):
        loss.backward()


def beside_a_transposed_grad(layer, x):
    layer.weight.grad = torch.ones_like(layer.weight).mT.contiguous().mT
    layer(x).square().sum().backward()


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        (under_a_dispatch_mode, "a compiler, tracer or dispatch mode sees its backward"),
        (beside_a_transposed_grad, "its .grad is of another layout"),
    ],
)
def test_a_gradient_that_others_see_is_stored(way, reason):
    layers = [LocalConv2d(2, 3, 2, input_size=3, dtype=torch.float64) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    runs = [(layers[0], FusedAdamW(layers[0])), (layers[1], torch.optim.AdamW(layers[1].parameters(), lr=1e-3))]
    x = torch.rand(2, 2, 3, 3, dtype=torch.float64)
    for layer, optimizer in runs:
        way(layer, x)
        said = pytest.warns(UserWarning, match=f"of weight and updates.*{re.escape(reason)}")
        with said if isinstance(optimizer, FusedAdamW) else nullcontext():
            optimizer.step()
    torch.testing.assert_close(layers[0].weight.grad, layers[1].weight.grad, rtol=1e-12, atol=0)
    assert_same(*layers, 1e-10)


def test_distributed_data_parallel(tmp_path):
    """DistributedDataParallel sums `.grad`, so each gradient is stored."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        (net, fused), (same, plain) = pair(dtype=torch.float64)
        wrapped = nn.parallel.DistributedDataParallel(net)
        with pytest.warns(UserWarning, match="DistributedDataParallel averages"):
            train([(wrapped, fused), (same, plain)], range(2))
        assert all(w.grad is not None for w in weights(net))
        assert_same(net, same, 1e-10)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_deleted_optimizer_updates_nothing():
    layer = LocalConv2d(1, 2, 2, input_size=3)
    FusedAdamW(layer)
    gc.collect()
    layer(torch.ones(1, 1, 3, 3)).sum().backward()
    assert layer.weight.grad is not None
    assert lc_triton.core.fused.slot_of(layer.weight) is None
