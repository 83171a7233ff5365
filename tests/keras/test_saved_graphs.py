"""Outputs of saved models with inner models, wrappers, masks, operators and dictionaries."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lc_triton
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, ConversionError, KerasFileError
from lc_triton.keras import load_model, load_weights, save_model, save_weights
from lc_triton.keras.saved.operations import FUNCTIONS, find
from tests.keras.outputs import extract_archive, load_arrays

pytestmark = pytest.mark.subprocess

RATE = 0.05  # the learning rate of saved/make_graphs.py
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return extract_archive("graphs", tmp_path_factory.mktemp("graphs"))


def outputs_list(outputs):
    if isinstance(outputs, dict):
        return list(outputs.values())
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def assert_outputs_close(folder, name, outputs, tolerance=None):
    wanted = load_arrays(folder, name, "y")
    assert len(outputs) == len(wanted) > 0
    for i, (got, want) in enumerate(zip(outputs, wanted, strict=True)):
        assert got.shape == want.shape, i
        assert got.dtype == want.dtype, i
        error = (got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-3)
        assert error <= (tolerance or TOLERANCE[want.dtype]), (i, f"{error:.1e}")


def outputs_of(model, folder, name):
    with torch.no_grad():
        return outputs_list(model(*load_arrays(folder, name, "x")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h5", "keras", "weights.h5"])
@pytest.mark.parametrize("name", ["nested", "masked"])
def test_models_inside_models(name, kind, folder):
    config = folder / f"{name}.json" if kind == "weights.h5" else None
    model = load_model(folder / f"{name}.{kind}", config=config)
    assert_outputs_close(folder, name, outputs_of(model, folder, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["operators", "keyed", "dtypes", "mixed"])
def test_operators_dictionaries_and_dtypes(name, folder):
    tolerance = {"mixed": 5e-3, "dtypes": 1e-6}.get(name)
    assert_outputs_close(folder, name, outputs_of(load_model(folder / f"{name}.h5"), folder, name), tolerance)


@pytest.mark.parametrize("name", ["nested", "operators"])
def test_models_can_be_pickled(name, folder):
    model = load_model(folder / f"{name}.h5")
    assert_outputs_close(folder, name, outputs_of(pickle.loads(pickle.dumps(model)), folder, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nested", "masked", "operators", "keyed"])
def test_models_are_saved_as_torch_and_keras_files(name, folder, tmp_path):
    model = load_model(folder / f"{name}.h5")
    save_model(model, tmp_path / "model.pt")
    assert_outputs_close(folder, name, outputs_of(load_model(tmp_path / "model.pt"), folder, name))
    if name != "operators":
        save_weights(model, tmp_path / "back.weights.h5")
        assert arrays_in(tmp_path / "back.weights.h5") == arrays_in(folder / f"{name}.weights.h5")


def arrays_in(path):
    import h5py

    found = {}
    with h5py.File(path) as file:
        file["layers"].visititems(
            lambda place, item: found.update({place: item[()].tolist()}) if isinstance(item, h5py.Dataset) else None
        )
    return found


@pytest.mark.slow
def test_a_training_step_of_models_inside_models(folder, tmp_path):
    model = load_model(folder / "nested.h5").train()
    assert not model.frozen.training  # called with training=False
    assert model.base.training
    assert [p.requires_grad for p in model.base.parameters()] == [True, True, False, False, False, False]
    outputs = outputs_list(model(*load_arrays(folder, "nested", "x")))
    loss = sum(y.square().mean() for y in outputs) + lc_triton.regularization_loss(model)
    want = float(np.load(folder / "outputs.npz")["nested/loss"])
    assert abs(loss.item() - want) <= 1e-5 * want
    loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], RATE).step()
    save_weights(model, tmp_path / "after.weights.h5")
    got, want = arrays_in(tmp_path / "after.weights.h5"), arrays_in(folder / "nested.after.weights.h5")
    assert got.keys() == want.keys()
    for place, numbers in want.items():
        np.testing.assert_allclose(got[place], numbers, rtol=2e-5, atol=2e-6, err_msg=place)


def test_a_mask_ends_at_a_locally_connected_layer(folder):
    """Keras gives no warning: the layers that follow use every step."""
    model = load_model(folder / "masked.h5")
    x = load_arrays(folder, "masked", "x")[0]
    steps = model.masking.output_mask((x,), (None,))
    assert steps.tolist() == [[True] * 6, [True] * 4 + [False] * 2, [True] * 6]
    outputs, masks = model(*load_arrays(folder, "masked", "x"), masks=(None,) * 3)
    assert torch.equal(masks[0], steps)
    assert masks[5] is None
    assert masks[7] is None
    assert_outputs_close(folder, "masked", list(outputs))


class DropsMask(nn.Identity):
    def output_mask(self, inputs, masks):
        return None


@pytest.mark.slow
def test_user_modules_pass_masks_on_as_keras_does(folder):
    x = load_arrays(folder, "masked", "x")
    want = load_model(folder / "masked.h5")(*x)[1]
    keeps_mask = load_model(folder / "masked.h5", modules={"Dropout": lambda layer: nn.Identity()})
    drops_mask = load_model(folder / "masked.h5", modules={"Dropout": lambda layer: DropsMask()})
    assert torch.equal(keeps_mask(*x)[1], want)
    assert not torch.equal(drops_mask(*x)[1], want)


def test_inputs_by_name(folder):
    model = load_model(folder / "keyed.h5")
    x = dict(zip(["p", "q"], load_arrays(folder, "keyed", "x"), strict=True))
    outputs = model({"q": x["q"], "p": x["p"]})
    assert list(outputs) == ["second", "first"]
    assert_outputs_close(folder, "keyed", list(outputs.values()))
    with pytest.raises(TypeError, match=r"keyed takes 2 input\(s\) \(p, q\), got 1"):
        model({"q": x["q"]})


def changed_config(folder, name, change):
    config = json.loads((folder / f"{name}.json").read_text())
    change({layer["config"]["name"]: layer for layer in config["config"]["layers"]})
    return config


def refusal(folder, name, change):
    with pytest.raises((ConversionError, KerasFileError)) as raised:
        load_model(folder / f"{name}.weights.h5", config=changed_config(folder, name, change))
    return str(raised.value)


def test_an_error_names_all_inner_layers_at_once(folder):
    def change(layers):
        layers["encoder"]["config"]["layers"][1]["class_name"] = "Mine"
        layers["steps"]["config"]["layer"]["config"]["layers"][2]["config"]["activation"] = "my_function"
        layers["base"]["config"]["layers"][1]["config"]["invented"] = 7

    message = refusal(folder, "nested", change)
    assert "layer 'encoder/local' (Mine): this class has no counterpart here" in message
    assert "layer 'steps/step/each' (LocallyConnected1D): activation 'my_function' is not known" in message
    assert "invented=7 is not known" in message
    for entry in ('{"Mine": lambda layer: MyModule()', '"each": lambda layer: MyModule()', "--modules FILE.py"):
        assert entry in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "node", "message"),
    [
        ("own", ["encoder", 7, 0, {}], "call 7 of layer 'encoder' is used, which is called 2 time(s)"),
        ("own", ["nobody", 0, 0, {}], "layer 'nobody' is used, which does not exist"),
        ("own", ["two", 1, 9, {}], "output 9 of layer 'two' is used, which has none of that number"),
        ("two", ["encoder", 1, 0, {}], "it takes 2 input(s)"),
        ("own", ["encoder", 1, 0, {"mask": ["x", 0, 0]}], "it is called with mask=the output of 'x'"),
        ("frozen", ["encoder", 2, 0, {"training": ["x", 0, 0]}], "it is called with training=the output of 'x'"),
    ],
)
def test_wrong_calls_are_named(layer, node, message, folder):
    assert message in refusal(folder, "nested", lambda layers: layers[layer].update(inbound_nodes=[[node]]))


def test_a_wrong_argument_has_the_line_to_write(folder):
    """The error arises when the layer is built, not when its arguments are read."""

    def change(layers):
        layers["steps"]["config"]["layer"]["config"]["layers"][2]["config"]["kernel_size"] = [99]

    message = refusal(folder, "nested", change)
    assert "layer 'steps/step/each' (LocallyConnected1D): kernel_size" in message
    assert 'modules={"each": lambda layer: MyModule()}' in message


def test_a_missing_output_is_named(folder):
    config = json.loads((folder / "keyed.json").read_text())
    config["config"]["output_layers"]["first"] = ["head", 1, 5]
    with pytest.raises(ConversionError, match=r"layer 'head' \(Functional\): it has no output 5, which"):
        load_model(folder / "keyed.weights.h5", config=config)


@pytest.mark.slow
def test_a_wrong_call_of_a_function_is_named(folder):
    """A list of constants is no tensor, and a power of two numbers may have millions of digits."""
    config = json.loads((folder / "operators.json").read_text())
    by_function = {s["config"].get("function"): s for s in config["config"]["layers"]}
    for function, node, message in (
        ("math.pow", ["_CONSTANT_VALUE", -1, 10, {"y": 10**9}], "a power of two numbers is given to it, and no tensor"),
        ("math.multiply", ["_CONSTANT_VALUE", -1, "a", {"y": 10**9}], "a is given to it, which is no number"),
        ("math.reduce_mean", ["_CONSTANT_VALUE", -1, [1, 2], {}], "(TFOpLambda)"),
        ("tile", ["input_1", 0, 0, {"multiples": [1], "invented": 3}], 'modules={"tf.tile": lambda layer: MyModule()}'),
    ):
        before = by_function[function]["inbound_nodes"]
        by_function[function]["inbound_nodes"] = [node]
        with pytest.raises(ConversionError) as raised:
            load_model(folder / "operators.weights.h5", config=config)
        assert message in str(raised.value)
        # A call without a tensor cannot be replaced by a module.
        assert ("modules=" in str(raised.value)) is (node[0] == "input_1")
        by_function[function]["inbound_nodes"] = before


def test_a_function_without_counterpart_is_named(folder):
    def change(layers):
        inner = layers["head"]["config"]["layers"]
        next(s for s in inner if s["class_name"] == "TFOpLambda")["config"]["function"] = "py_function"

    message = refusal(folder, "keyed", change)
    assert "TensorFlow's function py_function has no counterpart here" in message
    assert 'modules={"tf.' in message
    with pytest.raises(ValueError, match="has no counterpart here"):
        find("strings.split_all")
    assert find("compat.v1.nn.relu") is FUNCTIONS["relu"]


class Scale(nn.Module):
    """The module for Keras's `Scale` of saved/make_graphs.py, with its two weights in the same order."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("offset", torch.zeros(channels))

    def forward(self, x):
        return x * self.scale + self.offset


