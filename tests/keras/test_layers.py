"""LocallyConnected1D/2D/3D: outputs, weights in Keras's layouts, building and copying."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import lc_triton
from lc_triton.keras import activations
from tests.cases import CASES, IDS, assert_close, tensors

LAYERS = {1: lc_triton.LocallyConnected1D, 2: lc_triton.LocallyConnected2D, 3: lc_triton.LocallyConnected3D}


NAMED = [i for i, c in enumerate(CASES) if isinstance(c.padding, str) or c.padding == 0]


def layer_of(case, **kwargs):
    arguments = {
        "strides": case.stride,
        "padding": case.padding or "valid",
        "dilation_rate": case.dilation,
        "groups": case.groups,
        "dtype": "float64",
        "bias_initializer": "normal",
    }
    return LAYERS[len(case.in_spatial)](case.filters, case.kernel, **(arguments | kwargs))


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("case", [CASES[i] for i in NAMED], ids=[IDS[i] for i in NAMED])
def test_a_layer_equals_local_conv(case, data_format):
    x = tensors(case).x
    x = x if data_format == "channels_last" else x.movedim(-1, 1)
    layer = layer_of(case, data_format=data_format, activation="leaky_relu")
    y = layer(x)  # builds
    assert layer.weight.shape == case.geometry.weight_shape
    assert layer.bias.shape == case.geometry.bias_shape
    want = lc_triton.local_conv(
        x, layer.weight, layer.bias, **case.arguments, activation=("leaky_relu", 0.2), data_format=data_format
    )
    assert torch.equal(y, want)
    assert layer.output_shape == (None, *y.shape[1:])
    assert layer.input_shape == x.shape[1:]
    assert layer.compute_output_shape((7, *x.shape[1:])) == (7, *y.shape[1:])
    rebuilt = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
    rebuilt.set_weights(layer.get_weights())
    assert torch.equal(rebuilt(x), y)
    assert repr(rebuilt) == repr(layer)


def test_the_examples_of_the_keras_documentation():
    model = nn.Sequential(
        lc_triton.LocallyConnected2D(64, (3, 3), input_shape=(32, 32, 3)), lc_triton.LocallyConnected2D(32, (3, 3))
    )
    assert model[0].count_params() == (30 * 30) * (3 * 3 * 3 * 64) + (30 * 30) * 64
    assert model[0].output_shape == (None, 30, 30, 64)
    assert model(torch.zeros(1, 32, 32, 3)).shape == (1, 28, 28, 32)
    assert model[1].output_shape == (None, 28, 28, 32)
    model = nn.Sequential(
        lc_triton.LocallyConnected1D(64, 3, input_shape=(10, 32)), lc_triton.LocallyConnected1D(32, 3)
    )
    assert model(torch.zeros(2, 10, 32)).shape == (2, 6, 32)
    assert model[0].output_shape == (None, 8, 64)


@pytest.mark.parametrize("implementation", [1, 2, 3])
def test_implementations_compute_the_same(implementation):
    layer = lc_triton.LocallyConnected1D(2, 3, implementation=implementation, kernel_initializer="ones")
    x = torch.arange(12.0).view(1, 6, 2)
    assert torch.equal(layer(x), x.unfold(1, 3, 1).sum((2, 3))[..., None].expand(1, 4, 2))


@pytest.mark.parametrize("implementation", [2, 3])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("case", [CASES[i] for i in NAMED], ids=[IDS[i] for i in NAMED])
def test_weights_of_implementations_2_and_3_make_the_same_layer(case, data_format, implementation):
    x = tensors(case).x
    x = x if data_format == "channels_last" else x.movedim(-1, 1)
    first = layer_of(case, data_format=data_format)
    y = first(x)
    layer = layer_of(case, data_format=data_format, implementation=implementation)
    layer.load_state_dict(first.state_dict())
    assert torch.equal(layer(x), y)
    assert layer.count_params() == first.count_params()
    weights = layer.get_weights()
    rebuilt = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
    rebuilt.set_weights(weights)
    assert torch.equal(rebuilt(x), y)
    assert all(np.array_equal(w, v) for w, v in zip(rebuilt.get_weights(), weights, strict=True))


def test_the_shapes_of_weights():
    def shapes(data_format, implementation):
        shape = (3, 5, 6) if data_format == "channels_first" else (5, 6, 3)
        layer = lc_triton.LocallyConnected2D(
            2, 3, 2, "same", data_format, implementation=implementation, input_shape=shape
        )
        return [w.shape for w in layer.get_weights()]

    bias = (3, 3, 2)
    assert shapes("channels_last", 1) == shapes("channels_first", 1) == [(9, 27, 2), bias]
    assert shapes("channels_last", 2) == [(5, 6, 3, 3, 3, 2), bias]
    assert shapes("channels_first", 2) == [(3, 5, 6, 2, 3, 3), bias]
    # 2 + 3 + 2 taps along the rows are inside the input, and 3 + 3 + 2 along the columns.
    assert shapes("channels_last", 3) == shapes("channels_first", 3) == [(7 * 8 * 3 * 2,), bias]


def test_three_ways_to_build():
    x = torch.randn(2, 6, 5, 3)
    one, two, three = (lc_triton.LocallyConnected2D(4, 2, **kw) for kw in ({"input_shape": (6, 5, 3)}, {}, {}))
    assert (one.built, two.built, three.input_shape, three.output_shape) == (True, False, None, None)
    assert three.penalties() == []
    three.constrain_()
    two.build((None, 6, 5, 3))
    three(x)
    assert {repr(layer) for layer in (one, two, three)} == {repr(one)}
    two.build((8, 6, 5, 3))  # a second call has no effect
    for layer in (two, three):
        layer.load_state_dict(one.state_dict())
        assert torch.equal(layer(x), one(x))
        assert not layer._forward_pre_hooks


def test_a_state_dict_builds_an_unbuilt_layer():
    one, other = lc_triton.LocallyConnected1D(4, 3, input_shape=(7, 2)), lc_triton.LocallyConnected1D(4, 3)
    x = torch.randn(3, 7, 2)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(x), one(x))
    third = lc_triton.LocallyConnected1D(4, 3)
    third.load_state_dict({"weight": one.weight.detach()}, strict=False)
    assert torch.equal(third(x), lc_triton.local_conv(x, one.weight, data_format="channels_last"))  # the bias is zero
    third = lc_triton.LocallyConnected1D(4, 3)
    third.load_state_dict(one.state_dict())
    with pytest.raises(lc_triton.LocalConvError, match=r"weight.shape=\(5, 3, 2, 4\) does not fit"):
        third(torch.randn(3, 8, 2))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("built", [True, False])
def test_copies_and_pickles(copied, built):
    layer = lc_triton.LocallyConnected1D(
        4, 3, activation="softmax", kernel_regularizer="l2", activity_regularizer="l1", kernel_constraint="max_norm"
    )
    x = torch.randn(3, 7, 2)
    if built:
        layer(x)
    other = copied(layer)
    layer(x)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert torch.equal(lc_triton.regularization_loss(other), lc_triton.regularization_loss(layer))
    assert other.to(torch.float64)(x.double()).dtype == torch.float64


@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_activations_have_keras_constants(name):
    z = torch.linspace(-4, 7, 24, dtype=torch.float64).reshape(1, 8, 3)
    layer = lc_triton.LocallyConnected1D(3, 1, activation=name, kernel_initializer="identity", dtype=torch.float64)
    F = nn.functional
    definition = {
        "linear": lambda z: z,
        "hard_sigmoid": lambda z: (0.2 * z + 0.5).clamp(0, 1),
        "exponential": torch.exp,
        "softmax": lambda z: z.softmax(-1),
        "log_softmax": lambda z: z.log_softmax(-1),
        "swish": lambda z: z * torch.sigmoid(z),
        "leaky_relu": lambda z: torch.where(z > 0, z, 0.2 * z),
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }.get(name) or getattr(F, name)
    assert_close(layer(z), definition(z), 1e-12)


def test_softmax_is_over_the_last_axis_in_either_data_format():
    for data_format in ("channels_first", "channels_last"):
        layer = lc_triton.LocallyConnected2D(3, 2, activation="softmax", data_format=data_format)
        y = layer(torch.randn(2, 4, 5, 6))
        assert_close(y.sum(-1), torch.ones(y.shape[:-1], dtype=torch.float64), 1e-5)


def test_callables_of_the_user():
    class Halve(nn.Module):
        def forward(self, y):
            return y / 2

    def ramp(shape, dtype):
        return np.arange(np.prod(shape)).reshape(shape)

    layer = lc_triton.LocallyConnected1D(
        2,
        3,
        activation=Halve(),
        kernel_initializer=ramp,
        kernel_regularizer=lambda w: w[0, 0, 1],
        activity_regularizer=torch.sum,
        kernel_constraint=lambda w: w.clamp(max=5),
        input_shape=(4, 1),
    )
    assert layer.get_weights()[0].flatten().tolist() == list(range(12))
    y = layer(torch.ones(2, 4, 1))
    assert y[0].tolist() == [[3.0, 4.5], [12.0, 13.5]]
    assert lc_triton.regularization_loss(layer).item() == 1 + 33.0
    lc_triton.apply_constraints(layer)
    assert layer.get_weights()[0].flatten().tolist() == [0, 1, 2, 3, 4, 5] + [5] * 6
    with pytest.raises(lc_triton.LocalConvError, match="activation must be a name or a pair to be written into"):
        layer.get_config()
    layer.activation = None
    with pytest.raises(lc_triton.LocalConvError, match="kernel_initializer must be a named initializer to be written"):
        layer.get_config()


def test_dilation_groups_and_keras_same():
    layer = lc_triton.LocallyConnected2D(
        4, (2, 3), padding="keras_same", dilation_rate=(2, 1), groups=2, kernel_initializer="normal"
    )
    x = torch.randn(2, 5, 6, 2)
    want = lc_triton.local_conv(
        x, layer_weight(layer, x), padding="keras_same", dilation=(2, 1), groups=2, data_format="channels_last"
    )
    assert torch.equal(layer(x), want)
    assert layer.get_weights()[0].shape == (30, 6, 4)


def layer_weight(layer, x):
    layer(x)
    return layer.weight


def test_training_lowers_the_loss():
    model = nn.Sequential(
        lc_triton.LocallyConnected1D(6, 3, activation="relu", kernel_initializer="he_normal", kernel_regularizer="l2"),
        lc_triton.LocallyConnected1D(4, 3, activation="swish", kernel_constraint="max_norm"),
        nn.Flatten(),
        nn.LazyLinear(3),
    )
    x, target = torch.randn(32, 10, 2), torch.randint(3, (32,))
    model(x)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    lc_triton.attach_constraints(model, optimizer)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        (loss + 1e-3 * lc_triton.regularization_loss(model)).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
