"""Every layer that docs/keras.md lists, saved by the installed Keras 3 and read back."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lc_triton.errors import ConversionError
from lc_triton.keras import load_model, save_weights
from lc_triton.keras.saved.model import CLASSES
from tests.keras.keras3.common import QUIET, keras, layers

pytest.importorskip("h5py")

pytestmark = QUIET

DOCUMENT = Path(__file__).parents[3] / "docs" / "keras.md"

# Keras 3 does not have this layer; tests/keras/saved has it from tf_keras.
REMOVED = {"ThresholdedReLU"}

K = keras.layers
SEQUENCE, IMAGE, VOLUME = (9, 4), (8, 7, 4), (5, 4, 6, 2)

# The shape of the inputs of a layer, and functions that make the layer.
CASES = {
    "InputLayer": (IMAGE, [lambda: K.ReLU()]),
    "LocallyConnected1D": (SEQUENCE, [lambda: layers.LocallyConnected1D(3, 2, 2, activation="tanh")]),
    "LocallyConnected2D": (IMAGE, [lambda: layers.LocallyConnected2D(3, 2, padding="same", trainable=False)]),
    "LocallyConnected3D": (VOLUME, [lambda: layers.LocallyConnected3D(3, 2, use_bias=False)]),
    "Conv1D": (SEQUENCE, [lambda: K.Conv1D(4, 3, padding="causal", groups=2), lambda: K.Conv1D(3, 2, dilation_rate=2)]),
    "Conv2D": (
        IMAGE,
        [lambda: K.Conv2D(3, (3, 2), 2, "same", activation="gelu"), lambda: K.Conv2D(3, 1, use_bias=False)],
    ),
    "DepthwiseConv1D": (SEQUENCE, [lambda: K.DepthwiseConv1D(3, depth_multiplier=2)]),
    "DepthwiseConv2D": (IMAGE, [lambda: K.DepthwiseConv2D(3, padding="same", activation="silu")]),
    "Dense": (IMAGE, [lambda: K.Dense(5, activation="softmax"), lambda: K.Dense(2, use_bias=False)]),
    "Flatten": (IMAGE, [lambda: K.Flatten(), lambda: K.Flatten(data_format="channels_first")]),
    "Reshape": (IMAGE, [lambda: K.Reshape((4, -1, 2))]),
    "Permute": (IMAGE, [lambda: K.Permute((3, 1, 2))]),
    "MaxPooling1D": (SEQUENCE, [lambda: K.MaxPooling1D(3, 2, "same"), lambda: K.MaxPooling1D()]),
    "MaxPooling2D": (IMAGE, [lambda: K.MaxPooling2D((3, 2), 2, "same"), lambda: K.MaxPooling2D()]),
    "AveragePooling1D": (SEQUENCE, [lambda: K.AveragePooling1D(2), lambda: K.AveragePooling1D(4, 1)]),
    "AveragePooling2D": (IMAGE, [lambda: K.AveragePooling2D(2), lambda: K.AveragePooling2D((4, 2), 1)]),
    "GlobalMaxPooling1D": (SEQUENCE, [lambda: K.GlobalMaxPooling1D()]),
    "GlobalMaxPooling2D": (IMAGE, [lambda: K.GlobalMaxPooling2D(keepdims=True)]),
    "GlobalAveragePooling1D": (SEQUENCE, [lambda: K.GlobalAveragePooling1D(keepdims=True)]),
    "GlobalAveragePooling2D": (IMAGE, [lambda: K.GlobalAveragePooling2D()]),
    "BatchNormalization": (
        IMAGE,
        [
            lambda: K.BatchNormalization(),
            lambda: K.BatchNormalization(axis=1, scale=False, epsilon=1e-2),
            lambda: K.BatchNormalization(center=False, momentum=0.9, trainable=False),
            lambda: K.BatchNormalization(
                renorm=True, renorm_clipping={"rmin": 0.5, "rmax": 2.0, "dmax": 1.0}, renorm_momentum=0.5
            ),
            lambda: K.BatchNormalization(renorm=True, scale=False, axis=2),
        ],
    ),
    "LayerNormalization": (IMAGE, [lambda: K.LayerNormalization(), lambda: K.LayerNormalization((1, 3), center=False)]),
    "Dropout": (IMAGE, [lambda: K.Dropout(0.4, seed=3)]),
    "SpatialDropout1D": (SEQUENCE, [lambda: K.SpatialDropout1D(0.4)]),
    "SpatialDropout2D": (IMAGE, [lambda: K.SpatialDropout2D(0.4)]),
    "Activation": (IMAGE, [lambda n=n: K.Activation(n) for n in ("relu", "hard_sigmoid", "hard_silu", "log_softmax")]),
    "ReLU": (IMAGE, [lambda: K.ReLU(), lambda: K.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.2)]),
    "LeakyReLU": (IMAGE, [lambda: K.LeakyReLU(), lambda: K.LeakyReLU(negative_slope=0.1)]),
    "PReLU": (IMAGE, [lambda: K.PReLU(), lambda: K.PReLU(shared_axes=[1, 2])]),
    "ELU": (IMAGE, [lambda: K.ELU(alpha=0.7)]),
    "Softmax": (IMAGE, [lambda: K.Softmax(), lambda: K.Softmax(axis=2)]),
    "ZeroPadding1D": (SEQUENCE, [lambda: K.ZeroPadding1D((1, 2))]),
    "ZeroPadding2D": (IMAGE, [lambda: K.ZeroPadding2D(((1, 2), (0, 3)))]),
    "Add": (IMAGE, [lambda: K.Add()]),
    "Multiply": (IMAGE, [lambda: K.Multiply()]),
    "Maximum": (IMAGE, [lambda: K.Maximum()]),
    "Minimum": (IMAGE, [lambda: K.Minimum()]),
    "Concatenate": (IMAGE, [lambda: K.Concatenate(), lambda: K.Concatenate(axis=1)]),
}
TWO = ("Add", "Multiply", "Maximum", "Minimum", "Concatenate")


# Classes that the guide describes without their names: operators, other versions, and the 3-D layer of lc_triton.
NOT_IN_GUIDE = {"TFOpLambda", "SlicingOpLambda", "BatchNormalizationV1", "BatchNormalizationV2", "LocallyConnected3D"}


def documented():
    """The classes in the table of docs/keras.md, in which "Conv1D/2DTranspose" are two."""
    (table,) = re.findall(r"What can be read, .*?\n\n(.*?)\n\n", DOCUMENT.read_text(), re.DOTALL)
    cells = " ".join(row.split("|")[2] for row in table.splitlines()[2:])
    found = set()
    for name, dimensions, ending in re.findall(r"\b([A-Z][A-Za-z]*?)((?:[123]D/?)+)([A-Za-z]*)", cells):
        found |= {name + dimension + ending for dimension in dimensions.strip("/").split("/")}
    return found | set(re.findall(r"\b[A-Z][A-Za-z]+\b", cells))


def model_of(names):
    """A model with an output for each layer of some classes, with random weights, and its inputs."""
    keras.utils.set_random_seed(0)
    shapes = [shape for shape in (SEQUENCE, IMAGE, VOLUME) if shape in {CASES[name][0] for name in names}]
    inputs = {shape: [keras.Input(shape), keras.Input(shape)] for shape in shapes}
    outputs = []
    rng = np.random.default_rng(1)
    for name in names:
        shape, makers = CASES[name]
        for maker in makers:
            layer = maker()
            outputs.append(layer(inputs[shape] if name in TWO else inputs[shape][0]))
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    places = [place for pair in inputs.values() for place in pair]
    model = keras.Model(places, outputs)
    return model, [torch.from_numpy(rng.standard_normal((5, *x.shape[1:])).astype("float32")) for x in places]


def test_the_list_is_complete():
    found = documented()
    assert set(CASES) <= {*CLASSES, "InputLayer"}
    assert not set(CLASSES) - found - NOT_IN_GUIDE
    assert not {name for name in found if hasattr(K, name) and name not in CLASSES}
    assert not any(hasattr(K, name) for name in REMOVED)
    assert {name for name in CASES if not hasattr(K, name)} == {name for name in CASES if name.startswith("Locally")}


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.filterwarnings("ignore:.*HDF5 file:UserWarning")
@pytest.mark.parametrize("kind", ["keras", "h5", "weights.h5"])
def test_every_layer_is_read_back(kind, tmp_path):
    model, inputs = model_of(CASES)
    with torch.no_grad():
        wanted = model(inputs, training=False)
    path = tmp_path / f"model.{kind}"
    model.save_weights(path) if kind == "weights.h5" else model.save(path)
    read = load_model(path, config=model.to_json() if kind == "weights.h5" else None)
    with torch.no_grad():
        outputs = read(*inputs)
    assert len(outputs) == len(wanted) == sum(len(makers) for _, makers in CASES.values())
    for place, got, want in zip(model.outputs, outputs, wanted, strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype), place.name
        assert (got - want).abs().max() <= 1e-6 * want.abs().max(), place.name
    frozen = {name for name, layer in read.named_children() if any(not p.requires_grad for p in layer.parameters())}
    assert frozen == {layer.name for layer in model.layers if layer.weights and not layer.trainable}
    save_weights(read, tmp_path / "back.weights.h5")
    before = model.get_weights()
    model.set_weights([np.zeros(w.shape) for w in before])
    model.load_weights(tmp_path / "back.weights.h5")
    assert all(np.array_equal(w, b) for w, b in zip(model.get_weights(), before, strict=True))


def normalization_model(i):
    """A model with one of the batch normalizations above, and its input."""
    shape, makers = CASES["BatchNormalization"]
    layer = makers[i]()
    model = keras.Sequential([keras.Input(shape), layer])
    rng = np.random.default_rng(1)
    layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model, torch.from_numpy(rng.standard_normal((5, *shape)).astype("float32"))


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("i", range(5))
def test_batch_normalization_trains_as_in_keras(i, tmp_path):
    model, x = normalization_model(i)
    model.save(tmp_path / "model.keras")
    got = load_model(tmp_path / "model.keras").train()
    for step in range(3):
        batch = x * (step + 1) + step
        want, y = model(batch, training=True), got(batch)
        assert (y - want).abs().max() <= 1e-5 * want.abs().max()
        model.zero_grad()
        got.zero_grad()
        if any(p.requires_grad for p in got.parameters()):
            (want * x).sum().backward()
            (y * x).sum().backward()
            theirs = [w.value.grad for w in model.trainable_weights]
            for p, gradient in zip(got.parameters(), theirs, strict=True):
                assert (p.grad - gradient).abs().max() <= 1e-4 * gradient.abs().max()
    save_weights(got, tmp_path / "back.weights.h5")
    after = model.get_weights()
    model.load_weights(tmp_path / "back.weights.h5")
    for w, b in zip(model.get_weights(), after, strict=True):
        assert np.allclose(w, b, rtol=1e-2 if i < 2 else 1e-4, atol=1e-5)  # Keras divides by n, torch by n - 1


@pytest.mark.subprocess
def test_a_wrong_batch_renormalization_is_named(tmp_path):
    model, _ = normalization_model(3)
    for wrong in ('"rmax": "a"', '"rmax": 2.0, "most": 3.0'):
        config = model.to_json().replace('"rmax": 2.0', wrong)
        model.save_weights(tmp_path / "model.weights.h5")
        with pytest.raises(ConversionError, match="renorm_clipping"):
            load_model(tmp_path / "model.weights.h5", config=config)
