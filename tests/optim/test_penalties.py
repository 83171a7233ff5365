"""Penalties and bounds in the fused optimizers, against torch's optimizers with the penalty in the loss."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import lc_triton
from lc_triton import FusedAdamW, FusedSGD, LocalConv2d, LocallyConnected2D
from lc_triton.core.fused import Update
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, NotBuiltError
from tests.optim.backwards import checkpointed, hooked, plainly, used_twice
from tests.optim.networks import PAIRS, assert_same, batch, loss_of, network, pair, weights

F64 = torch.float64
L1, L2 = 0.01, 0.02


def penalty_of(net, l1=L1, l2=L2):
    """The penalty of all parameters, for autograd."""
    return sum(l1 * p.abs().sum() + l2 * p.square().sum() for p in net.parameters())


def backward_with_penalty(net, x, optimizer, scale=1.0):
    """Run a backward of the loss and the penalty, which is subtracted if the loss is maximized."""
    sign = -1 if optimizer.param_groups[0]["maximize"] else 1
    (scale * (loss_of(net, x) + sign * penalty_of(net))).backward()


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_steps_equal_those_of_a_penalty_in_the_loss(kind, clip_norm):
    (net, fused), (same, plain) = pair(kind, F64, l1=L1, l2=L2, clip_norm=clip_norm)
    for step in range(5):
        for optimizer in (fused, plain):
            optimizer.zero_grad()
        loss_of(net, batch(step, F64)).backward()
        assert all(w.grad is None for w in weights(net))
        backward_with_penalty(same, batch(step, F64), plain)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(same.parameters(), clip_norm)
        for optimizer in (fused, plain):
            optimizer.step()
    assert_same(net, same, 1e-10)


@pytest.mark.parametrize(
    "run_backward", [hooked, used_twice, checkpointed], ids=lambda run_backward: run_backward.__name__
)
@pytest.mark.parametrize("clip_norm", [pytest.param(None, marks=pytest.mark.nightly), 1e9])
def test_stored_gradients(run_backward, clip_norm):
    """step() adds the penalty to stored gradients and does not change `.grad`."""
    (net, fused), (same, plain) = pair(dtype=F64, l1=L1, l2=L2, clip_norm=clip_norm)
    for step, kind in enumerate((plainly, run_backward, plainly, run_backward)):
        for optimizer in (fused, plain):
            optimizer.zero_grad()
        kind(net, batch(step, F64))
        kind(same, batch(step, F64))
        penalty_of(same).backward()
        before = [(p, p.grad.clone()) for p in net.parameters() if p.grad is not None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fused.step()
        plain.step()
        assert all(torch.equal(p.grad, grad) for p, grad in before)
    assert_same(net, same, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{}, {"master": "24 bits", "states": "8 bits"}, "sgd"], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_16_bits(kind, dtype):
    """The gradient of the penalty is added in float32 to the stored one, and the sum is rounded."""
    layers = [LocalConv2d(2, 3, 3, input_size=(7, 7)).to(dtype) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    cls, options = (FusedSGD, {}) if kind == "sgd" else (FusedAdamW, kind)
    penalised, plain = cls(layers[0], 0.01, l1=L1, l2=L2, **options), cls(layers[1], 0.01, **options)
    for layer, optimizer in zip(layers, (penalised, plain), strict=True):
        with optimizer.paused():
            layer(batch(0).to(dtype)).float().square().mean().backward()
    for p in layers[1].parameters():
        p.grad = (p.grad.float() + L1 * p.detach().float().sign() + 2 * L2 * p.detach().float()).to(dtype)
    before = [p.grad.clone() for p in layers[0].parameters()]
    for optimizer in (penalised, plain):
        with optimizer.paused():
            optimizer.step()
    for p, same, grad in zip(layers[0].parameters(), layers[1].parameters(), before, strict=True):
        assert torch.equal(p, same)
        assert torch.equal(p.grad, grad)


def test_several_backwards_of_a_step_have_one_penalty():
    (net, fused), (same, plain) = pair("sgd, momentum", F64, l2=L2, accumulate=3)
    for step in range(2):
        for part in range(3):
            for model in (net, same):
                loss_of(model, batch(3 * step + part, F64)).backward()
        penalty_of(same, 0.0).backward()
        for optimizer in (fused, plain):
            optimizer.step()
            optimizer.zero_grad()
    with fused.paused():
        loss_of(net, batch(9, F64)).backward()
    (loss_of(same, batch(9, F64)) + penalty_of(same, 0.0)).backward()
    for optimizer in (fused, plain):
        optimizer.step()
    assert_same(net, same, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("states", ["float32", "bfloat16"])
def test_a_grad_scaler_and_small_states(states):
    """A step with an infinite gradient changes no bit and applies no bound."""
    net = network()
    same = copy.deepcopy(net)
    options = {"lr": 0.01, "weight_decay": 0.1, "states": states}
    fused, plain = FusedAdamW(net, l1=L1, l2=L2, non_neg=True, **options), FusedAdamW(same, **options)
    scalers = [torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2) for _ in range(2)]
    for step in range(4):
        factor = float("inf") if step == 1 else 1.0
        before = copy.deepcopy(list(net.parameters()))
        for model, optimizer, scaler in zip((net, same), (fused, plain), scalers, strict=True):
            optimizer.zero_grad()
            penalty = penalty_of(model) if model is same else 0.0
            scaler.scale(factor * (loss_of(model, batch(step)) + penalty)).backward()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # plain stores gradients, because the penalty uses the weights
                scaler.step(optimizer)
            scaler.update()
        if step != 1:
            with torch.no_grad():
                for p in same.parameters():
                    p.clamp_(min=0)
            assert all((p >= 0).all() for p in net.parameters())
        assert all(torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True)) == (step == 1)
    assert_same(net, same, 1e-5 if states == "float32" else 1e-2)


@pytest.mark.parametrize("clip_norm", [None, 1e9])
def test_non_negative_groups(clip_norm):
    """The update projects weights, step() those without a gradient; frozen weights stay."""
    net = network(F64)
    same = copy.deepcopy(net)
    runs = []
    for model, cls, bound in ((net, FusedSGD, {"non_neg": True}), (same, torch.optim.SGD, {})):
        model[1].requires_grad_(False)
        groups = [{"params": list(model[:4].parameters()), **bound}, {"params": list(model[5].parameters())}]
        options = {"clip_norm": clip_norm} if model is net else {}
        runs.append((model, cls(groups, lr=0.1, momentum=0.9, **options)))
    for step in range(3):
        for model, optimizer in runs:
            optimizer.zero_grad()
            model[:3](batch(step, F64)).square().sum().backward()
            if model is net and clip_norm is None:
                assert all((w >= 0).all() for w in (model[0].weight, model[2].weight))  # before step()
            optimizer.step()
        with torch.no_grad():
            for p in same[:4].parameters():
                if p.requires_grad:
                    p.clamp_(min=0)
    assert (net[1].weight < 0).any()
    assert (net[5].weight < 0).any()
    assert (net[3].weight >= 0).all()
    assert_same(net, same, 1e-10)


def test_a_large_layer_in_blocks(monkeypatch):
    monkeypatch.setattr("lc_triton._cpu.blocks.BLOCK_BYTES", 4096)
    layers = [LocalConv2d(3, 5, 3, input_size=(9, 8), padding=1, dtype=F64) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    runs = [
        (layers[0], FusedAdamW(layers[0], lr=0.01, l1=L1, l2=L2, non_neg=True, clip_norm=0.1)),
        (layers[1], torch.optim.AdamW(layers[1].parameters(), lr=0.01)),
    ]
    blocks, before = [], Update.apply_block
    monkeypatch.setattr(Update, "apply_block", lambda self, *a: (blocks.append(a[0]), before(self, *a)))
    for step in range(3):
        x = torch.randn(6, 3, 9, 8, dtype=F64, generator=torch.Generator().manual_seed(step))
        for layer, optimizer in runs:
            optimizer.zero_grad()
            loss = layer(x).square().mean()
            (loss + penalty_of(layer) if layer is layers[1] else loss).backward()
            if layer is layers[1]:
                nn.utils.clip_grad_norm_(layer.parameters(), 0.1)
            optimizer.step()
        with torch.no_grad():
            for p in layers[1].parameters():
                p.clamp_(min=0)
    assert len(blocks) > 3
    assert_same(*layers, 1e-10)


def test_options_are_kept_in_groups_states_and_copies():
    """State dicts, copies and pickles have the options; loading a state of torch's optimizer does not change them."""
    (net, fused), (same, plain) = pair(l1=L1)
    fused.add_param_group({"params": [nn.Parameter(torch.ones(2))], "l2": L2, "non_neg": True})
    saved = fused.state_dict()
    options = [{name: group[name] for name in ("l1", "l2", "non_neg")} for group in saved["param_groups"]]
    assert options == [{"l1": L1, "l2": 0.0, "non_neg": False}, {"l1": L1, "l2": L2, "non_neg": True}]
    for _, copied in (pickle.loads(pickle.dumps((net, fused))), copy.deepcopy((net, fused))):
        assert copied.state_dict()["param_groups"] == saved["param_groups"]
        copied.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
        assert copied.param_groups[2]["l1"] == L1
    other = FusedAdamW([{"params": same.parameters()}, {"params": [nn.Parameter(torch.ones(2))]}])
    other.load_state_dict(saved)
    assert other.param_groups[1]["l2"] == L2
    loss_of(same, batch(0)).backward()
    plain.step()
    loaded = FusedAdamW(net, l1=L1, l2=L2)
    loaded.load_state_dict(plain.state_dict())
    assert (loaded.param_groups[0]["l1"], loaded.param_groups[0]["l2"]) == (L1, L2)
    plain.load_state_dict(loaded.state_dict())  # torch's optimizer ignores the options


