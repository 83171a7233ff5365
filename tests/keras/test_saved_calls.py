"""What the functions that read and write Keras's files refuse, before anything is written anywhere."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import lc_triton
from lc_triton.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ComputedParameterError,
    ConversionError,
    KerasFileError,
    NotBuiltError,
)
from lc_triton.keras import load_model, load_weights, save_model, save_weights

pytestmark = pytest.mark.subprocess

h5py = pytest.importorskip("h5py")
spec = pytest.importorskip("lc_triton.keras.saved.spec")
build = pytest.importorskip("lc_triton.keras.saved.model").build

CONFIG = {
    "class_name": "Sequential",
    "config": {
        "name": "mine",
        "layers": [
            {
                "class_name": "LocallyConnected1D",
                "config": {"name": "local", "filters": 4, "kernel_size": [3], "batch_input_shape": [None, 10, 4]},
            },
            {"class_name": "Conv1D", "config": {"name": "conv", "filters": 4, "kernel_size": [3]}},
            {"class_name": "Flatten", "config": {"name": "flatten"}},
            {"class_name": "Dense", "config": {"name": "dense", "units": 2}},
        ],
    },
}


def named(**layers):
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def local(**kwargs):
    return lc_triton.LocallyConnected1D(4, 3, input_shape=(10, 4), **kwargs)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "mine.weights.h5"
    save_weights(named(local=local(), conv=nn.Conv1d(4, 4, 3), flatten=nn.Flatten(), dense=nn.Linear(24, 2)), path)
    return path


@pytest.fixture
def two(tmp_path):
    """A file of two dense layers."""
    model, path = named(old=nn.Linear(3, 2), dense=nn.Linear(3, 2)), tmp_path / "two.weights.h5"
    save_weights(model, path)
    return model, path


# ---- quantized layers


@pytest.mark.parametrize("dtype", ["int8", "int4", "float8_e4m3"])
@pytest.mark.parametrize("make", [local, lambda: lc_triton.LocalConv1d(4, 4, 3, input_size=10)])
def test_a_quantized_layer_is_refused(make, dtype, tmp_path):
    path = tmp_path / "local.weights.h5"
    model = named(local=make())
    save_weights(model, path)
    written = path.read_bytes()
    lc_triton.quantize_weights(model, dtype)
    before = copy.deepcopy(model.state_dict())
    for call in (lambda: save_weights(model, path), lambda: load_weights(model, path)):
        with pytest.raises(ConversionError, match="the numbers that quantize_weights rounded"):
            call()
    assert path.read_bytes() == written
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- which layer goes into which module


def test_a_module_takes_the_layer_that_the_mapping_names(two):
    model, path = two
    own = named(dense=nn.Linear(3, 2))
    with pytest.raises(ConversionError, match="1 layer\\(s\\) matched; unexpected: dense"):
        load_weights(own, path, {"old": "dense"})
    report = load_weights(own, path, {"old": "dense"}, strict=False)
    assert report.matched == (("old", "dense"),)
    assert report.unexpected == ("dense",)
    assert torch.equal(own.dense.weight, model.old.weight)


def test_a_mapping_of_two_layers_to_one_module_is_refused(two):
    _, path = two
    own = named(dense=nn.Linear(3, 2))
    before = own.dense.weight.clone()
    with pytest.raises(ConversionError, match="mapping names 'dense' for 'old' and 'dense'"):
        load_weights(own, path, {"old": "dense", "dense": "dense"}, strict=False)
    assert torch.equal(own.dense.weight, before)


def test_a_layer_by_itself_goes_there_and_back(tmp_path):
    layer, rebuilt = local(), local()
    save_weights(layer, tmp_path / "layer.weights.h5")
    report = load_weights(rebuilt, tmp_path / "layer.weights.h5")
    assert str(report) == "1 layer(s) matched"
    assert torch.equal(layer.weight, rebuilt.weight)


def test_a_layer_by_itself_takes_no_layer_of_several(two):
    _, path = two
    with pytest.raises(ConversionError, match="missing: the model itself; unexpected: old, dense"):
        load_weights(nn.Linear(3, 2), path)
    model = nn.Linear(3, 2)
    assert load_weights(model, path, {"old": ""}, strict=False).matched == (("old", ""),)


# ---- tensors that nothing can be written into


def test_a_module_without_memory_is_refused(two):
    _, path = two
    own = named(old=nn.Linear(3, 2), dense=nn.Linear(3, 2, device="meta"))
    before = own.old.weight.clone()
    with pytest.raises(ComputedParameterError, match="weight of Linear cannot be written: it is on the meta device"):
        load_weights(own, path)
    assert torch.equal(own.old.weight, before)


def test_a_module_whose_entries_share_memory_is_refused_first(two):
    _, path = two
    own = named(old=nn.Linear(3, 2), dense=nn.Linear(3, 2))
    own.dense.bias = nn.Parameter(torch.zeros(1).expand(2))
    before = own.old.weight.clone()
    with pytest.raises(ComputedParameterError, match="bias of Linear cannot be written: its entries share memory"):
        load_weights(own, path)
    assert torch.equal(own.old.weight, before)


def test_a_model_without_numbers_is_not_saved(tmp_path):
    path = tmp_path / "model.weights.h5"
    for model in (local(device="meta"), named(dense=nn.Linear(3, 2, device="meta"))):
        with pytest.raises(ArgumentValueError, match="model must be on a device with memory"):
            save_weights(model, path)
    assert not path.exists()


@pytest.mark.parametrize("lazy", [nn.LazyLinear(3), nn.LazyConv1d(3, 2), nn.LazyBatchNorm1d()])
def test_a_module_that_waits_for_its_first_input_is_named(lazy, two, tmp_path):
    _, path = two
    model = named(dense=nn.Linear(3, 2), waits=lazy)
    for call in (lambda: save_weights(model, tmp_path / "x.weights.h5"), lambda: load_weights(model, path)):
        with pytest.raises(NotBuiltError, match=f"{type(lazy).__name__} is not built"):
            call()


# ---- arguments


@pytest.mark.parametrize("path", [3, None, b"x.weights.h5", ["x"], np.zeros(3)], ids=str)
def test_a_path_of_a_wrong_type(path, weights):
    model = load_model(weights, config=CONFIG)
    for call in (load_model, lambda p: load_weights(model, p), lambda p: save_weights(model, p)):
        with pytest.raises(ArgumentTypeError, match=r"path must be a str or a pathlib.Path, got"):
            call(path)
    with pytest.raises(ArgumentTypeError, match=r"path must be a str or a pathlib.Path, got"):
        save_model(model, path)


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_without_a_name(path):
    with pytest.raises(KerasFileError, match="directory"):
        load_model(path)


@pytest.mark.parametrize("config", [3, ["a"], b"x", 2.5])
def test_a_configuration_of_a_wrong_type(config, weights):
    for call in (load_model, lambda p, config: load_weights(local(), p, config=config)):
        with pytest.raises(ArgumentTypeError, match="config must be None, a mapping, a text or a path, got"):
            call(weights, config=config)


@pytest.mark.parametrize("config", [{"class_name": {1, 2}}, {"class_name": np.int64(3)}])
def test_a_configuration_that_is_no_json(config, weights):
    with pytest.raises(KerasFileError, match="its configuration is not understood"):
        load_model(weights, config=config)


@pytest.mark.parametrize("model", [None, 3, "x", [nn.Linear(3, 2)], nn.Linear])
def test_a_model_of_a_wrong_type(model, weights, tmp_path):
    for call in (lambda: load_weights(model, weights), lambda: save_weights(model, tmp_path / "x.weights.h5")):
        with pytest.raises(ArgumentTypeError, match=r"model must be a torch.nn.Module, got"):
            call()


@pytest.mark.parametrize("mapping", [3, ["a"], "dense", [("old", "dense")]])
def test_a_mapping_of_a_wrong_type(mapping, two):
    with pytest.raises(ArgumentTypeError, match="mapping must be None or a mapping of names to names, got"):
        load_weights(nn.Linear(3, 2), two[1], mapping)


# ---- models that were changed after they were read


def new_head(model):
    model.dense = nn.Linear(24, 5)


def another_class(model):
    model.flatten = nn.Sequential(nn.Flatten(), nn.Tanh())


def one_more(model):
    model.append(nn.Tanh())


def one_less(model):
    del model.flatten


def pruned(model):
    prune.l1_unstructured(model.dense, "weight", 0.5)


def parametrized(model):
    parametrizations.weight_norm(model.dense)


def quantized(model):
    lc_triton.quantize_weights(model, "int8")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (new_head, "'dense'"),
        (another_class, "'flatten'"),
        (one_more, "'4'"),
        (one_less, "'flatten'"),
        (pruned, "'dense.weight"),
        (parametrized, "'dense"),
        (quantized, "'local.weight"),
    ],
)
def test_a_changed_model_is_not_saved_as_what_it_was(change, place, weights, tmp_path):
    model = load_model(weights, config=CONFIG)
    save_model(model, tmp_path / "model.pt")
    written = (tmp_path / "model.pt").read_bytes()
    change(model)
    with pytest.raises(ArgumentValueError, match=f"model must be as load_model made it.*{place}") as raised:
        save_model(model, tmp_path / "model.pt")
    assert "torch.save(model.state_dict(), path)" in str(raised.value)
    assert (tmp_path / "model.pt").read_bytes() == written


def test_a_part_of_a_model_is_not_saved(weights, tmp_path):
    model = load_model(weights, config=CONFIG)
    with pytest.raises(ArgumentTypeError, match=re.escape("model must be what lc_triton.keras.load_model returned")):
        save_model(model[:2], tmp_path / "part.pt")


def test_a_model_inside_a_model_is_not_saved_by_itself(tmp_path):
    inner = copy.deepcopy(CONFIG)
    inner["config"]["name"] = "inner"
    config = {"class_name": "Sequential", "config": {"name": "outer", "layers": [inner]}}
    plain = named(local=local(), conv=nn.Conv1d(4, 4, 3), flatten=nn.Flatten(), dense=nn.Linear(24, 2))
    save_weights(plain, tmp_path / "plain.weights.h5")
    with h5py.File(tmp_path / "plain.weights.h5") as file, h5py.File(tmp_path / "outer.weights.h5", "w") as other:
        other.create_group("layers/sequential")
        file.copy(file["layers"], other["layers/sequential"])
    model = load_model(tmp_path / "outer.weights.h5", config=config)
    with pytest.raises(ArgumentTypeError, match=re.escape("model must be what lc_triton.keras.load_model returned")):
        save_model(model.inner, tmp_path / "inner.pt")


@pytest.mark.parametrize("change", [lambda m: m, copy.deepcopy, lambda m: m.half(), lambda m: m.train()])
def test_a_model_that_was_trained_or_converted_is_saved(change, weights, tmp_path):
    model = change(load_model(weights, config=CONFIG))
    save_model(model, tmp_path / "model.pt")
    rebuilt = load_model(tmp_path / "model.pt")
    x = torch.randn(3, 10, 4, dtype=model.dense.weight.dtype)
    assert torch.equal(rebuilt(x), model.eval()(x))


# ---- inputs of a model that was read


def test_inputs_that_are_not_the_models():
    ends = [[name, 0, 0, {}] for name in "ab"]
    layers = [
        {"class_name": "InputLayer", "name": name, "config": {"name": name, "batch_input_shape": [None, 4]}}
        for name in "ab"
    ]
    layers.append({"class_name": "Subtract", "name": "minus", "config": {"name": "minus"}, "inbound_nodes": [ends]})
    config = {
        "name": "difference",
        "layers": layers,
        "input_layers": [["a", 0, 0], ["b", 0, 0]],
        "output_layers": [["minus", 0, 0]],
    }
    model = build(spec.parse(json.dumps({"class_name": "Functional", "config": config}), "model.json")).model
    a, b = torch.randn(2, 3, 4)
    assert torch.equal(model(a, b), a - b)
    assert torch.equal(model({"b": b, "a": a}), a - b)
    for wrong in ((a,), (a, b, a), ()):
        with pytest.raises(ArgumentTypeError, match=rf"difference takes 2 input\(s\) \(a, b\), got {len(wrong)}"):
            model(*wrong)
    for wrong in ({"x": a, "y": b}, {"a": a}, {"a": a, "b": b, "c": a}):
        got = re.escape(f"{len(wrong)} ({', '.join(wrong)})")
        with pytest.raises(ArgumentTypeError, match=rf"difference takes 2 input\(s\) \(a, b\), got {got}"):
            model(wrong)
