"""Outputs and training steps of all classes of layers that can be read, in float32 and float64."""

import json
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lc_triton
from lc_triton.errors import ConversionError
from lc_triton.keras import load_model, save_model, save_weights
from lc_triton.keras.saved.arguments import Place
from lc_triton.keras.saved.model import CLASSES
from tests.keras.outputs import extract_archive

pytestmark = pytest.mark.subprocess

ARCHIVE = Path(__file__).parent / "saved" / "layers.zip"
MODELS = ("recurrent", "windows_channels_last", "windows_channels_first", "scaled", "attending")
# test_models_are_saved_as_torch_and_keras_files also compares float32 outputs of the same models.
NAMES = [
    *(pytest.param(name, marks=pytest.mark.nightly) for name in MODELS),
    *(f"{name}_float64" for name in MODELS),
]
RATE = 0.05  # the learning rate of saved/make_layers.py
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return extract_archive("layers", tmp_path_factory.mktemp("layers"))


class Golden:
    """The inputs of a model, and the outputs and loss that tf_keras computed."""

    def __init__(self, folder, name):
        self.first = "channels_first" in name  # TensorFlow computed these with channels last
        data, self.key = np.load(folder / "outputs.npz"), name.replace("channels_first", "channels_last")
        self.inputs, self.outputs = self._numbered(data, "x"), self._numbered(data, "y")
        self.loss = float(data[f"{self.key}/loss"])
        config = json.loads((folder / f"{name}.json").read_text())["config"]
        kinds = {layer["name"]: layer["class_name"] for layer in config["layers"]}
        self.kinds = [kinds[output[0]] for output in config["output_layers"]]

    def _numbered(self, data, letter):
        found = []
        while f"{self.key}/{letter}{len(found)}" in data:
            array = torch.from_numpy(data[f"{self.key}/{letter}{len(found)}"])
            found.append(array.movedim(-1, 1) if self.first else array)
        return found

    def check(self, outputs):
        assert len(outputs) == len(self.outputs) == len(self.kinds)
        for got, want, kind in zip(outputs, self.outputs, self.kinds, strict=True):
            assert got.shape == want.shape, kind
            error = (got.double() - want.double()).abs().max() / want.double().abs().max()
            assert error <= TOLERANCE[got.dtype], (kind, error)


