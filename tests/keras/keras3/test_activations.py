"""Activations of the layers for Keras 3 equal those of Keras; most are fused into the kernels."""

import pytest
import torch

from tests.cases import assert_close
from tests.keras.keras3.common import QUIET, keras, layers
from tests.test_golden import leaf

pytestmark = QUIET


def apply_in_layer(activation, z, **kwargs):
    """The output and the gradient of an activation, in a layer whose convolution is the identity."""
    z = leaf(z)
    layer = layers.LocallyConnected1D(
        3, 1, activation=activation, kernel_initializer="identity", dtype="float64", **kwargs
    )
    y = layer(z)
    return y, torch.autograd.grad(y, z, torch.ones_like(y))[0]


Z = torch.linspace(-7, 7, 57, dtype=torch.float64).reshape(1, 19, 3)  # multiples of 1/4, with corners and zero
FLOAT_SIXTH = (keras.activations.hard_sigmoid, keras.activations.hard_silu)  # torch rounds their 1 / 6 to float32


@pytest.mark.parametrize("function", layers.FUSED, ids=lambda f: f.__name__)
def test_fused_activations_are_keras_own(function):
    z = leaf(Z)
    want = function(z)
    derivative = 1.0 if want is z else torch.autograd.grad(want, z, torch.ones_like(want))[0]
    tolerance = 1e-8 if function in FLOAT_SIXTH else 1e-14
    for activation in (function, function.__name__):
        y, gradient = apply_in_layer(activation, Z)
        assert_close(y, want.detach(), tolerance)
        smooth = (Z.abs() != 3) & (Z != 0) & (Z != 6)  # at a corner, the slope of either side is right
        assert_close(torch.where(smooth, gradient - derivative, 0.0), torch.zeros_like(Z), tolerance)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "celu", "hard_tanh", "log_sigmoid"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_other_activations_are_keras_own(name, data_format):
    z = Z if data_format == "channels_last" else Z.mT.contiguous()
    y, _ = apply_in_layer(name, z, data_format=data_format)
    assert_close(y, getattr(keras.activations, name)(z), 1e-14)


def test_activations_of_the_user():
    for activation in (
        lambda y: keras.activations.gelu(y, approximate=True),
        keras.layers.LeakyReLU(negative_slope=0.4),
        torch.nn.Hardtanh(-0.5, 0.5),
    ):
        y, _ = apply_in_layer(activation, Z)
        assert_close(y, activation(Z), 1e-14)
    layer = layers.LocallyConnected1D(3, 1, activation="relu", kernel_initializer="identity", dtype="float64")
    layer(Z)
    layer.activation = None
    assert torch.equal(layer(Z), Z)
    layer.activation = keras.activations.tanh
    assert_close(layer(Z), torch.tanh(Z))
