"""The layers for Keras 3: what Keras promises of a layer, and the same numbers as everywhere else."""

import importlib.util
import inspect
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

import lc_triton
from lc_triton import errors
from lc_triton.keras import layout
from tests.cases import CASES, IDS, assert_close, tensors
from tests.test_golden import KERAS as GOLDEN
from tests.test_golden import KERAS_DATA as DATA
from tests.test_golden import arrays, close, leaf

# May go when Keras 3 is no extra any more.
keras = pytest.importorskip("keras", "3", "Keras 3, the extra keras3, is not installed")
layers = pytest.importorskip("lc_triton.keras.layers")

TWINS = {1: lc_triton.LocallyConnected1D, 2: lc_triton.LocallyConnected2D, 3: lc_triton.LocallyConnected3D}
LAYERS = {n: getattr(layers, twin.__name__) for n, twin in TWINS.items()}
NAMED = [i for i, c in enumerate(CASES) if isinstance(c.padding, str) or c.padding == 0]


# Keras's tensors do not know the keyword that NumPy 2 hands on.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)  # an initializer without a seed takes one from here


def test_keras_runs_on_torch():
    assert keras.config.backend() == "torch"  # tests/conftest.py says so before any module imports Keras


# ---- values


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("case", [CASES[i] for i in NAMED], ids=[IDS[i] for i in NAMED])
def test_a_layer_computes_what_its_twin_computes(case, data_format):
    n = len(case.in_spatial)
    x = tensors(case).x
    x = leaf(x if data_format == "channels_last" else x.movedim(-1, 1))
    arguments = {
        "strides": case.stride,
        "padding": case.padding or "valid",
        "dilation_rate": case.dilation,
        "groups": case.groups,
        "data_format": data_format,
        "activation": "tanh",
        "dtype": "float64",
        "bias_initializer": "random_normal",
    }
    layer = LAYERS[n](case.filters, case.kernel, **arguments)
    twin = TWINS[n](case.filters, case.kernel, **arguments, input_shape=tuple(x.shape[1:]))
    y = layer(x)
    kernel, bias = layer.get_weights()
    twin.set_weights([kernel, layout.bias_to_keras(torch.from_numpy(bias), data_format)])
    want = twin(x)
    assert torch.equal(y, want)
    assert (len(x), *y.shape[1:]) == layer.compute_output_shape(tuple(x.shape))
    g = torch.randn_like(y)
    got = torch.autograd.grad(y, (x, layer.kernel.value, layer.bias.value), g)
    dx, dw, db = torch.autograd.grad(want, (x, twin.weight, twin.bias), g)
    assert_close(got[0], dx)
    assert_close(got[1], layout.kernel_to_keras(dw, case.geometry, data_format))
    assert_close(got[2], db)


@pytest.mark.parametrize("case", GOLDEN, ids=[c["id"] for c in GOLDEN])
def test_a_layer_computes_what_keras_2_computed(case):
    data, args = arrays(DATA, case), case["args"]
    padding = "keras_same" if args["padding"] == "same" else args["padding"]
    layer = getattr(layers, case["cls"])(**args | {"padding": padding}, dtype="float64")
    layer.build(case["input_shape"])
    geometry = layer._geometry

    def kernel(values):  # (P, D, F) in the order (taps, channels)
        return layout.kernel_to_keras(values.view(geometry.weight_shape), geometry, args["data_format"])

    weights = [kernel(data["kernel_pdf"])]
    if args["use_bias"]:
        weights.append(data["bias_pf"].view(geometry.bias_shape))
    layer.set_weights([w.numpy() for w in weights])

    tolerance = 2e-8 if args["activation"] == "gelu" else 1e-9
    x = leaf(data["x"])
    y = layer(x)
    close(y, data["y"], tolerance)
    y.backward(data["g"])
    close(x.grad, data["dx"], tolerance)
    close(layer.kernel.value.grad, kernel(data["dkernel_pdf"]), tolerance)
    if args["use_bias"]:
        close(layer.bias.value.grad, data["dbias_pf"].view(geometry.bias_shape), tolerance)


@pytest.mark.parametrize("implementation", [1, 2, 3])
def test_implementations_compute_the_same(implementation):
    x = torch.arange(12.0).view(1, 6, 2)
    layer = layers.LocallyConnected1D(2, 3, implementation=implementation, kernel_initializer="ones")
    assert torch.equal(layer(x), x.unfold(1, 3, 1).sum((2, 3))[..., None].expand(1, 4, 2))


