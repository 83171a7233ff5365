"""Models of Keras 3 with the layers for it, read from their files as torch modules, and their weights written back."""

import numpy as np
import pytest
import torch
from torch import nn

import lc_triton
from lc_triton.cli import main
from lc_triton.errors import ConversionError
from lc_triton.keras import load_model, load_weights, save_model, save_weights
from tests.keras.keras3.common import QUIET, keras, layers

pytest.importorskip("h5py")

pytestmark = [QUIET, pytest.mark.subprocess]

DRAWN = {"bias_initializer": keras.initializers.RandomNormal(stddev=0.5, seed=1)}


def image(data_format="channels_last", implementation=1):
    first = data_format == "channels_first"
    kind = {"data_format": data_format, "implementation": implementation, **DRAWN}
    return [
        keras.Input((2, 9, 8) if first else (9, 8, 2)),
        layers.LocallyConnected2D(4, (3, 2), strides=(2, 1), padding="same", activation="gelu", groups=2, **kind),
        layers.LocallyConnected2D(3, 2, padding="keras_same", activation="softmax", **kind),
        keras.layers.Flatten(data_format=data_format),
        keras.layers.Dense(3),
    ]


def sequence():
    return [
        keras.Input((9, 2)),
        # These two have the constants of Keras 3.
        layers.LocallyConnected1D(4, 3, padding="causal", activation="hard_sigmoid", fan_mode="keras", **DRAWN),
        layers.LocallyConnected1D(4, 3, dilation_rate=2, activation="leaky_relu", use_bias=False),
        keras.layers.Activation("hard_sigmoid"),
    ]


def volume():
    return [
        keras.Input((4, 5, 6, 2)),
        layers.LocallyConnected3D(3, 2, dilation_rate=2, activation="hard_silu", **DRAWN),
    ]


def graph():
    x = keras.Input((6, 5, 2))
    shared = layers.LocallyConnected2D(3, 2, activation="tanh", **DRAWN)
    other = layers.LocallyConnected2D(3, 2, activation="log_sigmoid", **DRAWN)
    a, b, c = shared(x), other(x), shared(keras.layers.ReLU()(x))
    both = keras.layers.Concatenate()([a, b])
    return keras.Model(x, [both, keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([a, c]))])


MODELS = {
    **{
        f"image_{i}_{f}": (lambda f=f, i=i: keras.Sequential(image(f, i)))
        for f in ("channels_last", "channels_first")
        for i in (1, 2, 3)
    },
    "sequence": lambda: keras.Sequential(sequence()),
    "volume": lambda: keras.Sequential(volume()),
    "graph": graph,
}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    """A model, an input and the model's outputs."""
    keras.utils.set_random_seed(0)
    model = MODELS[request.param]()
    x = torch.randn(3, *model.inputs[0].shape[1:])
    y = model(x)
    return model, x, [v.detach() for v in (y if isinstance(y, list) else [y])]


def assert_same(model, x, wanted):
    with torch.no_grad():
        outputs = model(x)
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    assert len(outputs) == len(wanted)
    for got, want in zip(outputs, wanted, strict=True):
        assert got.shape == want.shape
        assert (got - want).abs().max() <= 1e-6 * want.abs().max()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*HDF5 file:UserWarning")
@pytest.mark.parametrize("kind", ["keras", "h5", "weights.h5"])
def test_a_model_has_the_outputs_of_keras(case, kind, tmp_path):
    model, x, wanted = case
    path = tmp_path / f"model.{kind}"
    model.save_weights(path) if kind == "weights.h5" else model.save(path)
    got = load_model(path, config=model.to_json() if kind == "weights.h5" else None)
    assert not any(isinstance(m, keras.layers.Layer) for m in got.modules())
    assert_same(got, x, wanted)
    save_model(got, tmp_path / "model.pt")
    assert_same(load_model(tmp_path / "model.pt"), x, wanted)


@pytest.mark.slow
def test_keras_loads_the_weights_back(case, tmp_path):
    model, x, wanted = case
    model.save(tmp_path / "model.keras")
    save_weights(load_model(tmp_path / "model.keras"), tmp_path / "back.weights.h5")
    keras.utils.set_random_seed(1)
    rebuilt = keras.models.clone_model(model)
    assert not np.array_equal(rebuilt(x)[0].detach(), wanted[0])
    rebuilt.load_weights(tmp_path / "back.weights.h5")
    assert_same(rebuilt, x, wanted)


