"""LocallyConnected1D/2D/3D: what a Keras user, and a PyTorch user, expect of them."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import lc_triton
from lc_triton.keras import activations, constraints, initializers, regularizers
from tests.cases import CASES, IDS, assert_close, tensors
from tests.keras import in_order

LAYERS = {1: lc_triton.LocallyConnected1D, 2: lc_triton.LocallyConnected2D, 3: lc_triton.LocallyConnected3D}
NAMED = [i for i, c in enumerate(CASES) if isinstance(c.padding, str) or c.padding == 0]


def layer_of(case, **kwargs):
    arguments = {
        "strides": case.stride,
        "padding": case.padding or "valid",
        "dilation_rate": case.dilation,
        "groups": case.groups,
        "dtype": "float64",
        "bias_initializer": "normal",
    }
    return LAYERS[len(case.in_spatial)](case.filters, case.kernel, **(arguments | kwargs))


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("case", [CASES[i] for i in NAMED], ids=[IDS[i] for i in NAMED])
def test_a_layer_is_local_conv_with_its_own_weights(case, data_format):
    x = tensors(case).x
    x = x if data_format == "channels_last" else x.movedim(-1, 1)
    layer = layer_of(case, data_format=data_format, activation="leaky_relu")
    y = layer(x)  # builds
    assert layer.weight.shape == case.geometry.weight_shape
    assert layer.bias.shape == case.geometry.bias_shape
    want = lc_triton.local_conv(
        x, layer.weight, layer.bias, **case.arguments, activation=("leaky_relu", 0.2), data_format=data_format
    )
    assert torch.equal(y, want)
    assert layer.output_shape == (None, *y.shape[1:])
    assert layer.input_shape == x.shape[1:]
    assert layer.compute_output_shape((7, *x.shape[1:])) == (7, *y.shape[1:])
    again = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
    again.set_weights(layer.get_weights())
    assert torch.equal(again(x), y)
    assert repr(again) == repr(layer)


def test_the_examples_of_the_keras_documentation():
    model = nn.Sequential(
        lc_triton.LocallyConnected2D(64, (3, 3), input_shape=(32, 32, 3)), lc_triton.LocallyConnected2D(32, (3, 3))
    )
    assert model[0].count_params() == (30 * 30) * (3 * 3 * 3 * 64) + (30 * 30) * 64
    assert model[0].output_shape == (None, 30, 30, 64)
    assert model(torch.zeros(1, 32, 32, 3)).shape == (1, 28, 28, 32)
    assert model[1].output_shape == (None, 28, 28, 32)
    model = nn.Sequential(
        lc_triton.LocallyConnected1D(64, 3, input_shape=(10, 32)), lc_triton.LocallyConnected1D(32, 3)
    )
    assert model(torch.zeros(2, 10, 32)).shape == (2, 6, 32)
    assert model[0].output_shape == (None, 8, 64)


def test_arguments_come_in_keras_order():
    config = lc_triton.LocallyConnected2D(*in_order.ARGUMENTS).get_config()
    assert config["strides"] == [2, 2]
    in_order.check(config)


@pytest.mark.parametrize("implementation", [1, 2, 3])
def test_implementations_compute_the_same(implementation):
    layer = lc_triton.LocallyConnected1D(2, 3, implementation=implementation, kernel_initializer="ones")
    x = torch.arange(12.0).view(1, 6, 2)
    assert torch.equal(layer(x), x.unfold(1, 3, 1).sum((2, 3))[..., None].expand(1, 4, 2))


@pytest.mark.parametrize("implementation", [2, 3])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("case", [CASES[i] for i in NAMED], ids=[IDS[i] for i in NAMED])
def test_weights_of_implementations_2_and_3_make_the_same_layer(case, data_format, implementation):
    x = tensors(case).x
    x = x if data_format == "channels_last" else x.movedim(-1, 1)
    first = layer_of(case, data_format=data_format)
    y = first(x)
    layer = layer_of(case, data_format=data_format, implementation=implementation)
    layer.load_state_dict(first.state_dict())
    assert torch.equal(layer(x), y)
    assert layer.count_params() == first.count_params()
    weights = layer.get_weights()
    again = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
    again.set_weights(weights)
    assert torch.equal(again(x), y)
    assert all(np.array_equal(w, v) for w, v in zip(again.get_weights(), weights, strict=True))


def test_the_shapes_of_weights():
    def shapes(data_format, implementation):
        shape = (3, 5, 6) if data_format == "channels_first" else (5, 6, 3)
        layer = lc_triton.LocallyConnected2D(
            2, 3, 2, "same", data_format, implementation=implementation, input_shape=shape
        )
        return [w.shape for w in layer.get_weights()]

    bias = (3, 3, 2)
    assert shapes("channels_last", 1) == shapes("channels_first", 1) == [(9, 27, 2), bias]
    assert shapes("channels_last", 2) == [(5, 6, 3, 3, 3, 2), bias]
    assert shapes("channels_first", 2) == [(3, 5, 6, 2, 3, 3), bias]
    # Of the taps along the rows, 2 + 3 + 2 meet the input, along the columns 3 + 3 + 2.
    assert shapes("channels_last", 3) == shapes("channels_first", 3) == [(7 * 8 * 3 * 2,), bias]


def test_three_ways_to_build():
    x = torch.randn(2, 6, 5, 3)
    one, two, three = (lc_triton.LocallyConnected2D(4, 2, **kw) for kw in ({"input_shape": (6, 5, 3)}, {}, {}))
    assert (one.built, two.built, three.input_shape, three.output_shape) == (True, False, None, None)
    assert three.penalties() == []
    three.constrain_()
    two.build((None, 6, 5, 3))
    three(x)
    assert {repr(layer) for layer in (one, two, three)} == {repr(one)}
    two.build((8, 6, 5, 3))  # once more is no harm
    for layer in (two, three):
        layer.load_state_dict(one.state_dict())
        assert torch.equal(layer(x), one(x))
        assert not layer._forward_pre_hooks


def test_a_state_dict_builds_an_unbuilt_layer():
    one, other = lc_triton.LocallyConnected1D(4, 3, input_shape=(7, 2)), lc_triton.LocallyConnected1D(4, 3)
    x = torch.randn(3, 7, 2)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(x), one(x))
    third = lc_triton.LocallyConnected1D(4, 3)
    third.load_state_dict({"weight": one.weight.detach()}, strict=False)
    assert torch.equal(third(x), lc_triton.local_conv(x, one.weight, data_format="channels_last"))  # zeros for the bias
    third = lc_triton.LocallyConnected1D(4, 3)
    third.load_state_dict(one.state_dict())
    with pytest.raises(lc_triton.LocalConvError, match=r"weight.shape=\(5, 3, 2, 4\) does not fit"):
        third(torch.randn(3, 8, 2))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("built", [True, False])
def test_copies_and_pickles(copied, built):
    layer = lc_triton.LocallyConnected1D(
        4, 3, activation="softmax", kernel_regularizer="l2", activity_regularizer="l1", kernel_constraint="max_norm"
    )
    x = torch.randn(3, 7, 2)
    if built:
        layer(x)
    other = copied(layer)
    layer(x)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert torch.equal(lc_triton.regularization_loss(other), lc_triton.regularization_loss(layer))
    assert other.to(torch.float64)(x.double()).dtype == torch.float64


@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_activations_have_keras_constants(name):
    z = torch.linspace(-4, 7, 24, dtype=torch.float64).reshape(1, 8, 3)
    layer = lc_triton.LocallyConnected1D(3, 1, activation=name, kernel_initializer="identity", dtype=torch.float64)
    F = nn.functional
    definition = {
        "linear": lambda z: z,
        "hard_sigmoid": lambda z: (0.2 * z + 0.5).clamp(0, 1),
        "exponential": torch.exp,
        "softmax": lambda z: z.softmax(-1),
        "log_softmax": lambda z: z.log_softmax(-1),
        "swish": lambda z: z * torch.sigmoid(z),
        "leaky_relu": lambda z: torch.where(z > 0, z, 0.2 * z),
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }.get(name) or getattr(F, name)
    assert_close(layer(z), definition(z), 1e-12)


def test_softmax_runs_over_the_last_axis_in_either_data_format():
    for data_format in ("channels_first", "channels_last"):
        layer = lc_triton.LocallyConnected2D(3, 2, activation="softmax", data_format=data_format)
        y = layer(torch.randn(2, 4, 5, 6))
        assert_close(y.sum(-1), torch.ones(y.shape[:-1], dtype=torch.float64), 1e-5)


def test_callables_of_the_users_own():
    class Halve(nn.Module):
        def forward(self, y):
            return y / 2

    def ramp(shape, dtype):
        return np.arange(np.prod(shape)).reshape(shape)

    layer = lc_triton.LocallyConnected1D(
        2,
        3,
        activation=Halve(),
        kernel_initializer=ramp,
        kernel_regularizer=lambda w: w[0, 0, 1],
        activity_regularizer=torch.sum,
        kernel_constraint=lambda w: w.clamp(max=5),
        input_shape=(4, 1),
    )
    assert layer.get_weights()[0].flatten().tolist() == list(range(12))
    y = layer(torch.ones(2, 4, 1))
    assert y[0].tolist() == [[3.0, 4.5], [12.0, 13.5]]
    assert lc_triton.regularization_loss(layer).item() == 1 + 33.0
    lc_triton.apply_constraints(layer)
    assert layer.get_weights()[0].flatten().tolist() == [0, 1, 2, 3, 4, 5] + [5] * 6
    with pytest.raises(lc_triton.LocalConvError, match="activation must be a name or a pair to be written into"):
        layer.get_config()
    layer.activation = None
    with pytest.raises(lc_triton.LocalConvError, match="kernel_initializer must be a named initializer to be written"):
        layer.get_config()


def test_penalties_reach_the_weights():
    model = nn.Sequential(
        lc_triton.LocallyConnected1D(2, 3, kernel_regularizer=regularizers.L2(0.5), input_shape=(4, 1)),
        lc_triton.LocallyConnected1D(1, 2, bias_regularizer="l1", activity_regularizer="l2"),
    )
    assert lc_triton.regularization_loss(nn.Linear(2, 2)).item() == 0
    model(torch.randn(5, 4, 1))
    loss = lc_triton.regularization_loss(model)
    assert_close(torch.autograd.grad(loss, model[0].weight, retain_graph=True)[0] != 0, torch.ones(2, 3, 1, 2).double())
    alone = lc_triton.regularization_loss(model[0])
    assert_close(torch.autograd.grad(alone, model[0].weight)[0], model[0].weight.detach().double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(5, 4, 1))
    assert lc_triton.regularization_loss(model).isfinite()


@pytest.mark.parametrize("implementation", [1, 2, 3])
def test_taps_on_padding_are_neither_penalised_nor_part_of_a_norm(implementation):
    layer = lc_triton.LocallyConnected1D(
        2,
        3,
        padding="same",
        kernel_initializer="ones",
        kernel_regularizer=regularizers.L2(1.0),
        kernel_constraint="unit_norm",
        implementation=implementation,
        input_shape=(4, 5),
    )
    taps = 2 + 3 + 3 + 2
    assert lc_triton.regularization_loss(layer).item() == taps * 5 * 2
    lc_triton.apply_constraints(layer)
    for position, meets in ((0, slice(1, 3)), (1, slice(0, 3)), (3, slice(0, 2))):
        norms = layer.weight.detach()[position, meets].flatten(0, 1).norm(dim=0)
        assert_close(norms, torch.ones(2, dtype=torch.float64), 1e-6)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_an_axis_counts_as_in_the_layouts_of_the_implementation(data_format):
    arguments = {"dtype": "float64", "data_format": data_format, "input_shape": (5, 5), "kernel_initializer": "normal"}
    per_filter, per_input, whole = (
        lc_triton.LocallyConnected1D(2, 3, implementation=i, kernel_constraint=constraints.UnitNorm(axis), **arguments)
        for i, axis in ((2, (0, 1)), (2, (2, 3)), (3, 0))
    )
    first = per_filter.weight.detach().clone()
    per_filter.constrain_()
    assert_close(per_filter.weight, first / (1e-7 + first.norm(dim=(1, 2), keepdim=True)))
    per_input.constrain_()
    dense = per_input.get_weights()[0]
    assert np.allclose(np.square(dense).sum((2, 3)), 1, atol=1e-5)
    first = whole.weight.detach().clone()
    whole.constrain_()
    assert_close(whole.weight, first / (1e-7 + first.norm()))


@pytest.mark.parametrize("implementation", [1, 2, 3])
def test_functions_of_the_users_own_see_the_layouts_of_the_implementation(implementation):
    shapes = []

    def penalty(w):
        shapes.append(w.shape)
        return w.sum()

    def halve(w):
        shapes.append(w.shape)
        return w / 2

    layer = lc_triton.LocallyConnected1D(
        2, 3, kernel_regularizer=penalty, kernel_constraint=halve, implementation=implementation, input_shape=(5, 4)
    )
    first = layer.weight.detach().clone()
    loss = lc_triton.regularization_loss(layer)
    assert_close(loss, first.double().sum(), 1e-5)
    assert torch.equal(torch.autograd.grad(loss, layer.weight)[0], torch.ones_like(first))
    lc_triton.apply_constraints(layer)
    assert torch.equal(layer.weight, first / 2)
    assert shapes == [layer.get_weights()[0].shape] * 2


def test_orthogonal_regularizer_drives_windows_apart():
    eye = torch.eye(3).expand(4, 3, 3)
    assert regularizers.get("orthogonal_regularizer")(eye).item() == 0
    parallel = torch.ones(4, 3, 3)  # every pair of rows has cosine 1, at each of 4 positions
    assert_close(regularizers.OrthogonalRegularizer(0.1)(parallel), torch.tensor(0.4, dtype=torch.float64), 1e-6)
    w = torch.randn(2, 4, 3, requires_grad=True)
    optimizer = torch.optim.Adam([w], 0.05)
    start = regularizers.OrthogonalRegularizer(1.0, "columns")(w).item()
    for _ in range(100):
        optimizer.zero_grad()
        regularizers.OrthogonalRegularizer(1.0, "columns")(w).backward()
        optimizer.step()
    assert regularizers.OrthogonalRegularizer(1.0, "columns")(w).item() < 0.1 * start


def test_constraints_follow_each_step_until_removed():
    layer = lc_triton.LocallyConnected2D(3, 2, kernel_constraint="unit_norm", bias_constraint="max_norm")
    x = torch.randn(4, 5, 4, 2)
    layer(x)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    handle = lc_triton.attach_constraints(layer, optimizer)

    def norms():
        layer(x).square().sum().backward()
        optimizer.step()
        return layer.weight.detach().flatten(2, 4).norm(dim=2)

    assert_close(norms(), torch.ones(4, 3, 3, dtype=torch.float64), 1e-5)
    assert layer.bias.detach().norm(dim=0).max() <= 2 + 1e-5
    handle.remove()
    assert (norms() - 1).abs().max() > 0.01


def test_a_norm_is_that_of_one_filter_unless_an_axis_is_given():
    w = torch.randn(5, 6, 4, dtype=torch.float64) * 3
    assert_close(constraints.get("unit_norm")(w).norm(dim=1), torch.ones(5, 4, dtype=torch.float64), 1e-6)
    per_position = constraints.UnitNorm(axis=[1, 2])(w)
    assert_close(per_position.flatten(1).norm(dim=1), torch.ones(5, dtype=torch.float64), 1e-6)
    assert constraints.get("max_norm")(w).norm(dim=1).max() <= 2
    norm = constraints.get("min_max_norm")(w).norm(dim=1)
    assert norm.max() <= 1


@pytest.mark.parametrize("name", sorted({n for n in initializers.INITIALIZERS if n.islower()}))
def test_initializers(name):
    config = {"value": 0.5} if name == "constant" else {}
    shape = (50, 24, 24) if name == "identity" else (50, 24, 36)
    known = vars(initializers.get(name))
    if "seed" in known:
        config["seed"] = 3
    init = initializers.get({"class_name": name, "config": config})
    w = init(shape, torch.float64)
    assert w.shape == shape
    if "seed" in known:
        assert torch.equal(w, init(shape, torch.float64))
        assert not torch.equal(w, initializers.get(name)(shape, torch.float64))
    fan_in, fan_out = shape[1:]
    std = {
        "constant": 0,
        "glorot": (2 / (fan_in + fan_out)) ** 0.5,
        "he": (2 / fan_in) ** 0.5,
        "lecun": fan_in**-0.5,
        "variance": fan_in**-0.5,
        "random": {"random_uniform": 0.1 / 12**0.5}.get(name, 0.05),
        "uniform": 0.1 / 12**0.5,
        "normal": 0.05,
        "truncated": 0.05 * initializers.TRUNCATED_STD,
        "orthogonal": fan_out**-0.5,
        "identity": (1 / fan_in - 1 / fan_in**2) ** 0.5,
    }.get(name.split("_")[0], 0)
    assert abs(w.std() - std) <= 0.02 * std
    if name == "orthogonal":
        assert_close(w @ w.mT, torch.eye(24, dtype=torch.float64).expand(50, 24, 24), 1e-12)
        assert not torch.equal(w[0], w[1])
    if name in ("truncated_normal", "glorot_normal", "he_normal", "lecun_normal", "variance_scaling"):
        assert abs(w.abs().max() / (2 * std / initializers.TRUNCATED_STD) - 1) < 0.01


def test_variance_scaling_modes():
    def std(**kwargs):
        return initializers.VarianceScaling(**kwargs)((40, 30, 50), torch.float64).std().item()

    assert abs(std(scale=2.0, mode="fan_out", distribution="uniform") / (2 / 50) ** 0.5 - 1) < 0.02
    assert abs(std(mode="fan_avg", distribution="untruncated_normal") / (1 / 40) ** 0.5 - 1) < 0.02
    assert abs(std(distribution="normal", fan_mode="keras") / (1 / 1200) ** 0.5 - 1) < 0.02


DRAWN = sorted({n for n, cls in initializers.INITIALIZERS.items() if n.islower() and "seed" in vars(cls())})


@pytest.mark.parametrize("name", DRAWN)
def test_a_seed_gives_the_same_kernel_again_and_another_seed_another(name):
    def kernel(seed, **kwargs):
        initializer = {"class_name": name, "config": {"seed": seed}}
        return lc_triton.LocallyConnected1D(
            4, 3, kernel_initializer=initializer, input_shape=(9, 2), **kwargs
        ).get_weights()[0]

    torch.manual_seed(0)
    first = kernel(7)
    torch.manual_seed(1)
    assert np.array_equal(kernel(7), first)
    assert not np.isclose(kernel(8), first).any()
    assert np.array_equal(kernel(7, implementation=3), first.transpose(0, 2, 1).flatten())
    assert not np.isclose(kernel(None), kernel(None)).any()


@pytest.mark.parametrize("implementation", [1, 2, 3])
def test_the_fans_of_keras_are_those_of_the_whole_variable(implementation):
    def drawn(name):
        initializer = {"class_name": name, "config": {"fan_mode": "keras", "seed": 1}}
        layer = lc_triton.LocallyConnected2D(
            16,
            3,
            padding="keras_same",
            kernel_initializer=initializer,
            implementation=implementation,
            input_shape=(9, 9, 8),
            dtype="float64",
        )
        kernel = torch.from_numpy(layer.get_weights()[0])
        return kernel[kernel != 0]

    connected = (7 * 3 + 2 * 2) ** 2 * 8 * 16
    fan_in, fan_out = {
        1: (81 * 72, 81 * 16),
        2: (81 * 8 * 81, 81 * 8 * 9 * 16),
        3: (connected, connected),
    }[implementation]
    w = drawn("lecun_uniform")
    assert len(w) == (81 * 72 * 16 if implementation == 1 else connected)
    assert abs(w.abs().max() / (3 / fan_in) ** 0.5 - 1) < 0.01
    assert abs(w.std() / fan_in**-0.5 - 1) < 0.02
    assert abs(drawn("glorot_normal").std() / (2 / (fan_in + fan_out)) ** 0.5 - 1) < 0.02


def test_device_dtype_and_trainable():
    layer = lc_triton.LocallyConnected1D(2, 3, device="meta", dtype=torch.bfloat16, input_shape=(5, 1))
    assert layer.weight.is_meta
    assert layer.get_config()["dtype"] == "bfloat16"
    for initializer in ("orthogonal", {"class_name": "HeNormal", "config": {"fan_mode": "keras"}}):
        other = lc_triton.LocallyConnected1D(
            2, 3, device="meta", implementation=3, kernel_initializer=initializer, input_shape=(5, 1)
        )
        assert other.weight.shape == (3, 3, 1, 2)
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(torch.ones(1, 5, 1, dtype=torch.bfloat16)).isfinite().all()
    assert [w.dtype for w in layer.get_weights()] == [np.float32, np.float32]
    frozen = lc_triton.LocallyConnected1D.from_config({"filters": 2, "kernel_size": 3, "trainable": False, "name": "a"})
    frozen(torch.ones(1, 5, 1))
    assert not any(p.requires_grad for p in frozen.parameters())
    assert frozen.get_config()["trainable"] is False


def test_dilation_groups_and_keras_same():
    layer = lc_triton.LocallyConnected2D(
        4, (2, 3), padding="keras_same", dilation_rate=(2, 1), groups=2, kernel_initializer="normal"
    )
    x = torch.randn(2, 5, 6, 2)
    want = lc_triton.local_conv(
        x, layer_weight(layer, x), padding="keras_same", dilation=(2, 1), groups=2, data_format="channels_last"
    )
    assert torch.equal(layer(x), want)
    assert layer.get_weights()[0].shape == (30, 6, 4)


def layer_weight(layer, x):
    layer(x)
    return layer.weight


def test_training_lowers_the_loss():
    model = nn.Sequential(
        lc_triton.LocallyConnected1D(6, 3, activation="relu", kernel_initializer="he_normal", kernel_regularizer="l2"),
        lc_triton.LocallyConnected1D(4, 3, activation="swish", kernel_constraint="max_norm"),
        nn.Flatten(),
        nn.LazyLinear(3),
    )
    x, target = torch.randn(32, 10, 2), torch.randint(3, (32,))
    model(x)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    lc_triton.attach_constraints(model, optimizer)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        (loss + 1e-3 * lc_triton.regularization_loss(model)).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_what_a_layer_prints():
    layer = lc_triton.LocallyConnected2D(4, 3, (1, 2), activation="relu", kernel_regularizer="l2", use_bias=False)
    assert repr(layer) == (
        "LocallyConnected2D(4, kernel_size=(3, 3), strides=(1, 2), activation='relu', use_bias=False, "
        "kernel_regularizer=L2(l2=0.01))"
    )


KERAS_2 = {  # what the constructors of Keras 2 and of its base class take
    *("filters", "kernel_size", "strides", "padding", "data_format", "activation", "use_bias", "implementation"),
    *("kernel_initializer", "bias_initializer", "kernel_regularizer", "bias_regularizer", "activity_regularizer"),
    *("kernel_constraint", "bias_constraint", "name", "trainable", "dtype", "batch_input_shape", "input_dim"),
}


def test_the_arguments_of_every_keras_layer():
    layer = lc_triton.LocallyConnected2D(16, (9, 9), activation="relu", name="L4", trainable=True)
    assert (layer.name, layer.trainable, layer.built) == ("L4", True, False)
    assert layer.get_config()["name"] == "L4"
    assert layer.get_config().keys() <= KERAS_2
    assert lc_triton.LocallyConnected2D(16, 9).name is lc_triton.LocallyConnected2D(16, 9).get_config()["name"] is None
    for arguments in (
        {"batch_input_shape": (None, 7, 2)},
        {"batch_input_shape": [32, 7, 2], "input_shape": (7, 2)},
        {"input_dim": 2, "input_length": 7},
        {"input_dim": 2, "input_shape": (7, 2)},
        {"input_shape": (2, 7), "input_dim": 2, "input_length": 7, "data_format": "channels_first"},
        {"input_dim": 2, "input_length": 7, "data_format": "channels_first"},
    ):
        layer = lc_triton.LocallyConnected1D(4, 3, activation="relu", name="first", **arguments)
        assert layer.input_shape == ((2, 7) if "data_format" in arguments else (7, 2))
        config = layer.get_config()
        assert config["batch_input_shape"] == [None, *layer.input_shape]
        assert config.keys() <= KERAS_2
        again = lc_triton.LocallyConnected1D.from_config(json.loads(json.dumps(config)))
        assert repr(again) == repr(layer)
        assert again.get_config() == config
    waiting = lc_triton.LocallyConnected1D(4, 3, input_dim=2)
    assert lc_triton.LocallyConnected1D.from_config(waiting.get_config()).get_config() == waiting.get_config()
    with pytest.raises(lc_triton.LocalConvError, match="input_dim must be 3 for an input of shape"):
        waiting(torch.zeros(1, 7, 3))
    assert waiting(torch.zeros(1, 7, 2)).shape == (1, 5, 4)


@pytest.mark.parametrize("built", [True, False])
def test_what_is_not_trainable_is_frozen_when_it_is_made(built):
    x = torch.ones(1, 5, 4, 2)
    shape = {"input_shape": (5, 4, 2)} if built else {}
    layer = lc_triton.LocallyConnected2D(3, 2, trainable=False, kernel_constraint="max_norm", **shape)
    assert layer.trainable is False
    for made in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        made(x)
        assert [p.requires_grad for p in made.parameters()] == [False, False]
        assert not made(x).requires_grad
        assert made.get_config()["trainable"] is False
        assert "trainable=False" in repr(made)
        made.trainable = True
        made(x).sum().backward()
        assert all(p.grad is not None for p in made.parameters())
        made.trainable = False
        assert not any(p.requires_grad for p in made.parameters())


def test_a_configuration_says_of_norms_what_keras_reads():
    def config(implementation):
        layer = lc_triton.LocallyConnected2D(
            3, 2, kernel_constraint="max_norm", bias_constraint="unit_norm", implementation=implementation
        )
        return [layer.get_config()[f"{name}_constraint"]["config"]["axis"] for name in ("kernel", "bias")]

    assert config(1) == [1, 0]
    assert config(2) == config(3) == [None, 0]


@pytest.mark.parametrize(
    ("dtype", "want"),
    [
        (np.float64, torch.float64),
        (np.dtype("float16"), torch.float16),
        ({"class_name": "Policy", "config": {"name": "bfloat16"}}, torch.bfloat16),
        ("float64", torch.float64),
        (torch.float16, torch.float16),
        (None, torch.float32),
    ],
)
def test_dtypes_are_given_in_many_ways(dtype, want):
    assert lc_triton.LocallyConnected1D(2, 2, dtype=dtype).weight.dtype == want


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": 3}, "name must be a string or None, got 3 of type int"),
        ({"name": ""}, "name must be a string that is not empty, or None, got ''"),
        ({"trainable": 1}, "trainable must be True or False, got 1 of type int"),
        ({"trainable": None}, "trainable must be True or False, got None"),
        ({"input_dim": 2.0}, "input_dim must be an integer >= 1, got 2.0 of type float"),
        ({"input_length": 0}, "input_length must be an integer >= 1, got 0"),
        ({"input_shape": (7, 2), "input_dim": 3}, "input_dim must be 2 for an input of shape (7, 2), or None, got 3"),
        ({"input_shape": (7, 2), "input_length": 6}, "input_length must be 7 for an input of shape (7, 2), or None"),
        ({"batch_input_shape": 7}, "batch_input_shape must be a sequence of sizes, got 7"),
        ({"batch_input_shape": (7, 2)}, "batch_input_shape must be 3 sizes (batch, spatial sizes and channels)"),
        ({"batch_input_shape": (None, None, 2)}, "batch_input_shape must be known sizes"),
        ({"batch_input_shape": (0, 7, 2)}, "batch_input_shape must be an integer >= 1, got 0"),
        (
            {"batch_input_shape": (None, 7, 2), "input_shape": (7, 3)},
            "batch_input_shape must be (batch, 7, 3), as input_shape says, got (None, 7, 2)",
        ),
        ({"dtype": "mixed_float16"}, 'dtype must be "float32", the dtype of the weights under this policy'),
        ({"dtype": "flaot32"}, "dtype must be a torch.dtype, or a name such as"),
        ({"dtype": {}}, "dtype must be a torch.dtype, or a name such as"),
        ({"dtype": np.int8}, "dtype has dtype int8; allowed are float16"),
    ],
)
def test_wrong_arguments_of_every_keras_layer(arguments, message):
    with pytest.raises(lc_triton.LocalConvError) as caught:
        lc_triton.LocallyConnected1D(4, 3, **arguments)
    assert message in str(caught.value)


def test_a_length_is_for_one_dimension():
    with pytest.raises(lc_triton.LocalConvError, match="input_length must be None for 2 spatial dimensions"):
        lc_triton.LocallyConnected2D(4, 3, input_length=7)
    layer = lc_triton.LocallyConnected2D(4, 3)
    with pytest.raises(lc_triton.LocalConvError, match="trainable must be True or False, got 'no'"):
        layer.trainable = "no"


@pytest.mark.parametrize("built", [True, False])
def test_an_array_is_told_by_its_type(built):
    layer = lc_triton.LocallyConnected1D(2, 3, **({"input_shape": (5, 1)} if built else {}))
    with pytest.raises(lc_triton.LocalConvError) as caught:
        layer(np.zeros((1, 5, 1), "float32"))
    assert str(caught.value) == (
        "x must be a torch.Tensor: torch.as_tensor(x) makes one of an array, got an array of shape (1, 5, 1) and dtype "
        "float32 of type ndarray"
    )
    for x in (None, [[1.0]]):
        with pytest.raises(lc_triton.LocalConvError, match=r"x must be a torch\.Tensor, got .* of type"):
            layer(x)
    layer(torch.zeros(1, 5, 1))
    with pytest.raises(lc_triton.LocalConvError, match=r"of shape \(2, 3\) and dtype float64 of type ndarray$"):
        layer.set_weights(np.zeros((2, 3)))
    with pytest.raises(lc_triton.LocalConvError, match=r"of shape \(3, 3, 2\) and dtype complex128 of type ndarray$"):
        layer.set_weights([np.zeros((3, 3, 2), complex), np.zeros((3, 2))])