# ---- activations


def through(activation, z, **kwargs):
    """What a layer that passes z on makes of it, and z's gradient."""
    z = leaf(z)
    layer = layers.LocallyConnected1D(
        3, 1, activation=activation, kernel_initializer="identity", dtype="float64", **kwargs
    )
    y = layer(z)
    return y, torch.autograd.grad(y, z, torch.ones_like(y))[0]


Z = torch.linspace(-7, 7, 57, dtype=torch.float64).reshape(1, 19, 3)  # every quarter: corners and zero among them
FLOAT_SIXTH = (keras.activations.hard_sigmoid, keras.activations.hard_silu)  # torch rounds their 1 / 6 to float32


@pytest.mark.parametrize("function", layers.FUSED, ids=lambda f: f.__name__)
def test_fused_activations_are_keras_own(function):
    z = leaf(Z)
    want = function(z)
    derivative = 1.0 if want is z else torch.autograd.grad(want, z, torch.ones_like(want))[0]
    tolerance = 1e-8 if function in FLOAT_SIXTH else 1e-14
    for activation in (function, function.__name__):
        y, gradient = through(activation, Z)
        assert_close(y, want.detach(), tolerance)
        smooth = (Z.abs() != 3) & (Z != 0) & (Z != 6)  # at a corner either side's slope is right
        assert_close(torch.where(smooth, gradient - derivative, 0.0), torch.zeros_like(Z), tolerance)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "celu", "hard_tanh", "log_sigmoid"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_other_activations_are_keras_own(name, data_format):
    z = Z if data_format == "channels_last" else Z.mT.contiguous()
    y, _ = through(name, z, data_format=data_format)
    assert_close(y, getattr(keras.activations, name)(z), 1e-14)


def test_activations_of_the_users_own():
    for activation in (
        lambda y: keras.activations.gelu(y, approximate=True),
        keras.layers.LeakyReLU(negative_slope=0.4),
        torch.nn.Hardtanh(-0.5, 0.5),
    ):
        y, _ = through(activation, Z)
        assert_close(y, activation(Z), 1e-14)
    layer = layers.LocallyConnected1D(3, 1, activation="relu", kernel_initializer="identity", dtype="float64")
    layer(Z)
    layer.activation = None
    assert torch.equal(layer(Z), Z)
    layer.activation = keras.activations.tanh
    assert_close(layer(Z), torch.tanh(Z))


# ---- models


def regression(**kwargs):
    """A model, inputs and what it should learn."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.LocallyConnected2D(8, 3, activation="relu", name="local", **kwargs),
            keras.layers.Reshape((16, 8)),
            layers.LocallyConnected1D(4, 2, strides=2, activation="tanh"),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 6, 6, 2)).astype("float32")
    y = (x[:, 1, 2, :1] - 2 * x[:, 4, 4, 1:]).astype("float32")
    return model, x, y


def test_compile_fit_evaluate_predict():
    model, x, y = regression()
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse", metrics=["mae"])
    start = model.evaluate(x, y, verbose=0)[0]
    history = model.fit(x, y, epochs=15, batch_size=16, verbose=0, validation_split=0.25)
    assert set(history.history) == {"loss", "mae", "val_loss", "val_mae"}
    loss, _ = model.evaluate(x, y, verbose=0)
    assert loss < 0.2 * start
    predicted = model.predict(x, batch_size=24, verbose=0)
    assert abs(float(np.square(predicted - y).mean()) - loss) < 1e-5


def test_a_batch_may_have_any_size():
    inputs = keras.Input((6, 6, 2))
    hidden = layers.LocallyConnected2D(3, 3, strides=2)(inputs)
    assert hidden.shape == (None, 2, 2, 3)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(hidden))
    x = torch.randn(5, 6, 6, 2)
    whole = model(x)
    assert_close(torch.cat([model(x[:2]), model(x[2:])]), whole.detach().double(), 1e-6)
    assert model(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_saved_model_predicts_the_same(name, tmp_path):
    model, x, _ = regression(kernel_regularizer="l2", kernel_constraint="max_norm", dtype="mixed_bfloat16")
    model.save(tmp_path / name)
    again = keras.saving.load_model(tmp_path / name)
    assert np.array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    assert again.get_layer("local").get_config() == model.get_layer("local").get_config()


def test_saved_weights_load(tmp_path):
    model, x, _ = regression()
    model.save_weights(tmp_path / "model.weights.h5")
    other, _, _ = regression(kernel_initializer="zeros")
    assert not np.array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))
    other.load_weights(tmp_path / "model.weights.h5")
    assert np.array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))


def test_models_are_cloned_and_pickled():
    model, x, _ = regression(activity_regularizer="l1")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for other in (clone, pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))


def test_torch_trains_it_too():
    model, x, y = regression()
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    assert len(list(model.parameters())) == len(model.trainable_variables) == 6
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.mse_loss(model(x, training=True), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


class Outer(keras.layers.Layer):
    """A layer whose output's shape Keras finds by running it on tensors without data."""

    def __init__(self):
        super().__init__()
        self.inner = layers.LocallyConnected1D(3, 2, activation="relu")

    def call(self, inputs):
        return self.inner(inputs)


