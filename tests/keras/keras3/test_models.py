"""Models of Keras 3 with the layers for it: trained, saved, cloned, and trained by torch."""

import pickle

import numpy as np
import pytest
import torch

from lc_triton import errors
from tests.cases import assert_close
from tests.keras.keras3.common import QUIET, keras, layers, regression

pytestmark = QUIET


def test_compile_fit_evaluate_predict():
    model, x, y = regression()
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse", metrics=["mae"])
    start = model.evaluate(x, y, verbose=0)[0]
    history = model.fit(x, y, epochs=15, batch_size=16, verbose=0, validation_split=0.25)
    assert set(history.history) == {"loss", "mae", "val_loss", "val_mae"}
    loss, _ = model.evaluate(x, y, verbose=0)
    assert loss < 0.2 * start
    predicted = model.predict(x, batch_size=24, verbose=0)
    assert abs(float(np.square(predicted - y).mean()) - loss) < 1e-5


def test_a_batch_may_have_any_size():
    inputs = keras.Input((6, 6, 2))
    hidden = layers.LocallyConnected2D(3, 3, strides=2)(inputs)
    assert hidden.shape == (None, 2, 2, 3)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(hidden))
    x = torch.randn(5, 6, 6, 2)
    whole = model(x)
    assert_close(torch.cat([model(x[:2]), model(x[2:])]), whole.detach().double(), 1e-6)
    assert model(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_saved_model_predicts_the_same(name, tmp_path):
    model, x, _ = regression(kernel_regularizer="l2", kernel_constraint="max_norm", dtype="mixed_bfloat16")
    model.save(tmp_path / name)
    rebuilt = keras.saving.load_model(tmp_path / name)
    assert np.array_equal(rebuilt.predict(x, verbose=0), model.predict(x, verbose=0))
    assert rebuilt.get_layer("local").get_config() == model.get_layer("local").get_config()


def test_saved_weights_load(tmp_path):
    model, x, _ = regression()
    model.save_weights(tmp_path / "model.weights.h5")
    other, _, _ = regression(kernel_initializer="zeros")
    assert not np.array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))
    other.load_weights(tmp_path / "model.weights.h5")
    assert np.array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))


def test_models_are_cloned_and_pickled():
    model, x, _ = regression(activity_regularizer="l1")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for other in (clone, pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_model_is_trained_by_torch():
    model, x, y = regression()
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    assert len(list(model.parameters())) == len(model.trainable_variables) == 6
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.mse_loss(model(x, training=True), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


class Outer(keras.layers.Layer):
    """A layer without an output shape: Keras runs it on tensors without data to find the shape."""

    def __init__(self):
        super().__init__()
        self.inner = layers.LocallyConnected1D(3, 2, activation="relu")

    def call(self, inputs):
        return self.inner(inputs)


@pytest.mark.filterwarnings("ignore:Layer 'outer:UserWarning", "ignore:`build:UserWarning")
def test_inside_a_layer_without_an_output_shape():
    assert Outer()(keras.Input((5, 2))).shape == (None, 4, 3)
    with pytest.raises(errors.KernelTooLargeError, match="wider than the padded input 1"):
        Outer()(keras.Input((1, 2)))
