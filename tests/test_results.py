"""Results and gradients of any size are ordinary tensors of torch."""

import pytest
import torch

import lc_triton

# Layers with a result, or a gradient of x or of the weights, of at least 32 MB.
LAYERS = {
    "output": (lambda: lc_triton.LocalConv2d(2, 64, 2, input_size=64), (36, 2, 64, 64), "y"),
    "input gradient": (lambda: lc_triton.LocalConv2d(64, 2, 2, input_size=64), (36, 64, 64, 64), "x"),
    "weight gradient": (lambda: lc_triton.LocalConv2d(64, 32, 3, input_size=24), (1, 64, 24, 24), "weight"),
}


@pytest.fixture(params=LAYERS)
def large(request):
    """A function that computes a result of at least 32 MB, and the values of the result."""
    make, shape, target = LAYERS[request.param]
    layer, x = make(), torch.randn(shape, requires_grad=target == "x")
    layer.requires_grad_(target == "weight")

    def result():
        y = layer(x)
        if target == "y":
            return y
        return torch.autograd.grad(y.sum(), x if target == "x" else layer.weight)[0]

    found = result()
    assert found.nbytes >= 32 << 20
    return result, found.clone()


@pytest.mark.slow
def test_a_large_result_may_be_resized(large):
    result, values = large
    y = result()
    y.resize_(2 * y.shape[0], *y.shape[1:])
    assert y.untyped_storage().nbytes() >= 2 * values.nbytes
    y.fill_(1.0)
    assert int(y.sum(dtype=torch.float64)) == y.numel()


@pytest.mark.slow
def test_the_memory_of_a_large_result_may_be_freed(large):
    result, values = large
    y = result()
    y.untyped_storage().resize_(0)
    assert y.untyped_storage().nbytes() == 0
    assert torch.equal(result(), values)


@pytest.mark.slow
def test_a_large_result_may_be_written_to_by_torch(large):
    result, values = large
    y = result()
    torch.add(values, 1, out=y)
    assert torch.equal(y, values + 1)
    smaller = torch.empty(3)
    y.resize_(0)
    torch.mul(smaller, 0, out=y)
    assert y.shape == smaller.shape


@pytest.mark.slow
def test_a_result_is_not_changed_by_the_next_call(large):
    result, values = large
    first = result()
    del values
    kept = first.clone()
    result().fill_(7.0)
    assert torch.equal(first, kept)
