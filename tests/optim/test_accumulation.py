"""Gradients that backward adds to `.grad` or `main_grad` where they are made, for any optimizer: torch's sums."""

import gc
import warnings

import pytest
import torch
from torch import nn

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
    """The tensors that gradients were added to where they were made."""
    found, before = [], Update.apply_block
    monkeypatch.setattr(Update, "apply_block", lambda self, *a: (found.append(self.weight), before(self, *a)))
    return found


def assert_same_grads(net, same, rtol=1e-12):
    for p, q in zip(net.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=rtol, atol=1e-14)


def with_main_grad(net, dtype=None, flagged=False):
    """As Megatron-LM's wrapper prepares a model: parts of one buffer, and a hook that adds `.grad` to them."""
    of = list(net.parameters())
    buffer = torch.zeros(sum(p.numel() for p in of), dtype=dtype or of[0].dtype)
    nodes = []
    for p, part in zip(of, buffer.split([p.numel() for p in of]), strict=True):
        p.main_grad = part.view(p.shape)
        if flagged:
            p.grad_added_to_main_grad = False

        def hook(*_, p=p):
            if flagged:
                assert p.grad is not None  # as it must be where gradients are reduced meanwhile
            if p.grad is not None and not getattr(p, "grad_added_to_main_grad", False):
                p.main_grad.add_(p.grad)
            p.grad = None

        nodes.append(torch.autograd.graph.get_gradient_edge(p).node)
        nodes[-1].register_hook(hook)
    return nodes


