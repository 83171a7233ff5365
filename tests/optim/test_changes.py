"""Changes of users between a forward, its backward and the step, against torch's optimizer."""

import gc
import warnings

import pytest
import torch
from torch import nn

from lc_triton import FusedAdamW, FusedSGD, LocalConv2d
from tests.optim.networks import PAIRS, assert_same, batch, loss_of, network, pair, train, weights


def frozen_before_backward(net, optimizer, x):
    loss = loss_of(net, x)
    net[0].weight.requires_grad_(False)
    loss.backward()
    optimizer.step()
    net[0].weight.requires_grad_()


def removed_from_groups(net, optimizer, x):
    group = optimizer.param_groups[0]
    group["params"] = [p for p in group["params"] if p is not net[0].weight]
    loss_of(net, x).backward()
    optimizer.step()
    net[0].weight.grad = None


def removed_before_step(net, optimizer, x):
    """Only with clip_norm: without it, backward makes the update."""
    loss_of(net, x).backward()
    removed = [net[0].weight, net[0].bias]
    group = optimizer.param_groups[0]
    group["params"] = [p for p in group["params"] if all(p is not t for t in removed)]
    optimizer.step()
    net.zero_grad()


def groups_replaced(net, optimizer, x):
    optimizer.param_groups = [{**group, "lr": 2 * group["lr"]} for group in optimizer.param_groups]
    loss_of(net, x).backward()
    optimizer.step()


def groups_reordered(net, optimizer, x):
    params = optimizer.param_groups[0]["params"]
    optimizer.param_groups[0]["params"] = params[3:]
    optimizer.param_groups.insert(0, {**optimizer.param_groups[0], "params": params[:3], "lr": 1e-3})
    loss_of(net, x).backward()
    optimizer.step()


CHANGES = frozen_before_backward, removed_from_groups, groups_replaced, groups_reordered


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "clip_norm"),
    [*((change, clip_norm) for change in CHANGES for clip_norm in (None, 1e9)), (removed_before_step, 1e9)],
)
def test_changes_take_effect_as_in_torch(change, clip_norm):
    (net, fused), (same, plain) = pair(dtype=torch.float64, clip_norm=clip_norm)
    for step in range(3):
        for model, optimizer in ((net, fused), (same, plain)):
            optimizer.zero_grad()
            change(model, optimizer, batch(step, torch.float64))
    assert_same(net, same, 1e-10)


@pytest.mark.parametrize(("kind", "clip_norm"), [("adamw", None), ("adamw", 1e9), ("sgd, momentum", None)])
def test_zero_gradients_update_layers_without_a_forward(kind, clip_norm):
    """Zero gradients decay weights and continue the momentum, as in torch."""
    (net, fused), (same, plain) = pair(kind, torch.float64, clip_norm=clip_norm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(4):
            for model, optimizer in ((net, fused), (same, plain)):
                optimizer.zero_grad(set_to_none=step == 3)
                out = model(batch(step, torch.float64)) if step in (0, 2) else model[0](batch(step, torch.float64))
                out.square().mean().backward()
                optimizer.step()
    assert_same(net, same, 1e-10)


@pytest.mark.slow
def test_two_optimizers_of_a_weight_take_turns():
    """Training may continue with SGD after AdamW, or alternate."""
    net, same = network(torch.float64), network(torch.float64)
    kinds = [PAIRS["adamw"], PAIRS["sgd"]]
    ours = [ours(net, **arguments) for ours, _, arguments in kinds]
    theirs = [theirs(same.parameters(), **arguments) for _, theirs, arguments in kinds]
    messages = []
    for step, index in enumerate((0, 0, 1, 0, 1, 1)):
        for model, optimizer in ((net, ours[index]), (same, theirs[index])):
            optimizer.zero_grad()
            loss_of(model, batch(step, torch.float64)).backward()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                optimizer.step()
            messages += [str(w.message) for w in caught if "Fused" in str(w.message)]
    assert_same(net, same, 1e-10)
    assert [text.split()[0] for text in messages] == ["FusedAdamW", "FusedSGD"]
    assert all("another optimizer of this library updates it as well" in text for text in messages)
    ours.pop()
    del optimizer
    gc.collect()
    ours[0].zero_grad()
    ours[0].step()
    loss_of(net, batch(9, torch.float64)).backward()
    assert all(w.grad is None for w in weights(net))  # the remaining optimizer is fused again


@pytest.mark.slow
def test_a_second_optimizer_is_the_reason_in_the_warning():
    """The warning does not name the hooks that the first optimizer registered."""
    net = network(torch.float64)
    first = FusedAdamW(net)
    train([(net, first)], range(1))
    second = FusedSGD(net, lr=0.1)
    loss_of(net, batch(1, torch.float64)).backward()
    with pytest.warns(UserWarning, match="another optimizer of this library updates it as well") as caught:
        second.step()
    assert not any("hooks" in str(w.message) for w in caught)


@pytest.mark.slow
@pytest.mark.parametrize("with_scheduler", [False, True])
def test_a_new_optimizer_of_the_same_weight_is_fused(with_scheduler):
    """A graph may keep the hooked node of the previous optimizer, and a scheduler the optimizer itself."""
    layer = LocalConv2d(1, 2, 2, input_size=3)
    x = torch.ones(1, 1, 3, 3)
    for _ in range(2):
        optimizer = FusedAdamW(layer)
        if with_scheduler:
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        layer(x).sum().backward()
        assert layer.weight.grad is None
        optimizer.step()
        if with_scheduler:
            scheduler.step()
        graph = layer(x)
        del optimizer
    assert graph.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [None, 1e9])