@pytest.mark.parametrize("cls", [FusedAdamW, FusedSGD])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l1": -0.1}, "l1 must be a finite number >= 0, got -0.1"),
        ({"l2": float("nan")}, "l2 must be a finite number >= 0, got nan"),
        ({"l2": "0"}, "l2 must be a finite number >= 0, got '0'"),
        ({"non_neg": 1}, "non_neg must be True or False, got 1"),
    ],
)
def test_wrong_options(cls, options, message):
    layer = LocalConv2d(1, 1, 2, input_size=3)
    for arguments in ((layer, options), ([{"params": layer.parameters(), **options}], {})):
        with pytest.raises(lc_triton.LocalConvError, match=message) as caught:
            cls(arguments[0], **arguments[1])
        assert "the arguments of" not in str(caught.value)


def keras_model():
    """A model in which an optimizer handles some penalties and constraints, but not all."""
    torch.manual_seed(0)
    common = {"kernel_initializer": {"class_name": "RandomNormal", "config": {"stddev": 0.3, "seed": 1}}}
    return nn.Sequential(
        LocallyConnected2D(3, 2, input_shape=(6, 6, 2), kernel_regularizer="l1_l2", bias_regularizer="l2", **common),
        LocallyConnected2D(4, 2, input_shape=(5, 5, 3), kernel_constraint="non_neg", kernel_regularizer="l2", **common),
        LocallyConnected2D(4, 2, padding="same", input_shape=(4, 4, 4), kernel_regularizer="l2", **common),
        LocallyConnected2D(2, 2, input_shape=(4, 4, 4), kernel_constraint="max_norm", bias_constraint="non_neg"),
    ).double()


