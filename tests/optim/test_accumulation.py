"""`accumulate_gradients`: kernels add gradients to `.grad` or `main_grad`, and the sums are torch's."""

import gc
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import lc_triton
from lc_triton import FusedAdamW, LocalConv2d, accumulate_gradients
from lc_triton.core.fused import Update, slot_of
from lc_triton.errors import ArgumentTypeError
from tests.optim.backwards import (
    STORED,
    create_graph_of_weights,
    hooks_of_the_node,
    plainly,
    retained,
    used_twice,
    with_hooks_after,
    with_penalty,
)
from tests.optim.networks import batch, loss_of, network, weights

F64, BF16 = torch.float64, torch.bfloat16


@pytest.fixture
def added(monkeypatch):
    """The tensors that a backward added gradients to by itself."""
    found, before = [], Update.apply_block
    monkeypatch.setattr(Update, "apply_block", lambda self, *a: (found.append(self.weight), before(self, *a)))
    return found


def assert_same_grads(net, same, rtol=1e-12):
    for p, q in zip(net.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=rtol, atol=1e-14)


def with_main_grad(net, dtype=None, flagged=False):
    """Prepare a model as Megatron-LM does: each main_grad is a part of one buffer, and a hook adds `.grad` to it."""
    parameters = list(net.parameters())
    buffer = torch.zeros(sum(p.numel() for p in parameters), dtype=dtype or parameters[0].dtype)
    nodes = []
    for p, part in zip(parameters, buffer.split([p.numel() for p in parameters]), strict=True):
        p.main_grad = part.view(p.shape)
        if flagged:
            p.grad_added_to_main_grad = False

        def hook(*_, p=p):
            if flagged:
                assert p.grad is not None  # Megatron-LM needs `.grad` if it reduces gradients during backward
            if p.grad is not None and not getattr(p, "grad_added_to_main_grad", False):
                p.main_grad.add_(p.grad)
            p.grad = None

        nodes.append(torch.autograd.graph.get_gradient_edge(p).node)
        nodes[-1].register_hook(hook)
    return nodes