@pytest.mark.filterwarnings("ignore:Layer 'outer:UserWarning", "ignore:`build:UserWarning")
def test_inside_a_layer_that_does_not_say_its_output():
    assert Outer()(keras.Input((5, 2))).shape == (None, 4, 3)
    with pytest.raises(errors.KernelTooLargeError, match="wider than the padded input 1"):
        Outer()(keras.Input((1, 2)))


# ---- what Keras does with a layer's weights


def test_regularizers_are_in_the_losses():
    activity = keras.regularizers.L1(0.01)
    x = torch.randn(4, 6, 6, 2)
    layer = layers.LocallyConnected2D(
        3,
        2,
        kernel_regularizer=keras.regularizers.L2(0.1),
        bias_regularizer="l1",
        activity_regularizer=activity,
        bias_initializer="random_normal",
    )
    model = keras.Sequential([layer])
    y = model(x)
    kernel, bias = (torch.from_numpy(w).double() for w in layer.get_weights())
    of_keras = keras.layers.Activation("linear", activity_regularizer=activity)
    of_keras(y)  # divided by the batch's size or not: that depends on the version
    want = of_keras.losses[0].double() + 0.1 * kernel.square().sum() + 0.01 * bias.abs().sum()
    assert len(model.losses) == 3
    assert_close(sum(model.losses), want.detach(), 1e-5)
    model.compile(loss="mse", optimizer="sgd")
    loss = model.evaluate(x.numpy(), y.detach().numpy(), verbose=0)
    assert_close(torch.tensor(loss), want.detach(), 1e-5)


def test_constraints_hold_after_fit():
    model, x, y = regression(kernel_constraint="unit_norm", bias_constraint=keras.constraints.NonNeg())
    model.compile(loss="mse", optimizer=keras.optimizers.SGD(0.5))
    model.fit(x, y, verbose=0)
    kernel, bias = model.get_layer("local").get_weights()
    assert np.allclose(np.linalg.norm(kernel, axis=1), 1, atol=1e-5)  # of each filter
    assert (bias >= 0).all()
    assert (bias > 0).any()


def test_an_axis_counts_as_keras_counts_it():
    named, with_axis = (
        layers.LocallyConnected1D(2, 3, kernel_constraint=c) for c in ("max_norm", keras.constraints.MaxNorm(2, axis=0))
    )
    assert (named.kernel_constraint.axis, with_axis.kernel_constraint.axis) == (1, 0)
    again = layers.LocallyConnected1D.from_config(named.get_config())
    assert again.kernel_constraint.axis == 1


