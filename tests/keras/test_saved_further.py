"""Outputs and training steps of the models of saved/make_further.py: norms, cells, calls."""

import json
import re

import numpy as np
import pytest
import torch

import lc_triton
from lc_triton.errors import ConversionError, KerasFileError
from lc_triton.keras import load_model, load_weights, save_weights
from lc_triton.keras.saved import activated, spec
from lc_triton.keras.saved.model import build
from lc_triton.keras.saved.references import Ref
from lc_triton.keras.saved.spec import parse
from tests.keras.outputs import assert_outputs_close, extract_archive, load_arrays

pytestmark = pytest.mark.subprocess

RATE = 0.05
MODELS = ("normalized", "stacked", "called")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return extract_archive("further", tmp_path_factory.mktemp("further"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_a_training_step_are_those_of_keras(folder, name):
    model, inputs = load_model(folder / f"{name}.h5"), load_arrays(folder, name, "x")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        assert_outputs_close(model(*inputs), load_arrays(folder, name, "y"))
    model.load_state_dict(before)  # layers called with training=True also update their statistics in prediction
    outputs = [y for y in model.train()(*inputs) if y.dtype == torch.float32]
    loss = sum(y.square().mean() for y in outputs) + lc_triton.regularization_loss(model)
    assert abs(loss.item() / float(np.load(folder / "outputs.npz")[f"{name}/loss"]) - 1) < 1e-6
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], RATE)
    lc_triton.attach_constraints(model, optimizer)
    loss.backward()
    optimizer.step()
    want = load_model(folder / f"{name}.after.h5").state_dict()
    for key, value in model.state_dict().items():
        assert (value - want[key]).abs().max() <= 2e-6 * want[key].abs().max().clamp(min=1), key
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_weights_are_written_and_loaded_from_each_kind_of_file(folder, name, tmp_path):
    model = load_model(folder / f"{name}.keras")
    save_weights(model, tmp_path / "back.weights.h5")
    want = {key: value.clone() for key, value in model.state_dict().items()}
    for path, config in ((folder / f"{name}.h5", None), (tmp_path / "back.weights.h5", model.keras.config)):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.detach().zero_()
        load_weights(model, path, config=config)
        assert all(torch.equal(value, want[key]) for key, value in model.state_dict().items()), path


def functional(*layers):
    """The configuration of a model with an input `x` (6, 4); each layer is (class, arguments, *calls)."""
    entries = [{"class_name": "InputLayer", "name": "x", "config": {"batch_input_shape": [None, 6, 4]}}]
    for kind, config, *calls in layers:
        nodes = [[["x", 0, 0, call]] for call in calls]
        entries.append({"class_name": kind, "name": kind, "config": config, "inbound_nodes": nodes})
    ends = {"input_layers": [["x", 0, 0]], "output_layers": [[entries[-1]["name"], 0, 0]]}
    return parse(json.dumps({"class_name": "Functional", "config": {"name": "m", "layers": entries, **ends}}), "m")


def test_layers_called_with_training_are_always_in_training():
    model = build(functional(("Dropout", {"rate": 0.5}, {"training": True}))).model
    for mode in (True, False):
        assert model.train(mode).Dropout.training
    x = torch.ones(2, 6, 4)
    assert set(model.eval()(x).unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    ("kind", "config", "calls", "message"),
    [
        ("Dropout", {"rate": 0.5}, [{"training": True}, {}], "training=True here, and otherwise elsewhere"),
        ("EinsumDense", {"equation": "ab,bc", "output_shape": 3}, [{}], "its equation 'ab,bc' is none like"),
        ("EinsumDense", {"equation": "ab,bc->ac", "output_shape": 3}, [{}], "is not for inputs of shape (6, 4)"),
        ("EinsumDense", {"equation": "abc,cd->abd", "output_shape": [5, 3]}, [{}], "another size for 'b'"),
        ("EinsumDense", {"equation": "abc,cde->abd", "output_shape": [None, 3]}, [{}], "e in its equation"),
        ("CategoryEncoding", {"num_tokens": 3}, [{}], "takes one list a sample, and is given shape (6, 4)"),
        ("CategoryEncoding", {"num_tokens": 3, "sparse": True}, [{}], "sparse=True has no counterpart here"),
        ("Discretization", {"bin_boundaries": None}, [{}], "bin_boundaries=layer.bin_boundaries, and save"),
        ("Discretization", {"bin_boundaries": [2, 1]}, [{}], "are not in ascending order"),
        ("IntegerLookup", {"vocabulary": None}, [{}], "vocabulary=layer.get_vocabulary(), and save"),
        ("IntegerLookup", {"vocabulary": [1, 1]}, [{}], "has no number, or one twice"),
        ("IntegerLookup", {"vocabulary": [1], "mask_token": 0, "output_mode": "count"}, [{}], "mask_token=0 with"),
        ("BatchNormalization", {"axis": []}, [{}], "its axis names no axis"),
        ("RNN", {"cell": {"class_name": "StackedRNNCells", "config": {"cells": []}}}, [{}], "hold no cells"),
        ("RNN", {"cell": {"class_name": "Mine", "config": {}}}, [{}], "its cell is a Mine, where SimpleRNNCell"),
        (
            "SpectralNormalization",
            {"layer": {"class_name": "Flatten", "config": {"name": "f"}}},
            [{}],
            "its layer is a Flatten, which has no kernel and no embeddings",
        ),
    ],
)
def test_refused_layers_and_calls(kind, config, calls, message):
    with pytest.raises(ConversionError) as raised:
        build(functional((kind, config, *calls)))
    assert message in str(raised.value)
    assert f'modules={{"{kind}": lambda layer: MyModule()}}' in str(raised.value)


