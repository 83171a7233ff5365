"""Export by Keras of a model with the layers for Keras 3."""

import numpy as np
import pytest
import torch

from tests.keras.keras3.common import keras, layers


@pytest.fixture(params=[True, False], ids=["trainable", "frozen"])
def model(request):
    inputs = keras.Input((6, 7, 2))
    y = layers.LocallyConnected2D(3, (3, 2), activation="gelu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(y)))
    model.trainable = request.param
    model(sample(2))
    return model


def sample(batch):
    return np.random.default_rng(batch).normal(size=(batch, 6, 7, 2)).astype("float32")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_onnx(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (given,) = session.get_inputs()
    for batch in (1, 2, 5):
        x = sample(batch)
        (y,) = session.run(None, {given.name: x})
        np.testing.assert_allclose(y, model(x).detach().numpy(), atol=1e-5)


def test_torch(model, tmp_path):
    model.export(tmp_path / "model.pt2", format="torch", verbose=False)
    program, x = torch.export.load(tmp_path / "model.pt2").module(), sample(1)  # Keras fixes the batch at 1
    np.testing.assert_allclose(
        program(torch.from_numpy(x))[0].detach().numpy(), model(x)[0].detach().numpy(), atol=1e-5
    )