def read(folder, name, kind="h5"):
    config = folder / f"{name}.json" if kind.endswith("weights.h5") else None
    return load_model(folder / f"{name}.{kind}", config=config)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_a_training_step_are_those_of_keras(folder, name):
    golden, model = Golden(folder, name), read(folder, name)
    outputs = model(*golden.inputs)
    golden.check(outputs)
    loss = sum(y.square().mean() for y in outputs) + lc_triton.regularization_loss(model)
    exact = model.state_dict()[next(iter(model.state_dict()))].dtype == torch.float64
    assert abs(loss.item() / golden.loss - 1) < (1e-12 if exact else 1e-6)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], RATE)
    lc_triton.attach_constraints(model, optimizer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loss.backward()
    optimizer.step()
    last = name.replace("channels_first", "channels_last")
    want = load_model(folder / f"{last}.after.weights.h5", config=folder / f"{last}.json").state_dict()
    for (key, value), wanted in zip(model.state_dict().items(), want.values(), strict=True):
        scale = wanted.abs().max().clamp(min=1) if wanted.is_floating_point() else 1
        assert (value - wanted).abs().max() <= (1e-11 if exact else 2e-6) * scale, key
    unchanged = {key for key, p in model.named_parameters() if p.requires_grad and torch.equal(before[key], p)}
    # A softmax does not depend on the bias of keys.
    assert all(key.endswith("key.bias") for key in unchanged), unchanged
    assert all(torch.equal(before[key], p) for key, p in model.named_parameters() if not p.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_are_saved_as_torch_and_keras_files(folder, name, tmp_path):
    h5py = pytest.importorskip("h5py")
    golden, model = Golden(folder, name), read(folder, name, "weights.h5")
    save_model(model, tmp_path / "model.pt")
    with torch.no_grad():
        golden.check(load_model(tmp_path / "model.pt")(*golden.inputs))
    save_weights(model, tmp_path / "back.weights.h5")
    with h5py.File(folder / f"{name}.weights.h5") as want, h5py.File(tmp_path / "back.weights.h5") as got:
        assert arrays(got).keys() == arrays(want).keys()
        for place, value in arrays(want).items():
            assert np.array_equal(arrays(got)[place], value), place


def arrays(file):
    found = {}
    file["layers"].visititems(lambda at, item: found.update({at: item[()]}) if hasattr(item, "shape") else None)
    return found


def layers_of(config):
    for layer in config["layers"]:
        yield layer["class_name"]
        yield from (value["class_name"] for value in layer["config"].values() if is_layer(value))


def is_layer(value):
    return isinstance(value, dict) and value.get("class_name") in CLASSES


@cache
def saved_classes():
    """The classes of layers in all saved models."""
    found = set()
    for path in ARCHIVE.parent.glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".json"):
                    content = json.loads(archive.read(name))
                    found |= set(layers_of(content["config"])) if "config" in content else set()
    for path in ARCHIVE.parent.glob("*.json"):
        content = json.loads(path.read_text())
        if "config" in content:
            found |= set(layers_of(content["config"]))
    return found


@pytest.mark.slow
def test_recurrent_layers_handle_dropout_in_training(folder):
    golden, model = Golden(folder, "recurrent"), read(folder, "recurrent")
    torch.manual_seed(0)
    first, second = model.train()(*golden.inputs), model(*golden.inputs)
    names = [ref.layer for ref in model.keras.outputs]
    differ = {name for name, a, b in zip(names, first, second, strict=True) if not torch.equal(a, b)}
    layers = {s.name: s.config for s in model.keras.layers}
    drops = {n for n in names if layers[n].get("dropout") or layers[n].get("recurrent_dropout")}
    assert differ == drops
    assert len(drops) >= 3
    for name, y in zip(names, first, strict=True):
        assert y.isfinite().all(), name


def test_dropout_keeps_the_mean():
    """The mean over many samples of a linear layer with dropout equals the output without dropout."""
    from lc_triton.keras.saved.arguments import Place
    from lc_triton.keras.saved.recurrent import RecurrentArguments

    for implementation in (1, 2):
        given = {"activation": "linear", "units": 2, "dropout": 0.4, "recurrent_dropout": 0.3}
        arguments = RecurrentArguments(name="rnn", **given, implementation=implementation, use_bias=False)
        layer = arguments.module(Place("SimpleRNN", ((1, 3),)))
        torch.manual_seed(1)
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        x, state = torch.randn(1, 1, 3).expand(20000, -1, -1), torch.randn(1, 2).expand(20000, -1)
        want = layer.eval()(x[:1], state[:1])
        got = layer.train()(x, state)
        assert got.std(0).min() > 0.3
        assert (got.mean(0) - want[0]).abs().max() < 0.06


def test_noise_is_added_only_in_training():
    x = torch.ones(400, 300)
    torch.manual_seed(0)
    layers = {
        name: CLASSES[name](name=name, **given).module(place(name, (300,)))
        for name, given in (
            ("GaussianNoise", {"stddev": 0.5}),
            ("GaussianDropout", {"rate": 0.2}),
            ("AlphaDropout", {"rate": 0.2}),
        )
    }
    for name, layer in layers.items():
        assert torch.equal(layer.eval()(x), x), name
        y = layer.train()(x)
        assert not torch.equal(y, x), name
    assert abs(layers["GaussianNoise"](x).std() - 0.5) < 0.01
    assert abs(layers["GaussianNoise"](x).mean() - 1) < 0.01
    assert abs(layers["GaussianDropout"](x).std() - 0.5) < 0.01  # sqrt(0.2 / 0.8)
    normal = torch.randn(400, 300)
    assert abs(layers["AlphaDropout"](normal).mean()) < 0.02
    assert abs(layers["AlphaDropout"](normal).std() - 1) < 0.02


def place(class_name, *shapes):
    return Place(class_name, shapes)


@pytest.mark.parametrize(
    ("class_name", "given", "shape", "zero_axes"),
    [
        ("SpatialDropout1D", {"rate": 0.5}, (6, 4), (1,)),
        ("SpatialDropout2D", {"rate": 0.5, "data_format": "channels_first"}, (4, 5, 6), (2, 3)),
        ("SpatialDropout3D", {"rate": 0.5}, (3, 5, 6, 4), (1, 2, 3)),
        ("Dropout", {"rate": 0.5, "noise_shape": [None, 1, 4]}, (6, 4), (1,)),
    ],
)
def test_whole_channels_are_dropped(class_name, given, shape, zero_axes):
    layer = CLASSES[class_name](name="drop", **given).module(place(class_name, shape))
    x = torch.ones(50, *shape)
    assert torch.equal(layer.eval()(x), x)
    torch.manual_seed(0)
    y = layer.train()(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(y.amax(zero_axes), y.amin(zero_axes))  # all numbers of a channel are kept or dropped together
    assert 0.3 < (y == 0).float().mean() < 0.7


def test_random_image_layers_are_refused_in_training(folder):
    golden, model = Golden(folder, "scaled"), read(folder, "scaled")
    with pytest.raises(ConversionError) as raised:
        model.train()(*golden.inputs)
    assert str(raised.value).startswith("layer 'random_")
    assert "changes images at random in training" in str(raised.value)
    for name in [s.name for s in model.keras.layers if s.class_name.startswith("Random")]:
        getattr(model, name).eval()
    model(*golden.inputs)


# The operators are in test_saved_graphs.py. The outputs of RandomHeight and RandomWidth have no shape that a layer
# could be made for. tf_keras writes BatchNormalization for its V1 and V2, and has no LocallyConnected3D.
# ConvLSTM is in test_saved_more.py.
NOT_COMPARED = {
    *("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"),
    *("BatchNormalizationV1", "BatchNormalizationV2", "LocallyConnected3D"),
    *("RandomHeight", "RandomWidth", "TFOpLambda", "SlicingOpLambda"),
}


def test_every_class_is_compared_with_keras():
    missing = set(CLASSES) - saved_classes() - NOT_COMPARED
    assert not missing, missing


def of_lstm(**config):
    return {"class_name": "LSTM", "config": {"units": 2, **config}}


def of_cells(**config):
    cell = {"class_name": "SimpleRNNCell", "config": {"units": 2, **config}}
    return {"class_name": "StackedRNNCells", "config": {"cells": [cell]}}


@pytest.mark.parametrize(
    ("class_name", "given", "shapes", "message"),
    [
        ("LSTM", {"units": 2}, [(5,)], "it takes inputs of steps and channels"),
        ("LSTM", {"units": 2, "stateful": True}, [(5, 3), (2,), (2,)], "stateful=True with states of its own"),
        ("ConvLSTM2D", {"filters": 2, "kernel_size": 3}, [(5, 5, 2)], "it takes inputs with 4 axes beside the batch"),
        ("LSTM", {"units": 2}, [(5, 3), (2,)], "it takes one input and 2 state(s), and is given 2 tensors"),
        ("Bidirectional", {"layer": {"class_name": "Dense", "config": {}}}, [(5, 3)], "its layer is a Dense"),
        ("Cropping2D", {"cropping": [[3, 3], [0, 0]]}, [(6, 5, 2)], "leaves nothing of an input"),
        ("Cropping1D", {"cropping": -1}, [(6, 2)], "is not one pair of sizes"),
        ("Conv2DTranspose", {"filters": 2, "kernel_size": 3, "padding": "causal"}, [(5, 5, 2)], "none of valid, same"),
        ("Conv1DTranspose", {"filters": 2, "kernel_size": 3, "output_padding": 1}, [(5, 2)], "below the strides (1,)"),
        ("GroupNormalization", {"groups": 3}, [(5, 5, 4)], "4 channels cannot be split into 3 groups"),
        ("Subtract", {}, [(3,), (3,), (3,)], "it takes two inputs, and is given 3"),
        ("Dot", {"axes": 1}, [(3,)], "it takes two inputs and one or two axes"),
        ("RepeatVector", {"n": 2}, [(3, 3)], "it takes inputs with one axis"),
        ("UpSampling3D", {"size": 2, "interpolation": "bilinear"}, [(2, 2, 2, 1)], "is for images, and it is 3-D"),
        ("Rescaling", {"scale": "x"}, [(3,)], "its scale x is no number"),
        ("Normalization", {"mean": [1.0, 2.0], "variance": 1.0}, [(3,)], "neither a finite number nor a list of 3"),
        ("MultiHeadAttention", {"num_heads": 2, "key_dim": 3}, [(4, 3)], "it takes a query, a value"),
        ("Attention", {}, [(4, 3)], "it takes a query, a value"),
        ("Dropout", {"rate": 0.5, "noise_shape": [None, 2]}, [(3,)], "has no size, 1 or None for each axis"),
        ("RandomCrop", {"height": 0, "width": 2}, [(4, 4, 3)], "is no height and width"),
        ("Resizing", {"height": 2, "width": 2}, [(4, 4)], "it takes images with channels last"),
        ("Dense", {"units": 2}, [()], "it takes inputs with a last axis"),
        ("Dense", {"units": 2}, [(3,), (3,)], "it takes one input, and is given 2"),
        ("Conv2D", {"filters": 2, "kernel_size": 3}, [(5, 5)], "it takes inputs with 3 axes beside the batch"),
        ("Concatenate", {}, [], "it takes inputs, and is given none"),
        ("Concatenate", {"axis": 2}, [(3,), (3,)], "axis=2 is no axis of an input with 2 axes"),
        ("Concatenate", {"axis": -2}, [(3,), (3,)], "axis=-2 is no axis of an input with 2 axes"),
        (
            "MultiHeadAttention",
            {"num_heads": 2, "key_dim": 3, "attention_axes": [2]},
            [(4, 3), (4, 3)],
            "attention_axes=(2,) are no axes of sites",
        ),
        ("Bidirectional", {"layer": of_lstm(dtype="float64")}, [(5, 3)], "another dtype than itself, float64"),
        ("Bidirectional", {"layer": of_lstm(kernel_regularizer="mine")}, [(5, 3)], "its kernel_regularizer: "),
        ("RNN", {"cell": of_cells(kernel_regularizer="mine")}, [(5, 3)], "its kernel_regularizer: "),
        ("RNN", {"cell": of_cells()}, [(5, 3), (2,), (2,)], "it is given 1 state(s) more than its cells have"),
        ("CategoryEncoding", {"num_tokens": 3, "dtype": "complex64"}, [(3,)], "its dtype complex64 is none of"),
        ("CategoryEncoding", {"num_tokens": 3}, [(3,), (3,)], "count_weights are given to it"),
        ("Activation", {"activation": {"class_name": "PReLU"}}, [(3,)], "its activation PReLU has weights of its own"),
        (
            "Activation",
            {"activation": {"class_name": "LeakyReLU", "config": {"alpha": "x"}}},
            [(3,)],
            "its activation LeakyReLU: Input should be a valid",
        ),
        (
            "ConvLSTM2D",
            {"filters": 2, "kernel_size": 3, "padding": "causal"},
            [(5, 4, 4, 2)],
            "its padding 'causal' is none of valid, same",
        ),
        ("Conv2DTranspose", {"filters": 2, "kernel_size": 3, "groups": 2}, [(5, 5, 2)], "groups=2 is not 1"),
        ("Reshape", {"target_shape": [4]}, [(6,)], "(6,) does not fit into target_shape=(4,)"),
        ("Reshape", {"target_shape": [4, -1]}, [(6,)], "(6,) does not fit into target_shape=(4, -1)"),
        ("Reshape", {"target_shape": [-1, -1]}, [(6,)], "(6,) does not fit into target_shape=(-1, -1)"),
        ("Permute", {"dims": [1, 3]}, [(2, 3)], "dims=(1, 3) is no order of the 2 axes"),
        ("SpectralNormalization", {"layer": None}, [(3,)], "it wraps no layer"),
        ("TimeDistributed", {"layer": None}, [(5, 3)], "it wraps no layer"),
        ("TimeDistributed", {"layer": None}, [(3,)], "it takes sequences of samples, and is given shape (3,)"),
    ],
)
def test_refused_layers(class_name, given, shapes, message):
    with pytest.raises(ValueError, match=r"(?s).") as raised:
        CLASSES[class_name](name="layer", **given).module(place(class_name, *shapes))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("class_name", "given", "shapes", "text"),
    [
        ("Activation", {"activation": "tanh"}, [(3,)], "Activation(name='tanh', constant=0.0)"),
        (
            "ReLU",
            {"max_value": 6.0, "negative_slope": 0.1, "threshold": 1.0},
            [(3,)],
            "slope=0.1, threshold=1.0, ceiling=6.0",
        ),
        ("Softmax", {"axis": [1, 2]}, [(3, 4)], "axes=(1, 2)"),
        ("Bidirectional", {"layer": of_lstm(), "merge_mode": "sum"}, [(5, 3)], "merge='sum'"),
        ("CategoryEncoding", {"num_tokens": 3, "output_mode": "count"}, [(4,)], "3, mode='count'"),
        ("RNN", {"cell": of_cells(), "return_sequences": True}, [(5, 3)], "sequences=True, backwards=False"),
        (
            "Conv2D",
            {"filters": 2, "kernel_size": 3, "strides": 2, "padding": "same"},
            [(5, 5, 4)],
            "(2, 4, 3, 3), stride=(2, 2), padding='same', groups=1, channels_last",
        ),
        (
            "ConvLSTM1D",
            {"filters": 2, "kernel_size": 3},
            [(5, 6, 4)],
            "(8, 4, 3), stride=(1,), padding='valid', sequences=False",
        ),
        ("EinsumDense", {"equation": "ab,bc->ac", "output_shape": [3]}, [(4,)], "'ab,bc->ac', kernel=(4, 3)"),
        ("Embedding", {"input_dim": 7, "output_dim": 2}, [(4,)], "7, 2"),
        ("GroupNormalization", {"groups": 2}, [(5, 4)], "2 groups, axis=2, eps=0.001"),
        ("UnitNormalization", {}, [(5, 4)], "axes=(2,)"),
        ("Masking", {"mask_value": -1.0}, [(5, 4)], "value=-1.0"),
        ("Multiply", {}, [(4,), (4,)], "mul"),
        ("Dot", {"axes": 1, "normalize": True}, [(4,), (4,)], "axes=(1, 1), normalize=True"),
        ("Concatenate", {"axis": 1}, [(4,), (4,)], "axis=1"),
        ("Dropout", {"rate": 0.5, "noise_shape": [None, 1]}, [(4,)], "0.5, shape=(None, 1)"),
        ("GaussianNoise", {"stddev": 0.2}, [(4,)], "0.2"),
        ("GaussianDropout", {"rate": 0.3}, [(4,)], "0.3"),
        ("BatchNormalization", {"momentum": 0.75}, [(5, 4)], "(4,), axes=(2,), eps=0.001, momentum=0.25"),
        ("LayerNormalization", {}, [(5, 4)], "(4,), axes=(2,), eps=0.001"),
        ("TFOpLambda", {"function": "math.add"}, [(4,)], "math.add"),
        ("AveragePooling1D", {"pool_size": 2}, [(6, 4)], "mean, (2,), stride=(2,), padding='valid', channels_last"),
        ("GlobalMaxPooling2D", {"keepdims": True}, [(6, 5, 4)], "max, (1, 2), keepdims=True"),
        ("Rescaling", {"scale": 2.0, "offset": -1.0}, [(4,)], "scale=2.0, offset=-1.0"),
        ("RandomFlip", {}, [(6, 5, 3)], "RandomFlip"),
        ("LSTM", {"units": 2, "go_backwards": True}, [(5, 3)], "3, 2, sequences=False, backwards=True"),
        ("UpSampling2D", {"size": 2}, [(4, 4, 3)], "(2, 2), 'nearest', channels_first=False"),
        ("Resizing", {"height": 2, "width": 3}, [(4, 4, 3)], "(2, 3), 'bilinear', crop=False"),
        ("Reshape", {"target_shape": [2, -1]}, [(6,)], "(2, -1)"),
        ("Permute", {"dims": [2, 1]}, [(6, 5)], "(2, 1)"),
        ("ZeroPadding1D", {"padding": [1, 2]}, [(6, 5)], "((1, 2),)"),
        ("Cropping1D", {"cropping": [1, 2]}, [(6, 5)], "((1, 2),)"),
        ("RepeatVector", {"n": 3}, [(6,)], "3"),
        (
            "Conv1DTranspose",
            {"filters": 2, "kernel_size": 3, "strides": 2},
            [(6, 4)],
            "(4, 2, 3), stride=(2,), padding='valid', channels_last",
        ),
    ],
)
def test_what_a_layer_prints(class_name, given, shapes, text):
    assert CLASSES[class_name](name="layer", **given).module(place(class_name, *shapes)).extra_repr() == text


class Outputs(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.stateful = kind, kind == "stateful"

    def forward(self, x):
        return {"a": x + 1, "b": x.sum(-1)} if self.kind == "dictionary" else (x + 1, x.sum(-1))


def around(kind):
    of = Place("TimeDistributed", ((5, 3),), inner={"layer": lambda shape: Outputs(kind)})
    return CLASSES["TimeDistributed"](name="steps", layer={}).module(of)


def test_several_outputs_of_a_layer_are_each_in_steps():
    x = torch.arange(30.0).reshape(2, 5, 3)
    for found in (tuple(around("dictionary")(x).values()), around("tuple")(x)):
        assert len(found) == 2
        assert torch.equal(found[0], x + 1)
        assert torch.equal(found[1], x.sum(-1))
    with pytest.raises(ValueError, match="wraps a layer with stateful=True"):
        around("stateful")


def test_masks_of_steps_that_are_concatenated():
    layer = CLASSES["Concatenate"](name="both", axis=1).module(place("Concatenate", (2, 3), (4, 3)))
    mask = torch.tensor([[True, False], [False, True]])
    inputs = torch.zeros(2, 2, 3), torch.zeros(2, 4, 3)
    found = layer.output_mask(inputs, (mask, None))
    assert torch.equal(found, torch.cat([mask, torch.ones(2, 4, dtype=torch.bool)], 1))
    assert torch.equal(layer.output_mask(inputs[::-1], (None, mask)), found.roll(4, 1))


class TorchModules(nn.Module):
    """Modules of torch with the names of layers in `recurrent`."""

    def __init__(self):
        super().__init__()
        self.simple_rnn = nn.RNN(4, 3, batch_first=True)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.gru = nn.GRU(4, 4, batch_first=True)
        self.bidirectional = nn.LSTM(4, 2, batch_first=True, bidirectional=True)


def assert_outputs_equal_keras(model, golden, names):
    (x,) = golden.inputs
    for name, sequences in (("simple_rnn", False), ("lstm", True), ("gru", False), ("bidirectional", True)):
        y = getattr(model, name)(x)[0]
        want = golden.outputs[names.index(name)]
        assert (y if sequences else y[:, -1]).sub(want).abs().max() <= 1e-6 * want.abs().max(), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h5", "weights.h5"])
def test_weights_are_loaded_into_recurrent_modules_of_torch(folder, kind, tmp_path):
    golden, model = Golden(folder, "recurrent"), TorchModules()
    config = folder / "recurrent.json"
    names = [output[0] for output in json.loads(config.read_text())["config"]["output_layers"]]
    given = config if kind == "weights.h5" else None
    report = lc_triton.keras.load_weights(model, folder / f"recurrent.{kind}", config=given, strict=False)
    assert {name for name, _ in report.matched} == {"simple_rnn", "lstm", "gru", "bidirectional"}
    assert not report.missing
    assert_outputs_equal_keras(model, golden, names)
    save_weights(model, tmp_path / "own.weights.h5")
    rebuilt = TorchModules()
    lc_triton.keras.load_weights(rebuilt, tmp_path / "own.weights.h5")
    assert_outputs_equal_keras(rebuilt, golden, names)


@pytest.mark.slow
def test_weights_are_loaded_into_embeddings_and_transposed_convolutions_of_torch(folder):
    golden = Golden(folder, "scaled")
    model = nn.Sequential(nn.Embedding(11, 4))
    lc_triton.keras.load_weights(model, folder / "scaled.h5", {"embedding": "0"}, strict=False)
    assert torch.equal(model(golden.inputs[0].long()), golden.outputs[golden.kinds.index("Embedding")])
    golden = Golden(folder, "windows_channels_first")
    config = json.loads((folder / "windows_channels_first.json").read_text())["config"]
    names = [output[0] for output in config["output_layers"]]
    given = {"output_padding": [1, 0], "kernel_size": [3, 2]}
    (name,) = (s["name"] for s in config["layers"] if s["config"].items() >= given.items())
    model = nn.Sequential(nn.ConvTranspose2d(4, 2, (3, 2), 2, output_padding=(1, 0), bias=False))
    lc_triton.keras.load_weights(model, folder / "windows_channels_first.h5", {name: "0"}, strict=False)
    want = golden.outputs[names.index(name)]
    assert (model(golden.inputs[1]) - want).abs().max() <= 1e-6 * want.abs().max()


def test_recurrent_modules_of_several_layers_are_not_saved():
    with pytest.raises(lc_triton.LocalConvError, match="belong to none: weight_ih_l0"):
        save_weights(nn.LSTM(2, 2, num_layers=2), "unused.weights.h5")
