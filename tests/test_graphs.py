"""Layers under autograd: checkpoints, saved-tensor hooks, outputs, and the same bits on every dispatch path."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import lc_triton
from lc_triton.errors import LocalConvError
from tests.cpu_strategies import CpuStrategy
from tests.pairwise import pairwise

ACTIVATIONS = [None, "relu", "silu"]  # their derivatives need nothing, the output, and the pre-activation


@pytest.fixture(autouse=True, params=[CpuStrategy(), CpuStrategy(block_bytes=500)], ids=["one block", "in blocks"])
def cpu_strategy(request):
    with request.param.applied():
        yield


def layer(transposed, activation, **arguments):
    kind = lc_triton.LocalConvTranspose2d if transposed else lc_triton.LocalConv2d
    return kind(2, 4, 3, input_size=6, activation=activation, **arguments)


def sample():
    return torch.randn(3, 2, 6, 6, requires_grad=True)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("calls_before", [0, 1, 2])
def test_a_checkpoint_is_recomputed_without_the_mode_of_its_forward(transposed, activation, calls_before):
    """Checkpointing compares what both calls save; a dispatch mode is active in the first call only."""
    one, x = layer(transposed, activation), sample()
    for _ in range(calls_before):
        one(x)
    want = torch.autograd.grad(one(x).square().sum(), [x, *one.parameters()])
    with FlopCounterMode(display=False):
        y = checkpoint(one, x, use_reentrant=False)
    one(x)
    for a, b in zip(torch.autograd.grad(y.square().sum(), [x, *one.parameters()]), want, strict=True):
        torch.testing.assert_close(a, b)


def test_a_checkpoint_of_a_weight_with_other_strides_than_a_cached_call():
    x, weight = sample(), torch.randn(3, 3, 2, 4, 4, 4).permute(5, 4, 0, 1, 2, 3).requires_grad_()
    y = checkpoint(lc_triton.local_conv, x, weight, use_reentrant=False)
    for _ in range(2):
        lc_triton.local_conv(x, weight.detach().contiguous())
    assert torch.autograd.grad(y.sum(), weight)[0].shape == weight.shape


def test_a_hook_that_raises_is_called_once():
    x, one = sample(), layer(False, None)
    one(x)
    packed = []

    def refuse(tensor):
        packed.append(tensor)
        raise RuntimeError("not this one")

    with torch.autograd.graph.saved_tensors_hooks(refuse, lambda v: v), pytest.raises(RuntimeError, match="not this"):
        one(x)
    assert len(packed) == 1


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "gelu", "tanh"])
@pytest.mark.parametrize(
    ("transposed", "arguments"),
    [
        (False, {}),
        (False, {"padding": 1, "padding_mode": "reflect"}),
        (True, {}),
    ],
)
def test_an_output_is_no_view(transposed, activation, arguments):
    """Sharded data parallelism frees the parameters behind a view's base; in-place changes would need them again."""
    one = layer(transposed, activation, **arguments)
    x = sample()
    for input_ in (x, x, x[0]):
        y = one(input_)
        assert not y._is_view()
        if activation in (None, "silu"):  # the derivative does not read the output
            want = torch.autograd.grad(y.relu().sum(), one.weight, retain_graph=True)[0]
            assert torch.equal(torch.autograd.grad(one(input_).relu_().sum(), one.weight)[0], want)


@pytest.mark.parametrize(
    ("activation", "positions", "sizes", "batch"),
    pairwise(
        [None, "relu", "silu", "softmax"],
        [1, 4, 65],
        [(64, 1, 1), (64, 3, 1), (3, 64, 1), (5, 7, 3), (40, 1, 4)],  # channels, filters, taps
        [1, 2, 40],
    ),
)
def test_the_same_bits_on_every_dispatch_path(activation, positions, sizes, batch):
    channels, filters, kernel = sizes
    weight = torch.randn(positions, kernel, channels, filters, requires_grad=True)
    permuted = weight.detach().movedim(-1, 0).contiguous().movedim(0, -1)
    length = positions + kernel - 1
    for x in (torch.randn(batch, channels, length), torch.randn(batch, length, channels).movedim(1, -1)):

        def call(weight_, x=x):
            return lc_triton.local_conv(x, weight_, activation=activation).detach()

        outputs = [call(weight), call(weight)]
        with torch.no_grad():
            outputs += [call(weight), call(weight)]
        with FlopCounterMode(display=False):
            outputs.append(call(weight))
        assert all(torch.equal(y, outputs[0]) for y in outputs)
        first = call(permuted)
        call(weight)
        call(weight.detach())
        assert torch.equal(call(permuted), first)


@pytest.mark.parametrize("wrong", [None, torch.randn(4, 4, 3, 3, 2, 4).to_sparse()], ids=["none", "sparse"])
def test_a_weight_of_another_kind_is_named(wrong):
    one = layer(False, None)
    one(sample())
    one.weight = None if wrong is None else nn.Parameter(wrong)
    for _ in range(2):
        with pytest.raises(LocalConvError, match="weight"):
            one(sample())


def test_gradients_of_a_reduced_output_are_those_of_the_definition():
    one, x = layer(False, "silu"), sample()
    grads = torch.autograd.grad(F.gelu(one(x)).square().sum(), [x, one.weight, one.bias])
    with lc_triton.backend("reference"):
        want = torch.autograd.grad(F.gelu(one(x)).square().sum(), [x, one.weight, one.bias])
    for a, b in zip(grads, want, strict=True):
        torch.testing.assert_close(a, b)
