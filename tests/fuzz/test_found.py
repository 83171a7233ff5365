"""Cases that the fuzz tests found, in their smallest form."""

import numpy as np
import pytest
import torch

import lc_triton
from lc_triton.errors import ArgumentValueError, LocalConvError, UnknownNameError, WorkloadError
from lc_triton.keras import constraints, initializers
from lc_triton.tiles import workloads


@pytest.mark.parametrize("groups", [1, 2])
def test_the_definition_of_a_transposed_layer_takes_an_empty_batch(groups):
    with lc_triton.backend("reference"):
        x = lc_triton.local_conv_transpose(torch.zeros(0, 2, 4), torch.ones(4, 3, 1, 2), groups=groups)
    assert x.shape == (0, groups, 6)


@pytest.mark.parametrize("activation", ["softmax", "log_softmax"])
def test_softmax_keeps_channels_last_strides(activation):
    x, weight = torch.randn(2, 3, 4, 5), torch.randn(4, 5, 1, 1, 3, 6)
    y = lc_triton.local_conv(x, weight, activation=activation)
    assert y.is_contiguous(memory_format=torch.channels_last)
    plain = lc_triton.local_conv(x, weight)
    torch.testing.assert_close(y, getattr(torch, activation)(plain, 1))
    torch.testing.assert_close(lc_triton.local_conv(x[0], weight, activation=activation), y[0])


@pytest.mark.parametrize("in_list", [False, True])
@pytest.mark.parametrize(
    ("argument", "first", "then"),
    [
        ("stride", (7, 3, 4, 2), (4, 3, 4, 2)),
        ("padding", (9, 3, 4, 2), (11, 3, 4, 2)),
        ("dilation", (7, 3, 4, 2), (5, 3, 4, 2)),
        ("groups", (7, 3, 4, 2), (7, 3, 2, 2)),
    ],
)
def test_an_argument_that_changes_is_read_at_each_call(argument, first, then, in_list):
    """Plans are cached by their arguments, and a tensor that changes stays the same object."""
    number, x = torch.tensor(1), torch.randn(1, 4, 9)
    arguments = {argument: [number] if in_list and argument != "groups" else number}
    first, then = torch.randn(first), torch.randn(then)
    lc_triton.local_conv(x, first, **arguments)
    number.fill_(2)
    assert torch.equal(lc_triton.local_conv(x, then, **arguments), lc_triton.local_conv(x, then, **{argument: 2}))
    with pytest.raises(LocalConvError):
        lc_triton.local_conv(x, first, **arguments)


@pytest.mark.parametrize("kind", [lc_triton.LocalConv1d, lc_triton.LocallyConnected1D])
def test_an_activation_that_is_refused_changes_nothing(kind):
    keras = kind is lc_triton.LocallyConnected1D
    layer = kind(2, 3, input_shape=(5, 2)) if keras else kind(2, 2, 3, 5)
    layer.activation = "relu"
    x = torch.randn(1, 5, 2) if keras else torch.randn(1, 2, 5)
    before = layer(x)
    with pytest.raises(UnknownNameError):
        layer.activation = "tahn"
    assert layer.activation == "relu"
    assert torch.equal(layer(x), before)


def test_keras_arguments_take_integers_of_any_type():
    one, other = initializers.HeNormal(seed=np.int64(5)), initializers.HeNormal(seed=torch.tensor(5))
    assert one == other == initializers.HeNormal(seed=5)
    assert torch.equal(one((2, 3, 4)), other((2, 3, 4)))
    w = torch.randn(2, 3, 4)
    for axis, plain in ((np.int64(1), 1), ([np.int64(0), 1], [0, 1])):
        assert torch.equal(constraints.UnitNorm(axis)(w), constraints.UnitNorm(plain)(w))


@pytest.mark.parametrize("text", ['{"workloads": [' + "9" * 5000 + "]}", "[" * 100_000], ids=["digits", "lists"])
def test_a_workload_file_that_python_cannot_read_is_named(text, tmp_path):
    path = tmp_path / "workloads.json"
    path.write_text(text)
    with pytest.raises(WorkloadError, match="it cannot be read"):
        workloads.read(path)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_a_gradient_of_gelu_that_overlaps_itself(activation):
    """Torch's derivative of gelu (oneDNN's, on the CPU) does not take such gradients."""
    x, weight = torch.randn(3, 3, 1, 1), torch.ones(3, 1, 1, 1, 1, 48, requires_grad=True)
    g = torch.randn(200).as_strided((3, 48, 3, 1), (1, 2, 3, 1))
    gradients = []
    for upstream in (g, g.contiguous()):
        y = lc_triton.local_conv(x.movedim(1, 2), weight, activation=activation)
        gradients += torch.autograd.grad(y, weight, upstream)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("activation", [None, "tanh"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_views_that_torch_negates_lazily(dtype, activation):
    """A copy of such a view in float16 to float32 loses the sign (torch 2.13, CPU)."""
    plain = [torch.randn(shape).to(dtype) for shape in ((8, 2, 4), (4, 1, 2, 16), (4, 16), (8, 16, 4))]
    results = []
    for tensors in (plain, [torch._neg_view(-t) for t in plain]):
        *leaves, g = tensors
        leaves = [t.requires_grad_() for t in leaves]
        y = lc_triton.local_conv(*leaves, activation=activation)
        results.append([y, *torch.autograd.grad(y, leaves, g)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "made", [initializers.Constant(1e300), initializers.RandomNormal(mean=-1e300), initializers.VarianceScaling(1e39)]
)
def test_an_initializer_that_overflows_its_dtype_is_refused(made):
    with pytest.raises(ArgumentValueError, match=r"within 3.4e\+38, the largest float32"):
        made((2, 3, 4))
    assert made((2, 3, 4), torch.float64).isfinite().all()