def test_parameters_whose_contents_torch_swaps(clip_norm):
    """Torch swaps DTensors in `module.to`, and all parameters in conversions and loads if this option is set."""
    (net, fused), (same, plain) = pair(dtype=torch.float64, clip_norm=clip_norm)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for model, _ in ((net, fused), (same, plain)):
            model.float().double()
        for step in range(3):
            for model, optimizer in ((net, fused), (same, plain)):
                optimizer.zero_grad()
                loss_of(model, batch(step, torch.float64)).backward()
                assert model is same or all(w.grad is None for w in weights(net))
                optimizer.step()
                optimizer.zero_grad()
                model.load_state_dict({name: 0.9 * value for name, value in model.state_dict().items()})
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert_same(net, same, 1e-10)


def test_weights_in_the_same_memory():
    """Weights tied by `.data`: an update of one would change the other before its backward."""
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        layers = [LocalConv2d(2, 2, 3, input_size=4, padding=1, dtype=torch.float64) for _ in range(2)]
        layers[0].weight.data = layers[1].weight.data
        nets.append(nn.Sequential(layers[0], nn.Tanh(), layers[1]))
    runs = [(nets[0], FusedSGD(nets[0], lr=0.1)), (nets[1], torch.optim.SGD(nets[1].parameters(), lr=0.1))]
    messages = []
    for step in range(2):
        for net, optimizer in runs:
            optimizer.zero_grad()
            net(batch(step, torch.float64)[..., :4, :4]).square().mean().backward()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                optimizer.step()
            messages += [str(w.message) for w in caught]
    assert_same(*nets, 1e-10)
    assert len(messages) == 1
    assert "of 0.weight, 2.weight and updates by it in step(): another parameter lies in the same memory" in messages[0]


@pytest.mark.parametrize("moved", [False, True], ids=["in one tensor", "moved since"])
@pytest.mark.parametrize("clip_norm", [None, 1e9])
def test_weights_that_are_views_of_one_tensor(moved, clip_norm):
    """Autograd counts changes of all views together: an update of one weight would stop the backward of the others."""
    net, same = network(), network()
    flat, begin = torch.cat([p.detach().flatten() for p in net.parameters()]), 0
    for module in net:
        for name, p in list(module.named_parameters()):
            setattr(module, name, nn.Parameter(flat[begin : begin + p.numel()].view(p.shape)))
            begin += p.numel()
    if moved:
        net.half().float()  # each has memory of its own, and the count is still one
        same.half().float()
    loss, versions = loss_of(net, batch(9)), [p._version for p in net.parameters()]
    fused, plain = FusedAdamW(net, lr=1e-2, clip_norm=clip_norm), torch.optim.AdamW(same.parameters(), lr=1e-2)
    assert versions == [p._version for p in net.parameters()]
    loss.backward()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train([(net, fused), (same, plain)], range(2), torch.float32)
    assert_same(net, same, 1e-5)
    said = [str(w.message) for w in caught]
    assert len(said) == (1 if clip_norm is None else 0)
    assert all("of 0.weight, 1.weight, 2.weight, 3.weight and updates by it in step(): it and" in text for text in said)


@pytest.mark.parametrize("clip_norm", [None, 1e9])
def test_gradients_of_an_input_in_evaluation(clip_norm):
    """An attack or a saliency map changes no weight, and does not contribute to the next step."""
    (net, fused), (same, plain) = pair(dtype=torch.float64, clip_norm=clip_norm)
    slopes = []
    for step in range(3):
        for model, optimizer in ((net, fused), (same, plain)):
            before = [p.detach().clone() for p in model.parameters()]
            x = batch(step, torch.float64).requires_grad_()
            loss_of(model.eval(), x).backward()
            slopes.append(x.grad)
            assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
            optimizer.zero_grad()
            loss_of(model.train(), batch(step + 10, torch.float64)).backward()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                optimizer.step()
    torch.testing.assert_close(slopes[::2], slopes[1::2])
    assert_same(net, same, 1e-10)
    fused.zero_grad()
    loss_of(net, batch(9, torch.float64)).backward()
    assert all(w.grad is None for w in weights(net))  # backward updates the weights again


def test_training_in_evaluation_mode_is_torchs():
    (net, fused), (same, plain) = pair(dtype=torch.float64)
    net.eval()
    with pytest.warns(UserWarning, match=r"of 0\.weight, .* ran in evaluation mode since the last step"):
        train([(net, fused), (same, plain)], range(3))
    assert_same(net, same, 1e-10)


@pytest.mark.parametrize("clip_norm", [None, 1e9])
def test_zero_grad_restarts_accumulation(clip_norm):
    """A user discards a bad micro-batch like this."""
    (net, fused), (same, plain) = pair(dtype=torch.float64, accumulate=2, clip_norm=clip_norm)
    for model, optimizer in ((net, fused), (same, plain)):
        for step in range(3):
            loss_of(model, batch(step, torch.float64)).backward()
            if step == 0:
                optimizer.zero_grad()
        optimizer.step()
    assert_same(net, same, 1e-10)