def test_frozen_layers_stay():
    model, x, y = regression(trainable=False)
    frozen = model.get_layer("local")
    before, rest = frozen.get_weights(), model.layers[-1].get_weights()
    assert not frozen.trainable_variables
    assert not any(p.requires_grad for p in frozen.parameters())
    model.compile(loss="mse", optimizer="sgd")
    model.fit(x, y, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, frozen.get_weights(), strict=True))
    assert not np.array_equal(rest[0], model.layers[-1].get_weights()[0])
    assert frozen.get_config()["trainable"] is False


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_reads_float32_weights(dtype, monkeypatch):
    layer = layers.LocallyConnected2D(3, 2, activation="relu", dtype=f"mixed_{dtype}", bias_initializer="random_normal")
    seen = []

    def spy(x, weight, bias, **kwargs):
        seen.extend([x.dtype, weight, bias])
        return lc_triton.local_conv(x, weight, bias, **kwargs)

    monkeypatch.setattr(layers, "local_conv", spy)
    x = torch.randn(4, 5, 5, 2)
    y = layer(x)
    half = getattr(torch, dtype)
    assert y.dtype == seen[0] == half
    for tensor, variable in zip(seen[1:], layer.weights, strict=True):
        assert tensor.dtype == torch.float32
        assert tensor.data_ptr() == variable.value.data_ptr()  # no copy of any kind
    weight, bias = (t.detach().to(half).double() for t in seen[1:])
    want = lc_triton.local_conv(x.to(half).double(), weight, bias, activation="relu", data_format="channels_last")
    assert_close(y, want, torch.finfo(half).eps)
    model = keras.Sequential([layer, keras.layers.Flatten(), keras.layers.Dense(1, dtype="float32")])
    model.compile(loss="mse", optimizer="adam")
    before = layer.get_weights()
    model.fit(x.numpy(), np.ones((4, 1)), verbose=0)
    assert [w.dtype for w in layer.get_weights()] == [np.float32, np.float32]
    assert not any(np.array_equal(a, b) for a, b in zip(before, layer.get_weights(), strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_other_dtypes(dtype):
    layer = layers.LocallyConnected1D(3, 2, dtype=dtype)
    y = layer(np.ones((2, 5, 2), dtype="int32"))
    assert {str(y.dtype), str(layer.kernel.value.dtype)} == {f"torch.{dtype}"}
    want = layer.kernel.value.double().sum(1)
    assert_close(y[0], want.detach(), torch.finfo(y.dtype).eps)


# ---- initializers


@pytest.mark.parametrize("name", ["glorot_uniform", "he_normal", "lecun_uniform", "variance_scaling"])
def test_fans_are_those_of_one_position(name):
    initializer = type(keras.initializers.get(name))(seed=7)

    def kernel(fan_mode):
        layer = layers.LocallyConnected2D(16, 3, kernel_initializer=initializer, fan_mode=fan_mode)
        layer.build((None, 12, 12, 8))
        return layer.get_weights()[0]

    ours, theirs = kernel("position"), kernel("keras")
    variance = {"glorot_uniform": 2 / (72 + 16), "he_normal": 2 / 72}.get(name, 1 / 72)
    assert abs(ours.var() / variance - 1) < 0.02
    assert np.allclose(ours, 10 * theirs, rtol=1e-6)  # 100 positions: the very numbers Keras draws, scaled


def test_fans_that_the_user_counts_are_left_alone():
    initializer = keras.initializers.HeNormal(seed=3)
    if not hasattr(initializer, "input_axes"):
        pytest.skip("this Keras has no input_axes")  # may go when no supported version is without
    initializer = keras.initializers.HeNormal(seed=3, input_axes=[1], output_axes=[2])
    layer = layers.LocallyConnected2D(16, 3, kernel_initializer=initializer)
    layer.build((None, 12, 12, 8))
    assert abs(layer.get_weights()[0].var() / (2 / 72) - 1) < 0.02


def test_matrices_are_those_of_one_position():
    def kernel(initializer, filters=12, fan_mode="position"):
        layer = layers.LocallyConnected1D(filters, 3, kernel_initializer=initializer, fan_mode=fan_mode)
        layer.build((None, 6, 4))
        return layer.get_weights()[0]

    for filters in (5, 12, 20):
        w = kernel(keras.initializers.Orthogonal(gain=2.0, seed=1), filters)
        gram = w @ w.swapaxes(1, 2) if filters >= 12 else w.swapaxes(1, 2) @ w
        assert np.allclose(gram, 4 * np.eye(gram.shape[-1]), atol=1e-5)
        assert not np.allclose(w[0], w[1], atol=0.1)
        assert np.array_equal(w, kernel(keras.initializers.Orthogonal(gain=2.0, seed=1), filters))
    assert np.array_equal(kernel("identity"), np.tile(np.eye(12), (4, 1, 1)))
    whole = kernel("orthogonal", fan_mode="keras").reshape(48, 12)
    assert np.allclose(whole.T @ whole, np.eye(12), atol=1e-5)
    with pytest.raises(ValueError, match="2D matrices"):
        kernel("identity", fan_mode="keras")


def test_initializers_of_the_users_own():
    values = np.random.default_rng(0).standard_normal((4, 6, 3)).astype("float32")
    for initializer in (values, lambda shape, dtype=None: torch.from_numpy(values)):
        layer = layers.LocallyConnected1D(3, 3, kernel_initializer=initializer)
        layer.build((None, 6, 2))
        assert np.array_equal(layer.get_weights()[0], values)
    plain = layers.LocallyConnected1D(3, 3, kernel_initializer=None, bias_initializer=None).get_config()
    assert plain["kernel_initializer"]["class_name"] == "GlorotUniform"
    assert plain["bias_initializer"]["class_name"] == "Zeros"


# ---- arguments


def test_arguments_come_in_keras_order():
    layer = layers.LocallyConnected2D(
        4, 3, 2, "SAME", "channels_first", "tanh", False, "ones", "ones", "l1", "l2", "l1_l2", "non_neg", "unit_norm", 3
    )
    config = layer.get_config()
    assert config["strides"] == (2, 2)
    assert (config["padding"], config["data_format"], config["activation"]) == ("same", "channels_first", "tanh")
    names = [
        "kernel_initializer",
        "bias_initializer",
        "kernel_regularizer",
        "bias_regularizer",
        "activity_regularizer",
        "kernel_constraint",
        "bias_constraint",
    ]
    assert config["activity_regularizer"]["config"] == {"l1": 0.01, "l2": 0.01}  # what Keras 2's name meant
    assert [config[n]["class_name"] for n in names] == ["Ones", "Ones", "L1", "L2", "L1L2", "NonNeg", "UnitNorm"]
    assert (config["use_bias"], config["implementation"], config["groups"]) == (False, 3, 1)


def test_the_same_arguments_as_the_torch_layers():
    def positional(cls):
        return [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    for n, layer in LAYERS.items():
        assert positional(layer) == positional(TWINS[n])


def test_the_data_format_is_that_of_the_configuration():
    assert layers.LocallyConnected2D(1, 1).data_format == "channels_last"
    keras.config.set_image_data_format("channels_first")
    try:
        assert layers.LocallyConnected2D(1, 1).data_format == "channels_first"
    finally:
        keras.config.set_image_data_format("channels_last")


def test_the_examples_of_the_keras_documentation():
    local = layers.LocallyConnected2D(64, (3, 3))
    model = keras.Sequential([keras.Input((32, 32, 3)), local, layers.LocallyConnected2D(32, (3, 3))])
    assert local.count_params() == (30 * 30) * (3 * 3 * 3 * 64) + (30 * 30) * 64
    assert model.output_shape == (None, 28, 28, 32)
    model = keras.Sequential(
        [keras.Input((10, 32)), layers.LocallyConnected1D(64, 3), layers.LocallyConnected1D(32, 3)]
    )
    assert model.output_shape == (None, 6, 32)


def make(filters=4, kernel_size=3, *, build=None, **kwargs):
    layer = layers.LocallyConnected2D(filters, kernel_size, **kwargs)
    if build is not None:
        layer.build(build)
    return layer


E = errors
WRONG = [
    (lambda: make(0), E.ArgumentValueError, "filters must be an integer >= 1, got 0"),
    (lambda: make(4.0), E.ArgumentTypeError, "filters must be an integer >= 1, got 4.0"),
    (lambda: make(kernel_size=(3,)), E.LengthError, "kernel_size must be an int or 2 ints"),
    (lambda: make(strides=0), E.ArgumentValueError, "strides must be an integer >= 1, got 0"),
    (lambda: make(padding="sane"), E.UnknownNameError, "padding 'sane' is not known (did you mean 'same'?)"),
    (lambda: make(padding="causal"), E.PaddingError, "exists in 1-D only"),
    (lambda: make(padding=1), E.ArgumentTypeError, "padding must be one of valid, same, keras_same, causal, got 1"),
    (lambda: make(data_format="channels_lost"), E.UnknownNameError, "did you mean 'channels_last'?"),
    (lambda: make(use_bias=1), E.ArgumentTypeError, "use_bias must be True or False, got 1"),
    (lambda: make(implementation=4), E.ArgumentValueError, "implementation must be 1, 2 or 3"),
    (lambda: make(groups=3), E.GroupsError, "filters must be divisible by groups, got filters=4 with groups=3"),
    (lambda: make(groups=2, build=(None, 5, 5, 3)), E.GroupsError, "in_channels=3 with groups=2"),
    (lambda: make(fan_mode="kers"), E.UnknownNameError, "fan_mode 'kers' is not known (did you mean 'keras'?)"),
    (lambda: make(activation="sofmax"), ValueError, "sofmax"),
    (lambda: make(kernel_initializer="glorot"), (ValueError, TypeError), "glorot"),
    (lambda: make(kernel_regularizer="l3"), ValueError, "l3"),
    (lambda: make(bias_constraint="maxnorm"), ValueError, "maxnorm"),
    (lambda: make(stride=2), ValueError, "stride"),
    (lambda: make(build=5), E.ArgumentTypeError, "input_shape must be a sequence of sizes, got 5"),
    (
        lambda: make(build=(5, 5, 3)),
        E.LengthError,
        "input_shape must be 4 sizes (batch, rows, cols, channels) for 2 spatial dimension(s), got (5, 5, 3)",
    ),
    (
        lambda: make()(keras.Input((5, None, 3))),
        E.ArgumentValueError,
        "input_shape must be known in axis 2 (cols): every output position has filters of its own, so only the batch "
        "may be None, got (None, 5, None, 3)",
    ),
    (
        lambda: make(data_format="channels_first")(keras.Input((None, 5, 5))),
        E.ArgumentValueError,
        "input_shape must be known in axis 1 (channels)",
    ),
    (lambda: make(build=(None, 2, 5, 3)), E.KernelTooLargeError, "wider than the padded input 2"),
    (lambda: make()(torch.zeros(5, 5, 3)), ValueError, "expected ndim=4, found ndim=3"),
    (
        lambda: make(build=(None, 5, 5, 3))(torch.zeros(1, 6, 5, 3)),
        ValueError,
        "expected shape=(None, 5, 5, 3), found shape=(1, 6, 5, 3)",
    ),
    (
        lambda: make(build=(None, 5, 5, 3)).set_weights([np.zeros((9, 27, 4))]),
        ValueError,
        "expecting 2 weights",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)


def test_a_mask_is_dropped_as_convolutions_drop_it():
    x = keras.layers.Masking()(torch.zeros(2, 5, 3))
    for layer in (layers.LocallyConnected1D(3, 2), keras.layers.Conv1D(3, 2)):
        with pytest.warns(UserWarning, match="does not support masking"):
            layer(x)


# ---- other environments


def python(code, **environment):
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


REFUSED = "these layers compute in torch: set KERAS_BACKEND=torch in the environment before keras is imported"


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "tensorflow")
    with pytest.raises(errors.BackendError, match="backend 'tensorflow' cannot be used: " + REFUSED):
        make()


# May go when an extra that the tests are run with has JAX: Keras's numpy backend needs it too.
@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="needs JAX, or Keras has no backend but torch")
def test_another_backend_of_a_process_is_refused():
    code = "from lc_triton.keras.layers import LocallyConnected1D; LocallyConnected1D(2, 3)"
    done = python(code, KERAS_BACKEND="numpy")
    assert done.returncode == 1
    assert "BackendError: backend 'numpy' cannot be used: " + REFUSED in done.stderr


HIDDEN = """
import importlib, sys
class Hidden:
    def __init__(self, hidden):
        self.hidden = hidden
    def find_spec(self, name, path=None, target=None):
        if name == self.hidden:
            raise ModuleNotFoundError("No module named " + name, name=name)
def attempt(hidden):
    sys.meta_path.insert(0, Hidden(hidden))
    try:
        importlib.import_module("lc_triton.keras.layers")
    except lc_triton.LocalConvError as error:
        print(type(error).__name__, error)
    del sys.meta_path[0]
import lc_triton
assert "keras" not in sys.modules
attempt("keras")
attempt("jax")
"""


def test_keras_waits_until_it_is_needed_and_what_is_missing_then_is_named():
    done = python(HIDDEN, KERAS_BACKEND="jax")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "MissingPackageError lc_triton.keras.layers needs keras, which is not installed: "
        'pip install "lc-triton[keras3]"',
        "BackendError backend 'jax' cannot be used: Keras cannot import it: set KERAS_BACKEND=torch in the environment "
        "before keras is first imported",
    ]
