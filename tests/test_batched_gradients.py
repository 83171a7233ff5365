"""`is_grads_batched` and `vectorize=True` of torch.autograd: the gradients of each vector, in one call."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

import lc_triton

TABLE = torch.tensor([[0, 1, -1], [2, 2, 4], [-1, -1, -1], [5, 0, 3]])
LAYERS = {
    "tanh": lambda: lc_triton.LocalConv2d(2, 3, 3, input_size=5, activation="tanh"),
    "gelu": lambda: lc_triton.LocalConv2d(2, 3, 3, input_size=5, activation="gelu", bias="channel"),
    "groups": lambda: lc_triton.LocalConv1d(4, 6, 3, input_size=6, groups=2, padding=1, stride=2),
    "keras": lambda: lc_triton.LocallyConnected2D(3, 3, input_shape=(5, 5, 2)),
    "rows": lambda: lc_triton.LocalConv2d(2, 3, 3, input_size=5, share="rows"),
    "low_rank": lambda: lc_triton.LowRankLocalConv1d(2, 3, 3, 6, rank=2, activation="silu"),
    "gather": lambda: lc_triton.LocalGather(6, TABLE, 2, 3, activation="tanh"),
    "linear": lambda: lc_triton.LocalLinear(4, 3, 5),
    "transposed": lambda: lc_triton.LocalConvTranspose1d(2, 3, 3, input_size=6, activation="softplus"),
}
SIZES = {"keras": (5, 5, 2), "gather": (6, 2), "linear": (4, 3), "groups": (4, 6), "low_rank": (2, 6)}
SIZES |= {"transposed": (2, 6)}


def layer_and_input(name, batch=2):
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    return layer, torch.randn(batch, *SIZES.get(name, (2, 5, 5)), dtype=torch.float64)


def assert_all_close(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_many_vectors(name):
    layer, x = layer_and_input(name)
    leaves = [x.requires_grad_(), *layer.parameters()]
    y = layer(x)
    vectors = torch.randn(3, *y.shape, dtype=y.dtype)
    found = torch.autograd.grad(y, leaves, vectors, is_grads_batched=True, retain_graph=True)
    assert [gradient.shape for gradient in found] == [(3, *leaf.shape) for leaf in leaves]
    for i, vector in enumerate(vectors):
        assert_all_close([gradient[i] for gradient in found], torch.autograd.grad(y, leaves, vector, retain_graph=True))


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives(name):
    layer, x = layer_and_input(name)
    leaves = [x.requires_grad_(), *layer.parameters()]
    y = layer(x)
    vectors = torch.randn(3, *y.shape, dtype=y.dtype, requires_grad=True)
    found = torch.autograd.grad(y, leaves, vectors, is_grads_batched=True, create_graph=True)
    options = {"retain_graph": True, "allow_unused": True}
    got = torch.autograd.grad(sum(g.square().sum() for g in found), [*leaves, vectors], **options)
    each = [torch.autograd.grad(y, leaves, vector, create_graph=True) for vector in vectors]
    want = torch.autograd.grad(sum(g.square().sum() for found in each for g in found), [*leaves, vectors], **options)
    assert_all_close([g for g in got if g is not None], [g for g in want if g is not None])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
@pytest.mark.parametrize("name", LAYERS)
def test_jacobian(name, strategy):
    layer, x = layer_and_input(name, batch=1)
    names = [name for name, _ in layer.named_parameters()]
    values = (x, *(p.detach() for p in layer.parameters()))

    def output(x, *parameters):
        return functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert_all_close(jacobian(output, values, vectorize=True, strategy=strategy), jacobian(output, values))


@pytest.mark.parametrize("outer", ["reverse-mode", "forward-mode"])
@pytest.mark.parametrize("name", ["tanh", "gelu", "gather", "low_rank", "transposed"])
def test_hessian(name, outer):
    layer, x = layer_and_input(name, batch=1)

    def loss(x):
        return layer(x).square().sum()

    got = hessian(loss, x, vectorize=True, outer_jacobian_strategy=outer)
    torch.testing.assert_close(got, hessian(loss, x), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tanh", "gelu"])
def test_gradcheck_of_batches(name):
    layer, x = layer_and_input(name, batch=1)
    options = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(layer, x.requires_grad_(), **options, check_batched_forward_grad=True)
    assert torch.autograd.gradgradcheck(layer, x, check_batched_grad=True)


def test_jacobian_of_two_layers():
    torch.manual_seed(0)
    net = nn.Sequential(LAYERS["tanh"](), lc_triton.LocalConv2d(3, 2, 2, input_size=3, activation="gelu"), nn.Flatten())
    net, x = net.double(), torch.randn(2, 2, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(jacobian(net, x, vectorize=True), jacobian(net, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["neighbours", "mean", "smooth"])
def test_penalties_of_positions(kind):
    layer, _ = layer_and_input("tanh")
    loss = lc_triton.position_penalty(layer, kind)
    assert_batched_gradients_of_scalar(loss, layer.weight)


def test_penalties_of_keras():
    layer = lc_triton.LocallyConnected1D(3, 3, input_shape=(5, 2), kernel_regularizer="l1_l2").double()
    assert_batched_gradients_of_scalar(lc_triton.regularization_loss(layer), layer.weight)


def assert_batched_gradients_of_scalar(loss, weight):
    vectors = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (want,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (got,) = torch.autograd.grad(loss, weight, vectors, is_grads_batched=True)
    assert_all_close(got, [want * vector for vector in vectors])


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantized_weights(kind):
    torch.manual_seed(0)
    layer = lc_triton.quantize_weights(lc_triton.LocalConv1d(2, 4, 3, input_size=6), kind)
    x = torch.randn(2, 2, 6)
    assert_all_close([jacobian(layer, x, vectorize=True)], [jacobian(layer, x)])


def test_batched_gradients_are_no_update_of_a_fused_optimizer():
    layer, x = layer_and_input("tanh")
    optimizer = lc_triton.FusedAdamW(layer, lr=0.1)
    before = layer.weight.detach().clone()
    y = layer(x)
    vectors = torch.randn(3, *y.shape, dtype=y.dtype)
    (found,) = torch.autograd.grad(y, [layer.weight], vectors, is_grads_batched=True, retain_graph=True)
    (want,) = torch.autograd.grad(y, [layer.weight], vectors[1])
    assert_all_close([found[1]], [want])
    optimizer.step()
    assert torch.equal(layer.weight, before)
