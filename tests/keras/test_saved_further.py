"""Outputs and training steps of the models of saved/make_further.py: norms, cells, calls."""

import json

import numpy as np
import pytest
import torch

import lc_triton
from lc_triton.errors import ConversionError
from lc_triton.keras import load_model, load_weights, save_weights
from lc_triton.keras.saved.model import build
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