@pytest.mark.filterwarnings("error:FusedAdamW stores the gradient of [^2]")
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_keras_models(clip_norm):
    net = keras_model()
    same = copy.deepcopy(net)
    fused = FusedAdamW(lc_triton.penalty_groups(net), lr=0.05, clip_norm=clip_norm)
    plain = torch.optim.AdamW(same.parameters(), lr=0.05)
    for model, optimizer in ((net, fused), (same, plain)):
        lc_triton.attach_constraints(model, optimizer)
    for step in range(4):
        x = torch.randn(3, 6, 6, 2, dtype=F64, generator=torch.Generator().manual_seed(step))
        losses = []
        for model, optimizer in ((net, fused), (same, plain)):
            optimizer.zero_grad()
            penalty = lc_triton.regularization_loss(model, fused if model is net else None)
            losses.append(penalty)
            (model(x).square().mean() + penalty).backward()
            if model is same and clip_norm is not None:
                nn.utils.clip_grad_norm_(same.parameters(), clip_norm)
            with warnings.catch_warnings():
                if model is net:
                    warnings.filterwarnings("ignore", "FusedAdamW stores the gradient of 2.weight")
                optimizer.step()
        torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
        assert [layer.weight.grad is None for layer in net] == [True, True, False, True]
    assert (net[1].weight >= 0).all()
    assert (net[1].weight == 0).any()
    assert_same(net, same, 1e-10)