def of_dense(**config):
    return {"class_name": "Dense", "name": "y", "config": {"units": 3, **config}, "inbound_nodes": [[["x", 0, 0, {}]]]}


X = {"class_name": "InputLayer", "name": "x", "config": {"batch_input_shape": [None, 6, 4]}}
Y = of_dense()


def document(*layers, **ends):
    ends = {"input_layers": [["x", 0, 0]], "output_layers": [["y", 0, 0]], **ends}
    return {"class_name": "Functional", "config": {"name": "m", "layers": list(layers), **ends}}


def called_with(*nodes):
    return document(X, {**Y, "inbound_nodes": list(nodes)})


def deep(value, depth, around):
    for _ in range(depth):
        value = around(value)
    return value


def inside_a_model(layer):
    return {"class_name": "Sequential", "config": {"name": "s", "layers": [layer]}}


def inside_a_wrapper(layer):
    return {"class_name": "TimeDistributed", "config": {"name": "t", "layer": layer}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"class_name": "Sequential", "config": {"layers": []}}, "a model without layers"),
        (document(X, Y, input_layers=[]), "a model without inputs or outputs"),
        (document(X, {**X, "name": "z"}, Y), "a model whose inputs are not its InputLayers"),
        (document(X, Y, {**Y, "name": "z", "inbound_nodes": []}), "layer 'z' is called nowhere"),
        (document(X, {"class_name": "Flatten", "config": {}}), "a layer without name or class"),
        (document(X, Y, Y), "two layers of the name 'y'"),
        (document(X, 7), "a layer should be a mapping, got 7"),
        (
            document(X, Y, output_layers={"a": [["y", 0, 0], ["x", 0, 0]]}),
            "a dictionary of other things than tensors",
        ),
        (called_with([["x", 0]]), "a reference to a layer that cannot be read: ['x', 0]"),
        (called_with([["x", "a", 0, {}]]), "a reference to a layer that cannot be read: ['x', 'a', 0, {}]"),
        (called_with(deep(["x", 0, 0, {}], 70, lambda value: [value])), "references nested too deeply"),
        (
            called_with([["x", 0, 0, {"a": deep(1, 70, lambda value: [value])}]]),
            "arguments nested too deeply",
        ),
        (called_with({"args": [{"class_name": "Other"}]}), "an argument of a layer that is no tensor"),
        (
            called_with({"args": [{"class_name": "__keras_tensor__", "config": {"keras_history": []}}]}),
            "a tensor without history",
        ),
        (deep(Y, 40, inside_a_model), "models inside models, deeper than 32"),
        (inside_a_model(deep(Y, 40, inside_a_wrapper)), "layers inside layers, deeper than 32"),
    ],
)
def test_a_configuration_that_is_none_is_refused(config, message):
    with pytest.raises(KerasFileError, match=re.escape(f"its configuration is not understood ({message}")):
        parse(json.dumps(config), "m")


def test_a_configuration_is_bounded(monkeypatch):
    monkeypatch.setattr(spec, "MOST_LAYERS", 1)
    with pytest.raises(KerasFileError, match="2 layers, above 1"):
        parse(json.dumps(document(X, Y)), "m")
    monkeypatch.setattr(spec, "MOST_BYTES", 5)
    with pytest.raises(KerasFileError, match="its configuration has 6 bytes, above 5"):
        parse("{    }", "m")
    assert spec.outline("{") == ()


def test_rare_forms_of_a_configuration():
    tensor = {"class_name": "__keras_tensor__", "config": {"keras_history": ["x", 0, 0]}}
    given = {"like": tensor, "factor": ["_CONSTANT_VALUE", -1, 5]}
    (call,) = parse(json.dumps(called_with({"args": [tensor], "kwargs": given})), "m").layers[1].calls
    assert call.kwargs == {"like": Ref("x", 0), "factor": 5}
    inner = {"class_name": "Sequential", "name": "y", "config": [of_dense()], "inbound_nodes": [[["x", 0, 0, {}]]]}
    assert [layer.class_name for layer in parse(json.dumps(document(X, inner)), "m").layers[1].model.layers] == [
        "InputLayer",
        "Dense",
    ]
    named = {"class_name": "Sequential", "config": {"layers": [{**Y, "name": "input"}]}}
    assert [layer.name for layer in parse(json.dumps(named), "m").layers] == ["input_", "input"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"class_name": "Sequential", "config": {"layers": [Y]}},
            "layer 'input' (InputLayer): no input shape is written in the model, which was never built",
        ),
        (
            document({**X, "config": {"batch_input_shape": [None, "a"]}}, Y),
            "layer 'x' (InputLayer): its shape [None, 'a'] is no shape of a dense batch",
        ),
        (
            document(X, of_dense(activation={"class_name": "PReLU", "config": {}}, activity_regularizer="l2")),
            "its activity_regularizer is for what its PReLU makes",
        ),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(config, message):
    with pytest.raises(ConversionError, match=re.escape(message)):
        build(parse(json.dumps(config), "m"))


def test_a_regularizer_of_an_activation_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match=r"its alpha_regularizer: .*mine"):
        activated.activation({"alpha_regularizer": "mine"}, (3,))
