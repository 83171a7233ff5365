"""Layers before their first input, parameters of other shapes or memory, activity penalties without a forward."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import lc_triton
from lc_triton.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ComputedParameterError,
    NotBuiltError,
)
from tests.cases import assert_close
from tests.layer_states import (
    assert_same_state,
    conv,
    keras_layer,
    softplus,
    state,
    weight_norm,
)


def lazy_conv():
    return lc_triton.LazyLocalConv1d(2, 2, activation="tanh")


def lazy_transposed():
    return lc_triton.LazyLocalConvTranspose1d(2, 2)


def unbuilt_keras():
    return lc_triton.LocallyConnected1D(2, 2, data_format="channels_first")


UNBUILT = pytest.mark.parametrize("make", [lazy_conv, lazy_transposed, unbuilt_keras])


@UNBUILT
@pytest.mark.parametrize("first", [0, 1])
def test_a_shallow_copy_of_an_unbuilt_layer_builds_too(make, first):
    x, layer = torch.randn(2, 3, 5), make()
    pair = (layer, copy.copy(layer))
    y = pair[first](x)
    assert torch.equal(pair[1 - first](x), y)
    assert pair[0].weight is pair[1].weight


@UNBUILT
def test_an_unbuilt_layer_without_the_hook_of_lazy_modules_builds(make):
    x, layer = torch.randn(2, 3, 5), make()
    layer._forward_pre_hooks.clear()
    assert torch.equal(layer(x), layer(x))


@UNBUILT
def test_an_unbuilt_layer_builds_after_a_functional_call(make):
    x, layer, other = torch.randn(2, 3, 5), make(), make()
    y = other(x)
    assert torch.equal(torch.func.functional_call(layer, dict(other.named_parameters()), (x,)), y)
    assert layer(x).shape == y.shape
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), y)


@UNBUILT
def test_an_unbuilt_layer_refuses_tracing_and_wrong_inputs(make):
    for net in (make(), nn.Sequential(make())):
        with pytest.raises(NotBuiltError, match="call it once on an input before it is traced"):
            torch.fx.symbolic_trace(net)
    for x, message in (([1.0], "torch.Tensor, got"), (torch.ones(2, 3, 5, dtype=torch.int32), "int32")):
        layer = make()
        with pytest.raises(lc_triton.LocalConvError, match=message):
            layer(x)
        assert layer.has_uninitialized_params()


def expanded(layer, name):
    setattr(layer, name, nn.Parameter(getattr(layer, name).detach()[:1].expand(getattr(layer, name).shape)))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_parameters_whose_entries_share_memory_are_not_written(name):
    for layer in (keras_layer(kernel_constraint="non_neg", bias_constraint="non_neg"), conv()):
        expanded(layer, name)
        before = state(layer)
        writes = [layer.reset_parameters]
        if isinstance(layer, lc_triton.LocallyConnected1D):
            weights = [w + 1 for w in layer.get_weights()]
            writes += [
                lambda layer=layer, w=weights: layer.set_weights(w),
                lambda m=layer: lc_triton.apply_constraints(m),
            ]
        for write in writes:
            with pytest.raises(ComputedParameterError, match=f"{name} .* its entries share memory .*contiguous"):
                write()
            assert_same_state(layer, before)
        if name == "weight":
            for init in ("xavier_uniform_", "kaiming_normal_", "orthogonal_", "dirac_"):
                with pytest.raises(ArgumentValueError, match="whose entries lie apart in memory"):
                    getattr(lc_triton.init, init)(layer.weight)
        assert_same_state(layer, before)


def test_a_bias_of_each_channel_in_keras_layers_is_named():
    layer = keras_layer()
    weights = layer.get_weights()
    layer.bias = nn.Parameter(torch.ones(2))
    before = state(layer)
    for call in (layer.reset_parameters, layer.get_weights, lambda: layer.set_weights(weights), layer.count_params):
        with pytest.raises(ArgumentValueError, match=r"shape of the bias must be .*one a position"):
            call()
        assert_same_state(layer, before)


def test_a_reset_refuses_a_weight_that_does_not_fit_the_arguments():
    layer = conv()
    before = layer.weight.detach()[:, :, :1].clone()
    layer.weight = nn.Parameter(before.clone())
    with pytest.raises(lc_triton.LocalConvError, match="weight"):
        layer.reset_parameters()
    assert torch.equal(layer.weight, before)


@UNBUILT
def test_an_unbuilt_layer_with_loaded_weights_refuses_to_draw(make):
    layer, other = make(), make()
    layer.reset_parameters()  # does nothing: the first call draws the parameters
    other(torch.randn(2, 3, 5))
    layer.load_state_dict(other.state_dict())
    with pytest.raises(NotBuiltError, match="call it once on an input"):
        layer.reset_parameters()


def test_weights_that_torch_negates_lazily_are_read():
    layer = keras_layer()
    weight, bias = layer.get_weights()
    for name in ("weight", "bias"):
        value = getattr(layer, name).detach()
        setattr(layer, name, nn.Parameter(torch.complex(value, -value).conj().imag))
        assert getattr(layer, name).is_neg()
    assert np.array_equal(layer.get_weights()[0], weight)
    assert np.array_equal(layer.get_weights()[1], bias)


@pytest.mark.parametrize("activation", ["linear", None])
def test_a_layer_without_an_activation_becomes_a_convolution_by_either_name(activation):
    first = nn.Conv1d(2, 3, 2)
    layer = lc_triton.LocalConv1d.from_conv(first, 5)
    layer.activation = activation
    assert torch.equal(layer.to_conv().weight, first.weight)


def penalised():
    return lc_triton.LocallyConnected1D(2, 3, input_shape=(5, 2), activity_regularizer="l2")


@pytest.mark.parametrize("wrap", [lambda layer: None, softplus, weight_norm])
def test_copies_leave_the_penalty_of_the_last_forward(wrap):
    layer, x = penalised(), torch.randn(2, 5, 2)
    with torch.no_grad():
        layer.weight.abs_()
    wrap(layer)
    y = layer(x)
    assert lc_triton.regularization_loss(layer).grad_fn is not None
    copied = copy.deepcopy(layer)
    assert not lc_triton.regularization_loss(copied)
    assert torch.equal(copied(x), y)
    assert copied.weight is not layer.weight
    assert torch.equal(lc_triton.regularization_loss(copied), lc_triton.regularization_loss(layer))


def test_tracing_a_layer_with_an_activity_penalty_is_refused():
    layer = penalised()
    with pytest.raises(ArgumentTypeError, match=r"activity_regularizer must be .*its program would have no penalty"):
        torch.fx.symbolic_trace(layer)
    layer.activity_regularizer = None
    x = torch.randn(2, 5, 2)
    assert torch.equal(torch.fx.symbolic_trace(layer)(x), layer(x))


def test_an_activity_penalty_of_an_ended_transform_is_refused():
    layer, x = penalised(), torch.randn(3, 2, 5, 2)

    def loss(x):
        layer(x)
        return lc_triton.regularization_loss(layer)

    expected = torch.func.vmap(loss)(x)
    for call in (
        lambda: torch.func.vmap(layer)(x),
        lambda: make_fx(layer, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x[0]),
    ):
        call()
        with pytest.raises(ArgumentValueError, match=r"activity penalty of LocallyConnected1D must be .*has ended"):
            lc_triton.regularization_loss(layer)
    for one, want in zip(x, expected, strict=True):
        assert_close(loss(one).detach(), want.detach(), 1e-6)
