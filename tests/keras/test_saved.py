"""Models that tf_keras saved: the models that are read from the files have the outputs of tf_keras."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lc_triton
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, ConversionError, KerasFileError
from lc_triton.keras import load_model, load_weights, save_model, save_weights

pytestmark = pytest.mark.subprocess

HERE = Path(__file__).parent / "saved"
GOLDEN = Path(__file__).parents[1] / "golden"
OUTPUTS = np.load(HERE / "outputs.npz")
NAMES = sorted(p.stem for p in HERE.glob("*.h5") if not p.stem.endswith(".weights"))
TOLERANCE = {torch.float16: 5e-3, torch.float32: 1e-6, torch.float64: 1e-10}


def arrays(name, letter):
    found = []
    while f"{name}/{letter}{len(found)}" in OUTPUTS:
        found.append(torch.from_numpy(OUTPUTS[f"{name}/{letter}{len(found)}"]))
    return found


def assert_equals_keras(model, name):
    with torch.no_grad():
        outputs = model(*arrays(name, "x"))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = arrays(name, "y")
    assert len(outputs) == len(wanted) > 0
    for got, want in zip(outputs, wanted, strict=True):
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        error = (got.double() - want.double()).abs().max() / want.double().abs().max()
        assert error <= TOLERANCE[want.dtype], f"{error:.2e}"


def test_the_files_are_present():
    assert len(NAMES) == 13
    assert {f"local_{i}_{f}" for i in (1, 2, 3) for f in ("channels_last", "channels_first")} <= set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h5", "keras", "weights.h5"])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_has_the_outputs_of_keras(name, kind):
    config = HERE / f"{name}.json" if kind == "weights.h5" else None
    model = load_model(HERE / f"{name}.{kind}", config=config)
    assert not model.training
    assert_equals_keras(model, name)


@pytest.mark.parametrize("kind", ["h5", "keras"])
def test_a_file_of_another_version(kind):
    model = load_model(GOLDEN / f"saved_seq_impl1.{kind}")
    data = np.load(GOLDEN / "saved_models.npz")
    got = model(torch.from_numpy(data["seq_impl1/x"]))
    want = torch.from_numpy(data["seq_impl1/y"])
    assert (got - want).abs().max() <= 1e-6 * want.abs().max()


def test_a_sequential_model_is_a_chain_under_keras_names():
    model = load_model(HERE / "deepface.h5")
    assert isinstance(model, nn.Sequential)
    assert [name for name, _ in model.named_children()] == ["C1", "M2", "C3", "L4", "L5", "L6", "F0", "F7", "D0", "F8"]
    assert isinstance(model.L4, lc_triton.LocallyConnected2D)


def test_names_that_torch_reserves_are_changed():
    names = dict(load_model(HERE / "every_layer.h5").named_children())
    assert {"local_layer", "train_", "shared"} <= set(names)


def test_what_is_frozen_in_keras_is_frozen_here():
    model = load_model(HERE / "float64.h5")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert {name.partition(".")[0] for name in frozen} == {"local", "batch_normalization"} or len(frozen) == 4
    assert model[-1].weight.requires_grad


def test_a_model_can_be_trained():
    model = load_model(HERE / "every_layer.keras").train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    torch.manual_seed(0)
    outputs = model(*arrays("every_layer", "x"))
    sum(y.square().mean() for y in outputs).backward()
    optimizer.step()
    assert all(p.grad is not None for p in model.parameters())
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_converted_model_is_saved_and_loaded(name, tmp_path):
    model = load_model(HERE / f"{name}.h5")
    save_model(model, tmp_path / "model.pt")
    rebuilt = load_model(tmp_path / "model.pt")
    assert_equals_keras(rebuilt, name)
    assert not rebuilt.training
    state = torch.load(tmp_path / "model.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[k], v) for k, v in rebuilt.state_dict().items())
    assert [p.requires_grad for p in rebuilt.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_written_weights_equal_the_file(name, tmp_path):
    h5py = pytest.importorskip("h5py")
    model = load_model(HERE / f"{name}.h5")
    save_weights(model, tmp_path / "back.weights.h5")
    with h5py.File(HERE / f"{name}.weights.h5") as want, h5py.File(tmp_path / "back.weights.h5") as got:
        found = {}
        want["layers"].visititems(
            lambda place, item: found.update({place: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
        written = {}
        got["layers"].visititems(
            lambda place, item: written.update({place: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
        assert written.keys() == found.keys()
        for place, value in found.items():
            assert written[place].shape == value.shape
            if name.startswith("local_2"):  # the dense kernel has unused entries, which are written as zeros
                connected = written[place] != 0
                assert np.array_equal(written[place][connected], value[connected])
            else:
                assert np.array_equal(written[place], value)
    assert_equals_keras(load_model(tmp_path / "back.weights.h5", config=HERE / f"{name}.json"), name)


class UserModel(nn.Module):
    """A model of a user, in which only some modules have the names of the Keras layers."""

    def __init__(self):
        super().__init__()
        self.C1 = nn.Conv2d(3, 4, 11)
        self.C3 = nn.Conv2d(4, 4, 9)
        self.body = nn.ModuleDict(
            {
                "L4": lc_triton.LocalConv2d(4, 4, 5, input_size=13),
                "L5": lc_triton.LocalConv2d(4, 4, 3, input_size=9, stride=2),
                "third": lc_triton.LocallyConnected2D(4, 3, input_shape=(4, 4, 4)),
            }
        )
        self.F7 = nn.Linear(16, 16)
        self.F8 = nn.Linear(16, 8)

    def forward(self, x):
        x = torch.relu(self.C1(x.movedim(-1, 1)))
        x = torch.max_pool2d(nn.functional.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2)
        x = torch.relu(self.C3(x))
        x = torch.relu(self.body["L4"](x))
        x = torch.relu(self.body["L5"](x))
        x = torch.relu(self.body["third"](x.movedim(1, -1)))
        return torch.softmax(self.F8(torch.relu(self.F7(x.flatten(1)))), -1)


@pytest.mark.parametrize("kind", ["h5", "keras"])
def test_weights_are_loaded_into_a_model_of_the_user(kind):
    model = UserModel()
    report = load_weights(model, HERE / f"deepface.{kind}", {"L6": "body.third"})
    assert set(report.matched) == {
        ("C1", "C1"),
        ("C3", "C3"),
        ("L4", "body.L4"),
        ("L5", "body.L5"),
        ("L6", "body.third"),
        ("F7", "F7"),
        ("F8", "F8"),
    }
    assert report.missing == report.unexpected == report.misshapen == ()
    assert_equals_keras(model, "deepface")


def test_layers_of_a_file_without_names_have_class_names():
    model = UserModel()
    mapping = {
        "conv2d": "C1",
        "conv2d_1": "C3",
        "locally_connected2d": "body.L4",
        "locally_connected2d_1": "body.L5",
        "locally_connected2d_2": "body.third",
        "dense": "F7",
        "dense_1": "F8",
    }
    load_weights(model, HERE / "deepface.weights.h5", mapping)
    assert_equals_keras(model, "deepface")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h5", "weights.h5"])
@pytest.mark.parametrize("i", [1, 2, 3])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_every_layout_is_loaded_into_layers_of_torchs_convention(i, data_format, kind):
    padding = "valid" if i == 1 else "keras_same"
    model = nn.ModuleDict(
        {
            "image": lc_triton.LocalConv2d(2, 3, (3, 2), input_size=(6, 5), stride=(1, 2), padding=padding),
            "sequence": lc_triton.LocalConv1d(3, 4, 3, input_size=8 if i == 1 else 18, stride=2, padding=padding),
            "classes": nn.Linear(12 if i == 1 else 36, 3),
        }
    )
    config = HERE / f"local_{i}_{data_format}.json" if kind == "weights.h5" else None
    load_weights(model, HERE / f"local_{i}_{data_format}.{kind}", config=config)
    want = load_model(HERE / f"local_{i}_{data_format}.h5")
    assert torch.equal(model["image"].weight, want.image.weight)
    assert torch.equal(model["sequence"].bias, want.sequence.bias)


@pytest.mark.slow
def test_strict_loading_changes_nothing_unless_everything_fits():
    model = UserModel()
    model.F8 = nn.Linear(16, 9)
    model.extra = nn.Linear(2, 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ConversionError) as raised:
        load_weights(model, HERE / "deepface.h5")
    message = str(raised.value)
    assert "missing: body.third, extra" in message
    assert "unexpected: L6" in message
    assert "kernel of layer 'F8' has shape (16, 8) in the file, not (16, 9)" in message
    assert "strict=False" in message
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    report = load_weights(model, HERE / "deepface.h5", strict=False)
    assert report.missing == ("body.third", "extra")
    assert report.unexpected == ("L6",)
    assert len(report.misshapen) == 2
    assert not torch.equal(before["F7.weight"], model.F7.weight)
    assert torch.equal(before["F8.weight"], model.F8.weight)


@pytest.mark.parametrize(
    ("mapping", "message"), [({"L9": "C1"}, "mapping names 'L9', the file has"), ({"L4": "C9"}, "mapping names 'C9'")]
)
def test_a_mapping_with_unknown_names_is_refused(mapping, message):
    with pytest.raises(ConversionError, match=message):
        load_weights(UserModel(), HERE / "deepface.h5", mapping)


@pytest.mark.slow
def test_weights_of_any_model_can_be_saved(tmp_path):
    model = UserModel()
    load_weights(model, HERE / "deepface.h5", {"L6": "body.third"})
    save_weights(model, tmp_path / "own.weights.h5")
    assert_equals_keras(load_model(tmp_path / "own.weights.h5", config=HERE / "deepface.json"), "deepface")


def test_modules_without_a_keras_layer_are_not_saved(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.GRUCell(2, 2))
    with pytest.raises(ArgumentValueError, match=r"belong to none: 1\.weight_ih"):
        save_weights(model, tmp_path / "model.weights.h5")
    assert not list(tmp_path.iterdir())


def test_wrong_suffixes_are_refused(tmp_path):
    model = load_model(HERE / "deepface.h5")
    with pytest.raises(ArgumentValueError, match=r"a file ending in \.pt"):
        save_model(model, tmp_path / "model.keras")
    with pytest.raises(ArgumentValueError, match=r"a file ending in \.weights\.h5"):
        save_weights(model, tmp_path / "model.h5")
    with pytest.raises(ArgumentTypeError, match=r"what lc_triton\.keras\.load_model returned"):
        save_model(nn.Linear(1, 1), tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def changed_config(name, change):
    """A changed configuration for the argument `config`."""
    config = json.loads((HERE / f"{name}.json").read_text())
    change(config["config"]["layers"])
    return config


def refusal(name, change):
    with pytest.raises((ConversionError, KerasFileError)) as raised:
        load_model(HERE / f"{name}.weights.h5", config=changed_config(name, change))
    return str(raised.value)


def test_all_layers_that_cannot_be_converted_are_named():
    def change(layers):
        layers[1]["class_name"] = "StringLookup"
        layers[2]["class_name"] = "Lambda"
        layers[3]["config"]["activation"] = "my_function"

    message = refusal("deepface", change)
    assert "layer 'C1' (StringLookup): this class has no counterpart here" in message
    assert "layer 'M2' (Lambda): it is Python code, and no code of a file is run" in message
    assert "layer 'C3' (Conv2D): activation 'my_function' is not known" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "argument", "value", "message"),
    [
        ("C3", "activation", "my_function", "layer 'C3' (Conv2D): activation 'my_function' is not known"),
        ("C3", "padding", "causal", "its padding 'causal' is none of valid, same"),
        ("C3", "filters", 0, "filters"),
        ("C3", "filters", 4.5, "filters"),
        ("C3", "filters", True, "filters"),
        ("C3", "filters", 10**30, "filters"),
        ("C3", "kernel_size", [3, 3, 3], "kernel_size=(3, 3, 3) has 3 entries for 2 axes"),
        ("C3", "kernel_size", [300, 3], "layer 'C3' (Conv2D)"),
        ("C3", "groups", 3, "cannot be split into 3 groups"),
        ("C3", "invented", 7, "invented=7 is not known"),
        ("C3", "data_format", "sideways", "data_format"),
        ("C3", "dtype", "int8", "its dtype int8 is none of"),
        ("L4", "filters", 5, "kernel of layer 'L4' has shape"),
        ("L4", "kernel_size", [99, 99], "layer 'L4' (LocallyConnected2D)"),
        ("L4", "implementation", 4, "implementation must be 1, 2 or 3"),
        ("M2", "pool_size", [0, 2], "pool_size"),
        ("D0", "rate", 1.5, "rate"),
        ("D0", "noise_shape", [1, 2], "noise_shape=(1, 2) has no size, 1 or None for each axis"),
        ("F8", "units", 9, "kernel of layer 'F8' has shape (16, 8) in the file, not (16, 9)"),
        ("F8", "units", 10**6, "layer 'F8' claims 17000000 weights, of which the file holds 136"),
        ("F8", "use_bias", False, "layer 'F8' has 2 array(s) in the file, not 1 (kernel)"),
    ],
)
def test_a_wrong_argument_is_named(layer, argument, value, message):
    def change(layers):
        next(s for s in layers if s["config"]["name"] == layer)["config"][argument] = value

    assert message in refusal("deepface", change)


def test_a_cycle_is_refused():
    def change(layers):
        by_name = {s["config"]["name"]: s for s in layers}
        by_name["norm"]["inbound_nodes"][0][0][0] = "both"

    assert "takes its own output" in refusal("every_layer", change)


def test_a_layer_called_with_a_mask_is_refused():
    def change(layers):
        layer = next(s for s in layers if s["config"]["name"] == "local.layer")
        layer["inbound_nodes"][0][0][3] = {"mask": ["image", 0, 0]}

    assert "called with mask=" in refusal("every_layer", change)


@pytest.mark.slow
@pytest.mark.parametrize("share", ["all", "rows", (2, 2), ("tile", 2)])
def test_shared_filters_need_with_share(share, tmp_path):
    """Keras has no layers with shared filters: its files have filters of each position."""
    path = tmp_path / "own.weights.h5"
    net = nn.Sequential(lc_triton.LocalConv2d(2, 3, 3, input_size=(5, 6), share=share))
    with pytest.raises(ConversionError, match=r"share=.* cannot be converted: Keras's layers .*: with_share\(None\)"):
        save_weights(net, path)
    unshared = nn.Sequential(net[0].with_share(None))
    save_weights(unshared, path)
    with pytest.raises(ConversionError, match=r"with_share\(None\)"):
        load_weights(net, path)
    other = nn.Sequential(lc_triton.LocalConv2d(2, 3, 3, input_size=(5, 6)))
    load_weights(other, path)
    x = torch.randn(2, 2, 5, 6)
    torch.testing.assert_close(other(x), net(x))


@pytest.mark.slow
def test_a_file_of_weights_needs_a_configuration():
    with pytest.raises(KerasFileError, match="it holds weights alone"):
        load_model(HERE / "deepface.weights.h5")
    for load in (load_model, partial(load_weights, UserModel())):
        with pytest.raises(ArgumentTypeError, match="None for a file that holds its model"):
            load(HERE / "deepface.h5", config=HERE / "deepface.json")
    text = (HERE / "deepface.json").read_text()
    for config in (text, json.loads(text)):
        assert_equals_keras(load_model(HERE / "deepface.weights.h5", config=config), "deepface")


def test_a_model_is_called_with_all_its_inputs():
    with pytest.raises(TypeError, match=r"every_layer takes 2 input\(s\) \(image, other\), got 1"):
        load_model(HERE / "every_layer.h5")(torch.zeros(1, 9, 8, 3))