def test_later_backwards_add_to_the_existing_grad(added):
    """The first backward of a step stores `.grad`; the optimizer is torch's."""
    net, same = network(F64), network(F64)
    accumulate_gradients(net)
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01) for model in (net, same)]
    for step in range(3):
        for part in range(3):
            for model in (net, same):
                loss_of(model, batch(3 * step + part, F64)).backward()
            assert len(added) == (part > 0) * len(weights(net))
            assert all(any(w.grad is a for a in added) for w in weights(net) if part)
            added.clear()
        assert_same_grads(net, same)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=step != 1)
            added.clear()
        if step == 1:  # `.grad` is zeros, which backward adds to
            loss_of(net, batch(9, F64)).backward()
            loss_of(same, batch(9, F64)).backward()
            assert len(added) == len(weights(net))
            added.clear()
            for model in (net, same):
                model.zero_grad()
    for p, q in zip(net.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def run_backwards(run_backward, net, same):
    """Run plain backwards, and `run_backward` among them, on both networks."""
    accumulate_gradients(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step, kind in enumerate((plainly, plainly, run_backward, plainly, run_backward)):
            for model in (net, same):
                kind(model, batch(step, F64))


@pytest.mark.parametrize("run_backward", STORED, ids=lambda run_backward: run_backward.__name__)
def test_sums_are_torchs(run_backward):
    """No gradient is lost, and none is added twice."""
    net, same = network(F64), network(F64)
    run_backwards(run_backward, net, same)
    assert_same_grads(net, same)


# The others read `.grad`, which the hook of `with_main_grad` removes.
WITHOUT_GRAD_HOOKS = [
    run_backward
    for run_backward in STORED
    if run_backward not in (with_hooks_after, hooks_of_the_node, create_graph_of_weights)
]


@pytest.mark.slow
@pytest.mark.parametrize("run_backward", WITHOUT_GRAD_HOOKS, ids=lambda run_backward: run_backward.__name__)
@pytest.mark.parametrize("flagged", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_sums_in_main_grad_are_torchs(run_backward, flagged):
    net, same = network(F64), network(F64)
    nodes = with_main_grad(net, flagged=flagged)
    run_backwards(run_backward, net, same)
    assert nodes
    for p, q in zip(net.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(p.main_grad, q.grad, rtol=1e-12, atol=1e-14)
        assert p.grad is None


def test_products_are_added_without_a_stored_gradient(added):
    """Backward adds each product itself for two uses of a weight, a penalty, a retained graph and late hooks."""
    for run_backward, count in ((used_twice, 2), (with_penalty, 1), (retained, 2), (with_hooks_after, 1)):
        net = network(F64)
        accumulate_gradients(net)
        plainly(net, batch(0, F64))
        run_backward(net, batch(1, F64))
        assert len(added) == count * len(weights(net)), run_backward
        added.clear()


@pytest.mark.parametrize(
    ("dtype", "flagged"),
    [(BF16, True), (torch.float16, False), pytest.param(torch.float32, False, marks=pytest.mark.nightly)],
    ids=str,
)
def test_main_grad_in_float32_is_not_rounded(dtype, flagged, added):
    """Sums for weights of 16 bits are added in float32: 64 batches stay within its rounding error."""
    torch.manual_seed(0)
    layer = LocalConv2d(2, 4, 3, input_size=(5, 6), padding=1, dtype=dtype)
    exact = torch.zeros(layer.weight.shape, dtype=F64)
    layer.weight.main_grad = torch.zeros(layer.weight.shape)
    if flagged:
        layer.weight.grad_added_to_main_grad = False
    accumulate_gradients([layer.weight])
    double = LocalConv2d(2, 4, 3, input_size=(5, 6), padding=1, dtype=F64)
    for step in range(64):
        x = torch.randn(3, 2, 5, 6, generator=torch.Generator().manual_seed(step)).to(dtype)
        g = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(100 + step)).to(dtype)
        layer(x).backward(g)
        double.zero_grad()
        double(x.double()).backward(g.double())
        exact += double.weight.grad
        assert (layer.weight.grad is not None) == flagged
        if flagged:
            assert layer.weight.grad_added_to_main_grad
            layer.weight.grad = None
    assert len(added) == 64
    assert (layer.weight.main_grad - exact).abs().max() < 64 * 2**-24 * exact.abs().max()


def test_grad_is_zeros_if_zero_out_wgrad_is_set():
    layer = LocalConv2d(1, 2, 2, input_size=3)
    layer.weight.main_grad, layer.weight.zero_out_wgrad = torch.zeros_like(layer.weight), True
    layer.weight.grad_added_to_main_grad = False
    accumulate_gradients(layer)
    layer(torch.ones(1, 1, 3, 3)).sum().backward()
    assert layer.weight.grad.count_nonzero() == 0
    torch.testing.assert_close(layer.weight.main_grad, torch.ones_like(layer.weight))


def hooked(layer):
    layer.weight.register_hook(lambda g: 2 * g)


def overwritten(layer):
    layer.weight.main_grad, layer.weight.overwrite_main_grad = torch.zeros_like(layer.weight), True


def of_another_shape(layer):
    layer.weight.main_grad = torch.zeros(3)


def of_integers(layer):
    layer.weight.main_grad = torch.zeros(layer.weight.shape, dtype=torch.int32)


def transposed(layer):
    layer.weight.grad = torch.zeros_like(layer.weight).mT.contiguous().mT


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (hooked, "it has hooks"),
        (overwritten, "it has overwrite_main_grad"),
        (of_another_shape, "its main_grad is not a plain contiguous tensor of its shape"),
        (of_integers, "its main_grad is not of a floating-point dtype"),
        (transposed, "its .grad is of another layout"),
    ],
)
def test_the_reason_is_warned_of_once(prepare, reason, added):
    layer = LocalConv2d(2, 2, 2, input_size=3)
    prepare(layer)
    if hasattr(layer.weight, "main_grad"):
        layer.weight.grad_added_to_main_grad = True
    accumulate_gradients(layer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            layer(torch.ones(1, 2, 3, 3)).sum().backward()
    texts = [str(w.message) for w in caught if "accumulate_gradients" in str(w.message)]  # torch warns as well
    assert texts == [f"accumulate_gradients leaves the gradient of weight to autograd: {reason}"]
    assert not added
    assert layer.weight.grad is not None
    assert not getattr(layer.weight, "grad_added_to_main_grad", False)


@pytest.mark.slow
def test_adding_ends_with_the_handle_or_the_weight(added):
    layer = LocalConv2d(1, 2, 2, input_size=3)
    x = torch.ones(1, 1, 3, 3)
    layer(x).sum().backward()
    with accumulate_gradients(layer):
        layer(x).sum().backward()
        assert len(added) == 1
    layer(x).sum().backward()
    assert len(added) == 1
    torch.testing.assert_close(layer.weight.grad, torch.full_like(layer.weight, 3.0))
    accumulate_gradients(layer)  # its handle is not kept
    gc.collect()
    layer(x).sum().backward()
    assert len(added) == 2
    slots, key = lc_triton.core.fused.slots, id(layer.weight)
    del layer
    added.clear()
    gc.collect()
    assert key not in slots


@pytest.mark.slow
def test_fused_optimizers_keep_their_weights():
    """It may be made before or after `accumulate_gradients`."""
    net = network(F64)
    optimizer = FusedAdamW(net)
    accumulate_gradients(net)
    loss_of(net, batch(0, F64)).backward()
    assert all(w.grad is None for w in weights(net))
    optimizer.step()
    net = network(F64)
    handle = accumulate_gradients(net)
    for i in range(2):
        loss_of(net, batch(i, F64)).backward()
    net.zero_grad()
    optimizer = FusedAdamW(net)
    handle.remove()
    loss_of(net, batch(2, F64)).backward()
    assert all(w.grad is None for w in weights(net))
    optimizer.step()


def test_a_failed_backward_adds_nothing():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            return x + weight.sum()

        @staticmethod
        def backward(ctx, grad):
            raise ValueError("no gradient")

    net = nn.Sequential(LocalConv2d(1, 2, 2, input_size=3))
    weight, x = net[0].weight, torch.ones(1, 1, 3, 3)
    node = torch.autograd.graph.get_gradient_edge(weight).node  # DistributedDataParallel holds it as well
    accumulate_gradients(net)
    net(x).sum().backward()
    want = weight.grad.clone()
    with pytest.raises(ValueError, match="no gradient"):
        net(
            Fails.apply(x, weight)
        ).sum().backward()  # fails after the layer's backward, before the weight's gradient is complete
    torch.testing.assert_close(weight.grad, want)
    net(x).sum().backward()
    torch.testing.assert_close(weight.grad, 2 * want)
    assert node is torch.autograd.graph.get_gradient_edge(weight).node


def test_lazy_layers_and_autograd_grad(added):
    layer = lc_triton.LazyLocalConv2d(2, 2)
    accumulate_gradients(layer)
    x = torch.ones(1, 1, 3, 3)
    layer(x).sum().backward()
    layer(x).sum().backward()
    assert len(added) == 1
    (slope,) = torch.autograd.grad(layer(x).sum(), layer.weight)
    torch.testing.assert_close(layer.weight.grad, 2 * slope)
    assert len(added) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [("frozen", ""), ("dispatch mode", "a compiler, tracer or dispatch mode"), ("grad dropped by a hook", "")],
)
def test_what_changes_between_forward_and_backward(change, reason):
    """What autograd does without `accumulate_gradients` happens with it."""
    results = []
    for adds in (True, False):
        torch.manual_seed(0)
        layer, x = LocalConv2d(2, 2, 2, input_size=3, dtype=F64), torch.rand(2, 2, 3, 3, dtype=F64, requires_grad=True)
        if adds:
            accumulate_gradients(layer)
        layer(x).sum().backward()
        loss = layer(x).square().sum()
        if change == "frozen":
            layer.weight.requires_grad_(False)
        elif change == "grad dropped by a hook":
            x.register_hook(lambda _, layer=layer: setattr(layer.weight, "grad", None))
        mode = FlopCounterMode(display=False) if change == "dispatch mode" else nullcontext()
        with mode, pytest.warns(UserWarning, match=reason) if adds and reason else nullcontext():
            loss.backward()
        results.append(layer.weight.grad)
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)


@pytest.mark.parametrize("wrong", [3, "net", [1.0], torch.ones(2), {"a": torch.ones(2)}], ids=str)
def test_wrong_arguments(wrong):
    with pytest.raises(ArgumentTypeError, match="model_or_params must be a module, or an iterable of parameters"):
        accumulate_gradients(wrong)


@pytest.mark.parametrize("first_ends", [True, False])
def test_two_handles_of_a_weight_are_removed_independently(added, first_ends):
    layer = LocalConv2d(1, 2, 2, input_size=3)
    x = torch.ones(1, 1, 3, 3)
    handles = [accumulate_gradients(layer), accumulate_gradients(layer)]
    layer(x).sum().backward()
    one, other = handles if first_ends else reversed(handles)
    one.remove()
    one.remove()  # has no further effect
    layer(x).sum().backward()
    assert len(added) == 1
    other.remove()
    assert slot_of(layer.weight) is None
    layer(x).sum().backward()
    assert len(added) == 1
    torch.testing.assert_close(layer.weight.grad, torch.full_like(layer.weight, 3.0))
