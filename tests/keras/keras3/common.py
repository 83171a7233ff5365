"""Imports and a model shared by the tests of the layers for Keras 3."""

import numpy as np
import pytest

import lc_triton

# May go when Keras 3 is not an extra any more.
keras = pytest.importorskip("keras", "3", "Keras 3, the extra keras3, is not installed")
layers = pytest.importorskip("lc_triton.keras.layers")

TWINS = {1: lc_triton.LocallyConnected1D, 2: lc_triton.LocallyConnected2D, 3: lc_triton.LocallyConnected3D}
LAYERS = {n: getattr(layers, twin.__name__) for n, twin in TWINS.items()}

# Keras's tensors do not accept a keyword that NumPy 2 passes to `__array__`.
QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def regression(**kwargs):
    """A model, its inputs and its targets."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.LocallyConnected2D(8, 3, activation="relu", name="local", **kwargs),
            keras.layers.Reshape((16, 8)),
            layers.LocallyConnected1D(4, 2, strides=2, activation="tanh"),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 6, 6, 2)).astype("float32")
    y = (x[:, 1, 2, :1] - 2 * x[:, 4, 4, 1:]).astype("float32")
    return model, x, y