def test_backwards_add_to_the_grad_that_is_there(added):
    """From the second one on; with torch's optimizer, whose steps are those of a plain run."""
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
        if step == 1:  # zeros are there to be added to
            loss_of(net, batch(9, F64)).backward()
            loss_of(same, batch(9, F64)).backward()
            assert len(added) == len(weights(net))
            added.clear()
            for model in (net, same):
                model.zero_grad()
    for p, q in zip(net.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def sums(way, net, same):
    """Gradients of plain backwards, and of some of that kind among them."""
    accumulate_gradients(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step, kind in enumerate((plainly, plainly, way, plainly, way)):
            for model in (net, same):
                kind(model, batch(step, F64))


@pytest.mark.parametrize("way", STORED, ids=lambda way: way.__name__)
def test_the_sums_are_torchs_in_every_case(way):
    """Nothing is lost and nothing is added twice."""
    net, same = network(F64), network(F64)
    sums(way, net, same)
    assert_same_grads(net, same)


# Without those that look for `.grad`, which the wrapper's hook has taken away.
OF_MAIN_GRAD = [way for way in STORED if way not in (with_hooks_after, hooks_of_the_node, create_graph_of_weights)]


@pytest.mark.slow
@pytest.mark.parametrize("way", OF_MAIN_GRAD, ids=lambda way: way.__name__)
@pytest.mark.parametrize("flagged", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_the_sums_in_main_grad_are_torchs_in_every_case(way, flagged):
    net, same = network(F64), network(F64)
    nodes = with_main_grad(net, flagged=flagged)
    sums(way, net, same)
    assert nodes
    for p, q in zip(net.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(p.main_grad, q.grad, rtol=1e-12, atol=1e-14)
        assert p.grad is None


def test_what_needs_no_gradient_stored_has_none(added):
    """Two uses of a weight, a penalty and a retained graph: all products are added."""
    for way, count in ((used_twice, 2), (with_penalty, 1), (retained, 2), (with_hooks_after, 1)):
        net = network(F64)
        accumulate_gradients(net)
        plainly(net, batch(0, F64))
        way(net, batch(1, F64))
        assert len(added) == count * len(weights(net)), way
        added.clear()


@pytest.mark.parametrize(
    ("dtype", "flagged"),
    [(BF16, True), (torch.float16, False), pytest.param(torch.float32, False, marks=pytest.mark.nightly)],
    ids=str,
)
def test_main_grad_in_float32_has_the_accumulators_bits(dtype, flagged, added):
    """Beside weights of 16 bits the sums are not rounded before they are added: 64 batches within float32's error."""
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


def test_a_dummy_of_zeros_where_it_is_asked_for():
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
    ("prepare", "said"),
    [
        (hooked, "it has hooks"),
        (overwritten, "it has overwrite_main_grad"),
        (of_another_shape, "its main_grad is not a plain contiguous tensor of its shape"),
        (of_integers, "its main_grad is not of a floating-point dtype"),
        (transposed, "its .grad is of another layout"),
    ],
)
def test_the_reason_is_said_once(prepare, said, added):
    layer = LocalConv2d(2, 2, 2, input_size=3)
    prepare(layer)
    if hasattr(layer.weight, "main_grad"):
        layer.weight.grad_added_to_main_grad = True
    accumulate_gradients(layer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            layer(torch.ones(1, 2, 3, 3)).sum().backward()
    texts = [str(w.message) for w in caught if "accumulate_gradients" in str(w.message)]  # torch has one of its own
    assert texts == [f"accumulate_gradients leaves the gradient of weight to autograd: {said}"]
    assert not added
    assert layer.weight.grad is not None
    assert not getattr(layer.weight, "grad_added_to_main_grad", False)


@pytest.mark.slow
def test_it_ends_with_its_handle_and_with_the_weight(added):
    layer = LocalConv2d(1, 2, 2, input_size=3)
    x = torch.ones(1, 1, 3, 3)
    layer(x).sum().backward()
    with accumulate_gradients(layer):
        layer(x).sum().backward()
        assert len(added) == 1
    layer(x).sum().backward()
    assert len(added) == 1
    torch.testing.assert_close(layer.weight.grad, torch.full_like(layer.weight, 3.0))
    accumulate_gradients(layer)  # whose handle is not kept
    gc.collect()
    layer(x).sum().backward()
    assert len(added) == 2
    known, key = lc_triton.core.fused.slots, id(layer.weight)
    del layer
    added.clear()
    gc.collect()
    assert key not in known


@pytest.mark.slow
def test_fused_optimizers_keep_their_weights():
    """Those that are there, and those that come later."""
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


def test_a_backward_that_fails_adds_nothing_to_the_next():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            return x + weight.sum()

        @staticmethod
        def backward(ctx, grad):
            raise ValueError("no gradient")

    net = nn.Sequential(LocalConv2d(1, 2, 2, input_size=3))
    weight, x = net[0].weight, torch.ones(1, 1, 3, 3)
    node = torch.autograd.graph.get_gradient_edge(weight).node  # as DistributedDataParallel holds it
    accumulate_gradients(net)
    net(x).sum().backward()
    want = weight.grad.clone()
    with pytest.raises(ValueError, match="no gradient"):
        net(Fails.apply(x, weight)).sum().backward()  # the layer's backward is over, the weight's gradient not
    torch.testing.assert_close(weight.grad, want)
    net(x).sum().backward()
    torch.testing.assert_close(weight.grad, 2 * want)
    assert node is torch.autograd.graph.get_gradient_edge(weight).node


def test_lazy_layers_and_an_asked_for_gradient(added):
    layer = lc_triton.LazyLocalConv2d(2, 2)
    accumulate_gradients(layer)
    x = torch.ones(1, 1, 3, 3)
    layer(x).sum().backward()
    layer(x).sum().backward()
    assert len(added) == 1
    (slope,) = torch.autograd.grad(layer(x).sum(), layer.weight)
    torch.testing.assert_close(layer.weight.grad, 2 * slope)
    assert len(added) == 1


@pytest.mark.parametrize("wrong", [3, "net", [1.0], torch.ones(2), {"a": torch.ones(2)}], ids=str)
def test_wrong_arguments(wrong):
    with pytest.raises(ArgumentTypeError, match="model_or_params must be a module, or an iterable of parameters"):
        accumulate_gradients(wrong)


@pytest.mark.parametrize("first_ends", [True, False])
def test_two_handles_of_a_weight_end_one_by_one(added, first_ends):
    layer = LocalConv2d(1, 2, 2, input_size=3)
    x = torch.ones(1, 1, 3, 3)
    handles = [accumulate_gradients(layer), accumulate_gradients(layer)]
    layer(x).sum().backward()
    one, other = handles if first_ends else reversed(handles)
    one.remove()
    one.remove()  # changes nothing more
    layer(x).sum().backward()
    assert len(added) == 1
    other.remove()
    assert slot_of(layer.weight) is None
    layer(x).sum().backward()
    assert len(added) == 1
    torch.testing.assert_close(layer.weight.grad, torch.full_like(layer.weight, 3.0))