def test_penalty_groups_of_a_model():
    net = keras_model()
    groups = lc_triton.penalty_groups(net)
    options = [{name: group.get(name) for name in ("l1", "l2", "non_neg")} for group in groups]
    assert options == [
        {"l1": None, "l2": None, "non_neg": None},
        {"l1": 0.01, "l2": 0.01, "non_neg": None},
        {"l1": 0.0, "l2": 0.01, "non_neg": True},
    ]
    assert [[name for name, _ in group["params"]] for group in groups[1:]] == [["0.weight"], ["1.weight"]]
    assert len(groups[0]["params"]) == 6
    net[1].weight = net[1].weight
    tied = copy.deepcopy(net[1])
    tied.weight = net[1].weight  # a kernel of two layers stays with regularization_loss
    assert len(lc_triton.penalty_groups(nn.ModuleList([net, tied]))) == 2
    unbuilt = LocallyConnected2D(3, 2, kernel_regularizer="l2")
    with pytest.raises(NotBuiltError, match="build"):
        lc_triton.penalty_groups(unbuilt)
    assert lc_triton.penalty_groups(nn.Identity()) == []


def test_a_constraint_that_the_optimizer_applies_is_not_applied_again(monkeypatch):
    layer = LocallyConnected2D(2, 2, input_shape=(3, 3, 1), kernel_constraint="non_neg", bias_constraint="non_neg")
    projected = []
    monkeypatch.setattr(type(layer), "_project_", lambda self, name: projected.append(name) or True)
    optimizer = FusedAdamW(lc_triton.penalty_groups(layer))
    lc_triton.attach_constraints(layer, optimizer)
    layer(torch.ones(1, 3, 3, 1)).sum().backward()
    optimizer.step()
    assert projected == ["bias"]
    lc_triton.apply_constraints(layer)
    assert projected == ["bias", "weight", "bias"]


def test_penalties_that_are_counted_twice_are_reported():
    layer = LocallyConnected2D(2, 2, input_shape=(3, 3, 1), kernel_regularizer="l2")
    plain = torch.optim.AdamW(lc_triton.penalty_groups(layer))
    with pytest.raises(ArgumentTypeError, match="optimizer must be a FusedAdamW, a FusedSGD or None"):
        lc_triton.regularization_loss(layer, plain)
    optimizer = FusedAdamW(lc_triton.penalty_groups(layer))
    (layer(torch.ones(1, 3, 3, 1)).sum() + lc_triton.regularization_loss(layer)).backward()
    with pytest.warns(UserWarning, match=r"beside the l1 and l2 of its group: regularization_loss\(model, optimizer\)"):
        optimizer.step()
    optimizer.param_groups[-1]["l2"] = 0.5
    with pytest.raises(ArgumentValueError, match=r"l1 and l2 of the optimizer's group must be \(0.0, 0.01\)"):
        lc_triton.regularization_loss(layer, optimizer)