class Block(nn.Module):
    def __init__(self, channels, units):
        super().__init__()
        self.up, self.down = nn.Linear(channels, units), nn.Linear(units, 3)
        self.register_buffer("constant", torch.tensor(2.0), persistent=False)

    def forward(self, x, factor):
        return factor * self.down(self.up(x).relu()) * self.constant / 2


MODULES = {
    "Scale": lambda layer: Scale(layer.input_shapes[0][-1]),
    "Block": lambda layer: Block(layer.input_shapes[0][-1], layer.config["units"]),
    "inner/double": lambda layer: lambda x: x * 2 + 1,
    "difference": lambda layer: torch.sub,
    "quarter": lambda layer: lambda x: x / 4,
    "sine": lambda layer: torch.sin,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h5", "weights.h5"])
def test_user_modules_replace_layers(kind, folder, tmp_path):
    config = folder / "custom.json" if kind == "weights.h5" else None
    model = load_model(folder / f"custom.{kind}", config=config, modules=MODULES)
    assert isinstance(model.scale, Scale)
    assert_outputs_close(folder, "custom", outputs_of(model, folder, "custom"))
    save_model(model, tmp_path / "model.pt")
    assert_outputs_close(
        folder, "custom", outputs_of(load_model(tmp_path / "model.pt", modules=MODULES), folder, "custom")
    )
    with pytest.raises(ConversionError, match=r"layer 'scale' \(Scale\): this class has no counterpart here"):
        load_model(tmp_path / "model.pt")
    save_weights(model, tmp_path / "back.weights.h5")
    rebuilt = load_model(tmp_path / "back.weights.h5", config=folder / "custom.json", modules=MODULES)
    assert_outputs_close(folder, "custom", outputs_of(rebuilt, folder, "custom"))


def test_the_error_has_the_line_to_write(folder):
    with pytest.raises(ConversionError) as raised:
        load_model(folder / "custom.h5")
    message = str(raised.value)
    assert "layer 'inner/double' (Lambda): it is Python code, and no code of a file is run" in message
    assert "layer 'steps/quarter' (Lambda)" in message
    assert "layer 'sine' (Activation): its activation is Python code, and no code of a file is run" in message
    line = message[message.index("modules={") + 8 : message.index("}), or") + 1].replace(", ...", "")
    made = eval(line, {"MyModule": nn.Identity})
    assert set(made) == {"double", "Scale", "Block", "sine"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "error", "message"),
    [
        ([nn.Identity()], ArgumentTypeError, "modules must be"),
        ({"scale": nn.Identity()}, ArgumentTypeError, "lambda layer: module"),
        ({**MODULES, "scael": MODULES["Scale"]}, ArgumentValueError, "got 'scael'"),
        ({**MODULES, "Scale": lambda layer: 3}, ConversionError, "made a int, no torch module"),
        ({**MODULES, "Scale": lambda layer: 1 / 0}, ConversionError, "raised ZeroDivisionError"),
        ({**MODULES, "sine": lambda layer: lambda x: x @ x}, ConversionError, "failed on zeros of the shapes"),
        ({**MODULES, "sine": lambda layer: lambda x: "sine"}, ConversionError, "returned str, no tensor"),
        ({**MODULES, "Scale": lambda layer: Scale(2)}, ConversionError, "failed on zeros of the shapes"),
        ({**MODULES, "Scale": lambda layer: nn.Identity()}, KerasFileError, "the file has arrays for 'scale'"),
    ],
)
def test_modules_that_do_not_fit_are_named(modules, error, message, folder):
    with pytest.raises(error, match=r".*") as raised:
        load_model(folder / "custom.h5", modules=modules)
    assert message in str(raised.value)


