"""Regularizers and constraints of converted models: a training step equals that of tf_keras."""

import copy
import json
import pickle
import warnings

import pytest
import torch
from torch import nn

import lc_triton
from lc_triton.keras import load_model, save_model
from lc_triton.keras.saved.training import Trained
from tests.keras.test_saved import HERE, OUTPUTS, arrays, changed_config

pytestmark = pytest.mark.subprocess


def loss_of(model):
    (x,) = arrays("penalised", "x")
    return model(x).square().mean() + lc_triton.regularization_loss(model)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["h5", "keras", "weights.h5", "pt", "copy", "pickle"])
def test_a_training_step_is_that_of_keras(source, tmp_path):
    path = HERE / f"penalised.{source if source in ('keras', 'weights.h5') else 'h5'}"
    model = load_model(path, config=HERE / "penalised.json" if source == "weights.h5" else None)
    if source == "pt":
        save_model(model, tmp_path / "model.pt")
        model = load_model(tmp_path / "model.pt")
    if source in ("copy", "pickle"):
        loss_of(model)  # layers with a graph can also be copied
        model = copy.deepcopy(model) if source == "copy" else pickle.loads(pickle.dumps(model))
    loss = loss_of(model)
    assert abs(loss.item() / OUTPUTS["penalised/loss"] - 1) < 1e-6
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    lc_triton.attach_constraints(model, optimizer)
    before = copy.deepcopy(model.state_dict())
    loss.backward()
    optimizer.step()
    want = load_model(HERE / "penalised.after.weights.h5", config=HERE / "penalised.json").state_dict()
    assert model.state_dict().keys() == want.keys()
    for name, value in model.state_dict().items():
        assert (value - want[name]).abs().max() <= 1e-6 * want[name].abs().max(), name
    moved = {name.partition(".")[0] for name in want if not torch.equal(before[name], want[name])}
    assert len(moved) == 9  # all layers with weights but the two that are frozen


def test_layers_keep_their_penalties_outside_their_model():
    model = load_model(HERE / "penalised.h5")
    total = lc_triton.regularization_loss(model)
    parts = [lc_triton.regularization_loss(nn.Sequential(*model[:3])), lc_triton.regularization_loss(model[3:])]
    assert torch.allclose(sum(parts), total)
    assert all(part > 0 for part in parts)
    assert any(isinstance(layer, Trained) for layer in model)


def test_a_model_without_penalties_and_constraints():
    model = load_model(HERE / "deepface.h5")
    before = copy.deepcopy(model.state_dict())
    lc_triton.apply_constraints(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert lc_triton.regularization_loss(model).item() == 0


def test_unreadable_penalties_are_left_out_with_a_warning():
    def change(layers):
        by_name = {s["config"]["name"]: s["config"] for s in layers}
        by_name["C3"]["kernel_regularizer"] = {"class_name": "Mine", "config": {}}
        by_name["C3"]["bias_regularizer"] = "l2"
        by_name["L4"]["kernel_constraint"] = {"class_name": "MaxNorm", "config": {"max_value": -1.0, "axis": 0}}
        by_name["L4"]["bias_regularizer"] = "l2"
        by_name["F0"]["activity_regularizer"] = "l2"

    with pytest.warns(RuntimeWarning) as warned:
        model = load_model(HERE / "deepface.weights.h5", config=changed_config("deepface", change))
    (message,) = {str(w.message) for w in warned}
    assert "layer 'C3' (Conv2D): its kernel_regularizer: regularizer 'Mine' is not known" in message
    assert "layer 'L4' (LocallyConnected2D): its kernel_constraint: max_value must be" in message
    assert "layer 'F0' (Flatten): its activity_regularizer: this class has none here" in message
    want = 0.01 * sum(layer.bias.square().sum() for layer in (model.C3, model.L4))
    assert torch.allclose(lc_triton.regularization_loss(model), want)
    assert model.L4.kernel_constraint is None


def test_no_warning_if_all_penalties_are_read():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(HERE / "penalised.h5")


@pytest.mark.slow
@pytest.mark.parametrize("value", ["", 7, [], {}, {"class_name": 7}, {"class_name": "L2", "config": {"l2": "x"}}, True])
def test_wrong_values_have_a_warning(value):
    config = json.loads((HERE / "deepface.json").read_text())
    for layer in config["config"]["layers"]:
        layer["config"] |= {"kernel_regularizer": value, "bias_constraint": value}
    with pytest.warns(RuntimeWarning, match="kernel_regularizer"):
        load_model(HERE / "deepface.weights.h5", config=config)
