"""Functions and tensors of torch.func that are used after their transform has ended, with the kernels."""

import pytest
import torch
from torch.func import functional_call, grad, linearize, vjp

import lc_triton

LAYERS = {
    "conv": (lambda: lc_triton.LocalConv1d(2, 3, 3, input_size=6, activation="relu"), (2, 2, 6)),
    "silu": (lambda: lc_triton.LocalConv1d(2, 3, 3, input_size=6, activation="silu"), (2, 2, 6)),
    "transposed": (lambda: lc_triton.LocalConvTranspose1d(2, 3, 3, input_size=4, activation="tanh"), (2, 2, 4)),
    "gather": (lambda: lc_triton.LocalGather(6, [[0, 1], [3, -1]], 2, 3, activation="relu"), (2, 6, 2)),
    "linear": (lambda: lc_triton.LocalLinear(4, 2, 3, activation="relu"), (2, 4, 2)),
    "low rank": (lambda: lc_triton.LowRankLocalConv1d(2, 3, 3, 6, rank=2, activation="relu"), (2, 2, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_functions_that_outlive_their_transform(name):
    torch.manual_seed(0)
    layer, x = LAYERS[name][0]().double(), torch.randn(LAYERS[name][1], dtype=torch.float64)
    parameters = {key: p.detach() for key, p in layer.named_parameters()}

    def call(parameters, x):
        return functional_call(layer, parameters, (x,))

    with lc_triton.backend("cpu"):
        y = layer(x)
        want = torch.autograd.grad(y, list(layer.parameters()), torch.ones_like(y))
    with lc_triton.backend("triton"):
        _, pull = vjp(call, parameters, x)
        parameter_grads, x_grad = pull(torch.ones_like(y))
        _, push = linearize(layer, x)
        tangent = push(x)
        _, nested = vjp(lambda x: vjp(lambda x: layer(x), x)[0], x)
        (rebuilt,) = nested(torch.ones_like(y))
    for got, exact in zip(parameter_grads.values(), want, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close((x_grad * x).sum(), tangent.sum(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(rebuilt, x_grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_a_tensor_that_outlives_its_transform(name):
    layer, x, kept = LAYERS[name][0]().double(), torch.randn(LAYERS[name][1], dtype=torch.float64), []
    grad(lambda x: (kept.append(x), x.sum())[1])(x)
    for context in (torch.enable_grad, torch.no_grad):
        with context(), lc_triton.backend("triton"):
            torch.testing.assert_close(layer(kept[0]), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
def test_parameters_that_have_left_their_transform(name, context):
    """Found so: a launch asked for the address of a bias that still had the transform's wrapper."""
    layer, x, kept = LAYERS[name][0]().double(), torch.randn(LAYERS[name][1], dtype=torch.float64), []
    parameters = {key: p.detach() for key, p in layer.named_parameters()}
    grad(lambda p: (kept.append(p), sum(v.sum() for v in p.values()))[1])(parameters)
    with context(), lc_triton.backend("triton"):
        torch.testing.assert_close(functional_call(layer, kept[0], (x,)), layer(x), rtol=0, atol=0)