class UserModel(nn.Module):
    """A model of a user for the weights of the nested Keras model."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict(
            {"local": lc_triton.LocalConv1d(4, 3, 2, input_size=6), "norm": nn.BatchNorm1d(3), "dense": nn.Linear(3, 3)}
        )
        self.head = nn.ModuleDict(
            {"own_dense": nn.Linear(3, 3), "own_local": lc_triton.LocalConv1d(3, 2, 2, input_size=5)}
        )
        self.each = lc_triton.LocalConv1d(1, 2, 2, input_size=4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h5", "keras", "weights.h5"])
def test_weights_of_inner_models_are_loaded_into_a_model_of_the_user(kind, folder):
    own, want = UserModel(), load_model(folder / "nested.h5")
    config = folder / "nested.json" if kind == "weights.h5" else None
    mapping = {"own": "head"} if kind != "keras" else {"own/own_dense": "head.own_dense"}
    mapping |= {"steps": "each"} if kind == "h5" else {"steps/each": "each"}
    report = load_weights(own, folder / f"nested.{kind}", mapping, strict=False, config=config)
    assert report.missing == report.misshapen == ()
    assert torch.equal(own.encoder["local"].weight, want.encoder.local.weight)
    assert torch.equal(own.encoder["norm"].running_var, want.encoder.norm.running_var)
    assert torch.equal(own.head["own_dense"].weight, want.own.own_dense.weight)
    assert torch.equal(own.head["own_local"].bias, want.own.own_local.bias)
    assert torch.equal(own.each.weight, want.steps.layer.each.weight)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("every_layer", "h5"), ("masked", "keras"), ("masked", "weights.h5")])
def test_weights_are_loaded_into_a_converted_model(name, kind, folder):
    """Layers have the names of Keras, also `local.layer` and `train`; a wrapped layer has the name of its wrapper."""
    where = folder if name == "masked" else Path(__file__).parent / "saved"
    model = load_model(where / f"{name}.h5")
    want = {key: value.clone() for key, value in model.state_dict().items()}
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().zero_()
    load_weights(model, where / f"{name}.{kind}", config=where / f"{name}.json" if kind == "weights.h5" else None)
    assert all(torch.equal(value, want[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_weights_are_read_without_a_convertible_configuration(folder, tmp_path):
    """Arrays are read from files with a Lambda, with a class of the user, or of a model of such a class."""
    import h5py

    path = tmp_path / "model.h5"
    path.write_bytes((folder / "custom.h5").read_bytes())
    with h5py.File(path, "a") as file:
        text = file.attrs["model_config"]
        file.attrs["model_config"] = text.replace('"class_name": "Functional"', '"class_name": "Mine"')
    with pytest.raises(KerasFileError, match="a model of the class Mine, which only its code describes"):
        load_model(path)
    net = nn.ModuleDict({"dense": nn.Linear(3, 3), "locally_connected1d": lc_triton.LocalConv1d(4, 3, 2, input_size=6)})
    report = load_weights(net, path, strict=False)
    assert report.missing == ()
    assert torch.equal(net["dense"].weight, load_model(folder / "custom.h5", modules=MODULES).inner.dense.weight)
