"""Initializers of the layers for Keras 3, and their fans."""

import numpy as np
import pytest
import torch

from tests.keras.keras3.common import QUIET, keras, layers

pytestmark = QUIET


@pytest.mark.parametrize("name", ["glorot_uniform", "he_normal", "lecun_uniform", "variance_scaling"])
def test_fans_are_those_of_one_position(name):
    initializer = type(keras.initializers.get(name))(seed=7)

    def kernel(fan_mode):
        layer = layers.LocallyConnected2D(16, 3, kernel_initializer=initializer, fan_mode=fan_mode)
        layer.build((None, 12, 12, 8))
        return layer.get_weights()[0]

    ours, theirs = kernel("position"), kernel("keras")
    variance = {"glorot_uniform": 2 / (72 + 16), "he_normal": 2 / 72}.get(name, 1 / 72)
    assert abs(ours.var() / variance - 1) < 0.02
    assert np.allclose(ours, 10 * theirs, rtol=1e-6)  # for 100 positions, the numbers that Keras draws are scaled by 10


def test_fans_of_the_user_are_not_changed():
    initializer = keras.initializers.HeNormal(seed=3)
    if not hasattr(initializer, "input_axes"):
        pytest.skip("this Keras has no input_axes")  # may go when no supported version is without
    initializer = keras.initializers.HeNormal(seed=3, input_axes=[1], output_axes=[2])
    layer = layers.LocallyConnected2D(16, 3, kernel_initializer=initializer)
    layer.build((None, 12, 12, 8))
    assert abs(layer.get_weights()[0].var() / (2 / 72) - 1) < 0.02


def test_matrices_are_those_of_one_position():
    def kernel(initializer, filters=12, fan_mode="position"):
        layer = layers.LocallyConnected1D(filters, 3, kernel_initializer=initializer, fan_mode=fan_mode)
        layer.build((None, 6, 4))
        return layer.get_weights()[0]

    for filters in (5, 12, 20):
        w = kernel(keras.initializers.Orthogonal(gain=2.0, seed=1), filters)
        gram = w @ w.swapaxes(1, 2) if filters >= 12 else w.swapaxes(1, 2) @ w
        assert np.allclose(gram, 4 * np.eye(gram.shape[-1]), atol=1e-5)
        assert not np.allclose(w[0], w[1], atol=0.1)
        assert np.array_equal(w, kernel(keras.initializers.Orthogonal(gain=2.0, seed=1), filters))
    assert np.array_equal(kernel("identity"), np.tile(np.eye(12), (4, 1, 1)))
    whole = kernel("orthogonal", fan_mode="keras").reshape(48, 12)
    assert np.allclose(whole.T @ whole, np.eye(12), atol=1e-5)
    with pytest.raises(ValueError, match="2D matrices"):
        kernel("identity", fan_mode="keras")


def test_initializers_of_the_user():
    values = np.random.default_rng(0).standard_normal((4, 6, 3)).astype("float32")
    for initializer in (values, lambda shape, dtype=None: torch.from_numpy(values)):
        layer = layers.LocallyConnected1D(3, 3, kernel_initializer=initializer)
        layer.build((None, 6, 2))
        assert np.array_equal(layer.get_weights()[0], values)
    plain = layers.LocallyConnected1D(3, 3, kernel_initializer=None, bias_initializer=None).get_config()
    assert plain["kernel_initializer"]["class_name"] == "GlorotUniform"
    assert plain["bias_initializer"]["class_name"] == "Zeros"