@pytest.mark.slow
def test_the_command_converts_the_file(case, tmp_path, capsys):
    model, x, wanted = case
    model.save(tmp_path / "model.keras")
    outputs = {f"y{i}": y for i, y in enumerate(wanted)}
    np.savez(tmp_path / "check.npz", x=x, **outputs)
    source, out, check = (str(tmp_path / name) for name in ("model.keras", "model.pt", "check.npz"))
    assert main(["convert", source, "--out", out, "--check", check]) == 0
    assert "within 1e-05" in capsys.readouterr().out
    assert_same(load_model(tmp_path / "model.pt"), x, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["keras", "weights.h5"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_weights_are_loaded_into_a_model_of_the_user(data_format, kind, tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(image(data_format))
    model.save(tmp_path / "model.keras")
    first, second = (layer.name for layer in model.layers[:2])
    own = nn.ModuleDict(
        {
            "a": lc_triton.LocalConv2d(2, 4, (3, 2), input_size=(9, 8), stride=(2, 1), padding="same", groups=2),
            "b": lc_triton.LocallyConnected2D(3, 2, padding="keras_same", input_shape=(5, 8, 4)),
            "dense": nn.Linear(120, 3),
        }
    )
    model.save_weights(tmp_path / "model.weights.h5")
    mapping = {first: "a", second: "b", model.layers[-1].name: "dense"}
    load_weights(own, tmp_path / f"model.{kind}", mapping, config=model.to_json() if kind == "weights.h5" else None)
    want = load_model(tmp_path / "model.keras")
    for name, layer in zip("ab", want, strict=False):
        assert torch.equal(own[name].weight, layer.weight)
        assert torch.equal(own[name].bias, layer.bias)


def test_regularizers_constraints_and_dtypes_are_read(tmp_path):
    layer = layers.LocallyConnected2D(
        4,
        3,
        kernel_regularizer="l2",
        bias_regularizer=keras.regularizers.L1(0.5),
        activity_regularizer="l1",
        kernel_constraint="max_norm",
        bias_constraint=keras.constraints.MinMaxNorm(0.1, 0.2, axis=(0, 1)),
        kernel_initializer=keras.initializers.HeNormal(seed=3),
        implementation=3,
        dtype="mixed_bfloat16",
        **DRAWN,
    )
    model = keras.Sequential([keras.Input((6, 5, 2)), layer])
    model.save(tmp_path / "model.keras")
    got = load_model(tmp_path / "model.keras")[0]
    assert {p.dtype for p in got.parameters()} == {torch.float32}
    x = torch.randn(2, 6, 5, 2)
    got(x)
    kernel, bias = (torch.from_numpy(w) for w in layer.get_weights())
    penalties = got.penalties()
    assert torch.allclose(penalties[0], 0.01 * kernel.square().sum())
    assert torch.allclose(penalties[1], 0.5 * bias.abs().sum())
    assert len(penalties) == 3
    got.constrain_()
    want = [layer.kernel_constraint(layer.kernel.value), layer.bias_constraint(layer.bias.value)]
    for mine, theirs in zip(got.get_weights(), want, strict=True):
        assert np.allclose(mine.reshape(theirs.shape), theirs.detach(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*HDF5 file:UserWarning")
@pytest.mark.parametrize("kind", ["keras", "h5", "weights.h5"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_other_dtypes(dtype, kind, tmp_path):
    layer = layers.LocallyConnected2D(4, 3, dtype=dtype, **DRAWN)
    model = keras.Sequential([keras.Input((6, 5, 2), dtype=dtype), layer])
    path = tmp_path / f"model.{kind}"
    model.save_weights(path) if kind == "weights.h5" else model.save(path)
    got = load_model(path, config=model.to_json() if kind == "weights.h5" else None)
    assert got[0].weight.dtype == getattr(torch, dtype)
    assert torch.equal(got[0].weight.flatten(), layer.kernel.value.flatten())
    assert torch.equal(got[0].bias, layer.bias.value)
    save_weights(got, tmp_path / "back.weights.h5")
    before = [w.value.clone() for w in layer.weights]
    layer.set_weights([np.zeros(w.shape) for w in layer.weights])
    model.load_weights(tmp_path / "back.weights.h5")
    assert all(torch.equal(w.value, b) for w, b in zip(layer.weights, before, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.LocallyConnected1D(2, 2, activation=keras.layers.Flatten()), "is no named function"),
        (lambda: layers.LocallyConnected1D(2, 2, activation="celu"), "activation 'celu' is not known"),
    ],
)
def test_refused_arguments_are_named(make, message, tmp_path):
    keras.Sequential([keras.Input((5, 2)), make()]).save(tmp_path / "model.keras")
    with pytest.raises(ConversionError, match=r"\(LocallyConnected1D\): .*" + message):
        load_model(tmp_path / "model.keras")
