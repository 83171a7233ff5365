"""Layers whose weights are computed, or whose arguments are set after they were made."""

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, parametrize, prune

import lc_triton
from lc_triton.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    AttributeChangeError,
    ComputedParameterError,
    KernelTooLargeError,
    NotBuiltError,
)
from lc_triton.keras import save_weights
from tests.cases import assert_close

# ---- writes into weights that are computed


class Softplus(nn.Module):
    """A parametrization with a right inverse: positive weights."""

    def forward(self, x):
        return nn.functional.softplus(x)

    def right_inverse(self, y):
        return y + torch.log(-torch.expm1(-y))


class Squared(nn.Module):
    """A parametrization without a right inverse."""

    def forward(self, x):
        return x * x


class Sum(nn.Module):
    """A parametrization of two tensors."""

    def forward(self, a, b):
        return a + b

    def right_inverse(self, y):
        return y / 4, y * 3 / 4


def keras_layer(**kwargs):
    torch.manual_seed(0)
    layer = lc_triton.LocallyConnected1D(2, 3, input_shape=(5, 2), bias_initializer="uniform", **kwargs)
    layer.set_weights([np.abs(w) + 0.1 for w in layer.get_weights()])
    return layer


def softplus(layer, name="weight"):
    return parametrize.register_parametrization(layer, name, Softplus())


def two(layer, name="weight"):
    return parametrize.register_parametrization(layer, name, Sum())


def chained(layer, name="weight"):
    return softplus(two(layer, name), name)


def weight_norm(layer, name="weight"):
    return parametrizations.weight_norm(layer, name, dim=getattr(layer, name).ndim - 1)  # torch's -1 means all


WRITTEN = [weight_norm, softplus, two, chained]


def no_inverse(layer, name="weight"):
    return parametrize.register_parametrization(layer, name, Squared())


def pruned(layer, name="weight"):
    prune.random_unstructured(layer, name, 0.5)
    return layer


def weight_norm_hook(layer, name="weight"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the parametrization is newer
        return nn.utils.weight_norm(layer, name)


def spectral_norm_hook(layer, name="weight"):
    return nn.utils.spectral_norm(layer, name)


def plain_tensor(layer, name="weight"):
    value = getattr(layer, name).detach() * 1
    delattr(layer, name)
    setattr(layer, name, value)
    return layer


REFUSED = {
    no_inverse: "its parametrization Squared has no right_inverse",
    pruned: "it is pruned \\(RandomUnstructured\\)",
    weight_norm_hook: "the forward pre-hook WeightNorm computes it .*torch.nn.utils.remove_weight_norm",
    spectral_norm_hook: "the forward pre-hook SpectralNorm computes it",
    plain_tensor: "it is no parameter of the layer",
}


def state(layer):
    found = {k: v.clone() for k, v in layer.state_dict().items()}
    return found | {k: v.clone() for k, v in vars(layer).items() if isinstance(v, torch.Tensor)}


def assert_same_state(layer, before):
    after = state(layer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.fixture
def file(tmp_path):
    """Keras's file of a layer's weights, and the weights."""
    pytest.importorskip("h5py")
    layer, path = keras_layer(), tmp_path / "layer.weights.h5"
    layer.set_weights([w + 1 for w in layer.get_weights()])
    save_weights(layer, path)
    return path, layer.get_weights()


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("computed", WRITTEN)
def test_what_is_written_through_a_parametrization_arrives(computed, name, file):
    path, stored = file
    layer = computed(keras_layer(), name)
    wanted = [w * 2 + 0.5 for w in layer.get_weights()]
    layer.set_weights(wanted)
    for got, want in zip(layer.get_weights(), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    x = torch.randn(4, 5, 2)
    plain = keras_layer()
    plain.set_weights(wanted)
    assert_close(layer(x), plain(x).detach().double(), 1e-5)
    lc_triton.keras.load_weights(nn.ModuleDict({"locally_connected1d": layer}), path)
    for got, want in zip(layer.get_weights(), stored, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    assert parametrize.is_parametrized(layer, name)
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("computed", REFUSED)
def test_a_write_that_would_be_lost_is_refused_and_nothing_is_written(computed, name, file):
    layer = computed(keras_layer(kernel_constraint="non_neg", bias_constraint="non_neg"), name)
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.is_leaf], 0.1)
    before = state(layer)
    message = f"{name} of LocallyConnected1D cannot be written: {REFUSED[computed]}"
    writes = {
        "set_weights": lambda: layer.set_weights([w + 7 for w in layer.get_weights()]),
        "load_weights": lambda: lc_triton.keras.load_weights(nn.ModuleDict({"locally_connected1d": layer}), file[0]),
        "reset_parameters": layer.reset_parameters,
        "apply_constraints": lambda: lc_triton.apply_constraints(layer),
        "attach_constraints": lambda: lc_triton.attach_constraints(layer, optimizer),
    }
    for what, write in writes.items():
        if computed is plain_tensor and what.endswith("constraints"):
            continue  # nothing of it trains, and constraints leave what is frozen
        with pytest.raises(ComputedParameterError, match=message):
            write()
        assert_same_state(layer, before)
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("computed", [*WRITTEN, *(c for c in REFUSED if c is not plain_tensor)])
def test_layers_of_torchs_convention_are_reset_or_refuse(computed):
    for make in (
        lambda: lc_triton.LocalConv1d(2, 3, 3, 6),
        lambda: lc_triton.LocalConvTranspose1d(2, 3, 3, 6, bias="channel"),
    ):
        layer = make()
        if computed in (softplus, chained):  # which can give positive numbers alone
            continue
        layer = computed(layer)
        before = state(layer)
        if computed in REFUSED:
            with pytest.raises(ComputedParameterError, match=REFUSED[computed]):
                layer.reset_parameters()
            assert_same_state(layer, before)
            continue
        torch.manual_seed(3)
        layer.reset_parameters()
        torch.manual_seed(3)
        plain = make()
        torch.manual_seed(3)
        plain.reset_parameters()
        assert_close(layer.weight, plain.weight.detach().double(), 1e-6)
        assert_close(layer.bias, plain.bias.detach().double(), 1e-6)


def test_spectral_norm_is_reset_and_takes_what_it_can_give():
    layer = parametrizations.spectral_norm(keras_layer(), dim=-1, n_power_iterations=20)
    layer.train()
    given = layer.get_weights()
    layer.set_weights(given)
    np.testing.assert_allclose(layer.get_weights()[0], given[0], rtol=1e-4)
    before = {k: v.clone() for k, v in layer.parametrizations.state_dict().items()}
    with pytest.raises(ComputedParameterError, match="its parametrization \\(_SpectralNorm\\) makes other numbers"):
        layer.set_weights([w * 3 for w in given])
    assert torch.equal(layer.parametrizations.weight.original, before["weight.original"])
    assert layer.parametrizations.weight[0].training
    layer.reset_parameters()
    assert not torch.equal(layer.parametrizations.weight.original, before["weight.original"])
    assert layer.weight.isfinite().all()


def test_numbers_that_a_norm_cannot_give_are_refused():
    layer = weight_norm(keras_layer())
    zero = layer.get_weights()
    zero[0][..., 0] = 0  # weight_norm makes NaN of a filter of zeros
    before = state(layer)
    with pytest.raises(ComputedParameterError, match="_WeightNorm"):
        layer.set_weights(zero)
    assert_same_state(layer, before)
    layer.bias_initializer = "zeros"
    layer = weight_norm(layer, "bias")
    with pytest.raises(ComputedParameterError, match="bias of LocallyConnected1D"):
        layer.reset_parameters()


def test_constraints_hold_through_a_parametrization():
    layer = two(keras_layer(kernel_constraint="max_norm", bias_constraint="non_neg"))
    optimizer = torch.optim.SGD(layer.parameters(), 3.0)
    lc_triton.attach_constraints(layer, optimizer)
    layer(torch.randn(3, 5, 2)).square().sum().backward()
    optimizer.step()
    norms = layer.weight.detach().flatten(1, 2).norm(dim=1)
    assert norms.max() <= 2 + 1e-5
    assert norms.max() > 1.9
    assert layer.bias.min() >= 0


def test_one_layer_that_cannot_be_written_keeps_all_from_being_written(file):
    one, other = keras_layer(kernel_constraint="unit_norm"), pruned(keras_layer(kernel_constraint="unit_norm"))
    net = nn.Sequential(one, other)
    before = [state(one), state(other)]
    with pytest.raises(ComputedParameterError):
        lc_triton.apply_constraints(net)
    assert_same_state(one, before[0])
    pair = nn.ModuleDict({"locally_connected1d": one})
    linear = nn.Linear(3, 4)
    prune.l1_unstructured(linear, "weight", 0.5)
    with pytest.raises(lc_triton.LocalConvError, match="missing: dense"):
        lc_triton.keras.load_weights(nn.ModuleDict({**pair, "dense": linear}), file[0])
    assert_same_state(one, before[0])


def test_weights_of_other_layers_are_written_through_parametrizations(tmp_path):
    pytest.importorskip("h5py")
    source, path = nn.ModuleDict({"dense": nn.Linear(3, 4)}), tmp_path / "dense.weights.h5"
    save_weights(source, path)
    target = nn.ModuleDict({"dense": parametrizations.weight_norm(nn.Linear(3, 4))})
    lc_triton.keras.load_weights(target, path)
    assert_close(target.dense.weight, source.dense.weight.detach().double(), 1e-6)
    target = nn.ModuleDict({"dense": nn.Linear(3, 4)})
    prune.l1_unstructured(target.dense, "weight", 0.5)
    before = state(target.dense)
    with pytest.raises(ComputedParameterError, match="weight of Linear cannot be written: it is pruned"):
        lc_triton.keras.load_weights(target, path)
    assert_same_state(target.dense, before)


def test_whether_a_computed_weight_trains_does_not_depend_on_the_last_forward():
    layer = pruned(keras_layer(kernel_constraint="non_neg"))
    with torch.no_grad():
        layer(torch.randn(1, 5, 2))
    assert not layer.weight.requires_grad
    assert layer.get_config()["trainable"]
    with pytest.raises(ComputedParameterError):
        lc_triton.apply_constraints(layer)
    layer.requires_grad_(False)
    assert not layer.get_config()["trainable"]
    lc_triton.apply_constraints(layer)  # which leaves what is frozen


# ---- arguments that are set afterwards

X = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(0))


def conv(**kwargs):
    arguments = {"stride": 1, "padding": 1, "bias": "channel"} | kwargs
    return lc_triton.LocalConv2d(4, 6, 3, (9, 8), **arguments)


def transposed(**kwargs):
    return lc_triton.LocalConvTranspose2d(4, 6, 3, (9, 8), **({"stride": 2, "bias": "channel"} | kwargs))


def keras2d(**kwargs):
    return lc_triton.LocallyConnected2D(6, 3, **({"padding": "same", "input_shape": (4, 9, 8)} | kwargs))


def shown(layer):
    """All that a layer says of itself."""
    said = [repr(layer)]
    if isinstance(layer, lc_triton.LocallyConnected2D):
        return [*said, layer.get_config(), layer.input_shape, layer.output_shape]
    return [*said, layer.output_size, layer.bias_kind, layer.input_size, layer.in_channels]


# (kind, arguments, what is set, what the same layer is made with)
TAKE_EFFECT = [
    (conv, {}, {"padding_mode": "circular"}, {"padding_mode": "circular"}),
    (conv, {}, {"padding_mode": "reflect"}, {"padding_mode": "reflect"}),
    (conv, {}, {"padding": "same"}, {"padding": "same"}),
    (conv, {}, {"padding": [(2, 0), (0, 2)]}, {"padding": [(2, 0), (0, 2)]}),
    (conv, {}, {"activation": "relu"}, {"activation": "relu"}),
    (conv, {}, {"activation": ["leaky_relu", 0.3]}, {"activation": ("leaky_relu", 0.3)}),
    (conv, {"stride": 9}, {"dilation": 2, "padding": (2, 2)}, {"dilation": 2, "padding": 2, "stride": 9}),
    (conv, {"stride": 9}, {"stride": (10, 9)}, {"stride": (10, 9)}),
    (conv, {"padding": 0, "stride": 2}, {"input_size": (10, 8)}, {"padding": 0, "stride": 2}),
    (transposed, {}, {"stride": (3, 2)}, {"stride": (3, 2)}),
    (transposed, {}, {"output_padding": 1}, {"output_padding": 1}),
    (transposed, {}, {"padding": 1}, {"padding": 1}),
    (transposed, {}, {"dilation": [2, 3]}, {"dilation": [2, 3]}),
    (transposed, {"bias": False}, {"stride": 4}, {"bias": False, "stride": 4}),
    (transposed, {"output_padding": 1}, {"activation": "gelu"}, {"output_padding": 1, "activation": "gelu"}),
    (keras2d, {"data_format": "channels_first"}, {"padding": "KERAS_SAME"}, {"data_format": "channels_first"}),
    (keras2d, {"data_format": "channels_first"}, {"activation": "swish"}, {"data_format": "channels_first"}),
    (keras2d, {"data_format": "channels_first"}, {"implementation": 2}, {"data_format": "channels_first"}),
    (keras2d, {"data_format": "channels_first"}, {"kernel_regularizer": "l2"}, {"data_format": "channels_first"}),
    (keras2d, {"data_format": "channels_first"}, {"kernel_constraint": "non_neg"}, {"data_format": "channels_first"}),
    (keras2d, {"data_format": "channels_first"}, {"bias_initializer": "ones"}, {"data_format": "channels_first"}),
    (keras2d, {"data_format": "channels_first"}, {"activity_regularizer": "l1"}, {"data_format": "channels_first"}),
]


@pytest.mark.parametrize(("make", "arguments", "changes", "other"), TAKE_EFFECT)
def test_an_argument_set_later_is_as_good_as_one_given_at_first(make, arguments, changes, other):
    layer = make(**arguments)
    x = X
    for name, value in changes.items():
        setattr(layer, name, value)
    if "input_size" in changes:
        x = torch.randn(2, 4, *changes["input_size"])
        want = lc_triton.LocalConv2d(4, 6, 3, changes["input_size"], bias="channel", **other)
    else:
        want = make(**(other | changes if make is keras2d else other))
    want.load_state_dict(layer.state_dict())
    assert shown(layer) == shown(want)
    assert torch.equal(layer(x), want(x))
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), saved_and_loaded(layer)):
        assert shown(again) == shown(layer)
        assert torch.equal(again(x), layer(x))
    if make is not keras2d and layer.activation is None and layer.padding != ((2, 0), (0, 2)):
        other = layer.to_conv(tolerance=9.0)
        assert (other.stride, other.dilation) == (layer.stride, layer.dilation)
        assert other(x).shape == layer(x).shape


def saved_and_loaded(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_data_format_may_be_set():
    layer = keras2d(data_format="channels_first")
    y = layer(X)
    layer.data_format = None  # Keras's default, channels last
    assert layer.input_shape == (9, 8, 4)
    assert layer.output_shape == (None, 9, 8, 6)
    assert layer.get_config()["data_format"] == "channels_last"
    assert torch.equal(layer(X.movedim(1, -1)), y.movedim(1, -1))


# (kind, attribute, value, error, message)
REFUSALS = [
    (conv, "stride", 2, AttributeChangeError, r"weight would need the shape \(5, 4, .*\) and has \(9, 8, .*\)"),
    (conv, "padding", 0, AttributeChangeError, r"weight would need the shape \(7, 6, "),
    (conv, "dilation", (2, 1), AttributeChangeError, "weight would need the shape"),
    (conv, "dilation", 9, KernelTooLargeError, "dilation"),
    (conv, "groups", 2, AttributeChangeError, r"weight would need the shape \(9, 8, 3, 3, 2, 6\)"),
    (conv, "groups", 5, ValueError, "divisible by groups"),
    (conv, "kernel_size", 5, AttributeChangeError, "weight would need the shape"),
    (conv, "in_channels", 5, AttributeChangeError, "weight would need the shape"),
    (conv, "out_channels", 7, AttributeChangeError, "weight would need the shape"),
    (conv, "input_size", 20, AttributeChangeError, "weight would need the shape"),
    (conv, "padding_mode", "reflected", ValueError, "did you mean 'reflect'"),
    (conv, "stride", 0, ValueError, "stride must be an integer >= 1"),
    (conv, "padding", (1, 2, 3), ValueError, "padding must be"),
    (conv, "activation", "rellu", ValueError, "did you mean 'relu'"),
    (conv, "activation", nn.ReLU, TypeError, "activation must be"),
    (conv, "bias_kind", "position", AttributeChangeError, "the layer works it out"),
    (conv, "output_size", (3, 3), AttributeChangeError, "the layer works it out"),
    (conv, "geometry", None, AttributeChangeError, "the layer works it out"),
    (conv, "ndim", 3, AttributeChangeError, "the layer works it out"),
    (transposed, "output_padding", 2, ValueError, "output_padding=.* is not possible"),
    (transposed, "padding", "same", ValueError, "is not for transposed layers"),
    (
        lambda: transposed(bias="position"),
        "stride",
        3,
        AttributeChangeError,
        r"bias would need the shape \(27, 24, 6\)",
    ),
    (keras2d, "strides", 2, AttributeChangeError, "weight would need the shape"),
    (keras2d, "padding", "valid", AttributeChangeError, "weight would need the shape"),
    (keras2d, "padding", "causal", ValueError, "causal"),
    (keras2d, "filters", 12, AttributeChangeError, "weight would need the shape"),
    (keras2d, "kernel_size", (1, 3), AttributeChangeError, "weight would need the shape"),
    (keras2d, "dilation_rate", 0, ValueError, "dilation_rate must be"),
    (keras2d, "groups", 2, AttributeChangeError, "weight would need the shape"),
    (keras2d, "implementation", 4, ValueError, "implementation must be 1, 2 or 3"),
    (keras2d, "data_format", "NHWC", ValueError, "data_format"),
    (keras2d, "use_bias", False, AttributeChangeError, "the layer works it out"),
    (keras2d, "built", False, AttributeChangeError, "the layer works it out"),
    (keras2d, "input_shape", (1, 2, 3), AttributeChangeError, "the layer works it out"),
    (keras2d, "output_shape", (1, 2, 3), AttributeChangeError, "the layer works it out"),
    (keras2d, "kernel_constraint", "maxnorm", ValueError, "did you mean"),
    (keras2d, "kernel_initializer", 3, TypeError, "initializer must be"),
    (keras2d, "bias_regularizer", "l3", ValueError, "regularizer 'l3' is not known"),
    (keras2d, "activation", "gelu_tanh", ValueError, "activation 'gelu_tanh' is not known"),
    (keras2d, "name", 3, TypeError, "name must be"),
    (keras2d, "trainable", "yes", TypeError, "trainable must be"),
]


@pytest.mark.parametrize(("make", "name", "value", "error", "message"), REFUSALS)
def test_an_argument_that_cannot_be_set_is_refused_and_nothing_changes(make, name, value, error, message):
    layer = make()
    x = X if make is not keras2d else torch.randn(2, 4, 9, 8)
    before, y = shown(layer), layer(x)
    plan = layer._plan
    with pytest.raises(error, match=message) as raised:
        setattr(layer, name, value)
    assert isinstance(raised.value, lc_triton.LocalConvError)
    assert layer._plan is plan
    assert shown(layer) == before
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("make", [conv, transposed, keras2d])
def test_every_public_attribute_takes_effect_or_is_refused(make):
    layer = make()
    plain = {*dir(nn.Module()), "weight", "bias", "initialize_parameters", "has_uninitialized_params"}
    plain |= {"infer_parameters", "cls_to_become"}  # of torch's lazy modules
    plain |= {"trainable"}  # a property that sets requires_grad of the parameters
    names = [n for n in dir(layer) if not n.startswith("_") and n not in plain]
    attributes = {n for n in names if not callable(getattr(layer, n)) or n == "convolution"} - {"convolution"}
    assert attributes <= layer._arguments | layer._fixed
    for name in attributes & layer._fixed:
        with pytest.raises(AttributeChangeError):
            setattr(layer, name, getattr(layer, name))
    for name in attributes & layer._arguments:  # what it is may be set, and leaves the plan as it is
        plan = layer._plan
        setattr(layer, name, getattr(layer, name))
        assert layer._plan is plan


def test_an_activation_may_be_a_module_and_become_a_name_and_back():
    z, relu = conv()(X), nn.ReLU()
    for make in (conv, lambda **kwargs: keras2d(data_format="channels_first", **kwargs)):
        layer = make(activation=relu)
        z = lc_triton.local_conv(X, layer.weight, layer.bias, padding=1)
        assert torch.equal(layer(X), z.relu())
        layer.activation = "tanh"
        assert torch.equal(layer(X), z.tanh())
        assert "activation='tanh'" in repr(layer)
        assert "activation" not in dict(layer.named_children())
        with pytest.raises(lc_triton.LocalConvError):
            layer.activation = "tahn"
        assert torch.equal(layer(X), z.tanh())
        layer.activation = nn.PReLU(6)
        assert "activation.weight" in layer.state_dict()
        assert_close(layer(X), nn.functional.prelu(z, layer.activation.weight).detach().double(), 1e-6)
        with pytest.raises(lc_triton.LocalConvError):
            layer.activation = "tahn"
        assert isinstance(layer.activation, nn.PReLU)
        layer.activation = None
        assert torch.equal(layer(X), z)
        assert [*layer.named_children()] == []
        layer.activation = "relu"
        assert torch.equal(copy.deepcopy(layer)(X), z.relu())
        layer.activation = relu
        assert torch.equal(layer(X), z.relu())
        other = copy.copy(layer)
        other.activation = "tanh"
        assert torch.equal(other(X), z.tanh())
        assert torch.equal(layer(X), z.relu())


def test_the_bias_that_a_layer_has_is_the_one_it_shows():
    layer = conv(bias="position")
    layer.bias = None
    assert "bias=False" in repr(layer)
    assert layer.bias_kind is None
    assert layer.to_conv(9.0).bias is None
    assert torch.equal(layer(X), lc_triton.local_conv(X, layer.weight, padding=1))
    layer.bias = nn.Parameter(torch.randn(6))
    assert "bias='channel'" in repr(layer)
    assert torch.equal(layer.to_conv(9.0).bias, layer.bias)
    layer.bias = nn.Parameter(torch.randn(5, 5, 6))
    with pytest.raises(lc_triton.LocalConvError, match="bias"):
        layer(X)
    with pytest.raises(ArgumentValueError, match=r"shape of the bias must be \(9, 8, 6\) or \(6,\)"):
        layer.to_conv(9.0)
    layer.bias = None
    layer.weight = nn.Parameter(torch.randn(1, 1, 3, 3, 4, 6))
    with pytest.raises(lc_triton.LocalConvError, match=r"weight\.shape="):
        layer.to_conv(9.0)
    layer = keras2d(data_format="channels_first")
    layer.bias = None
    assert layer.get_config()["use_bias"] is False
    assert len(layer.get_weights()) == 1
    layer.set_weights(layer.get_weights())
    assert torch.equal(layer(X), lc_triton.local_conv(X, layer.weight, padding=1))
    layer.bias = nn.Parameter(torch.randn(6))
    with pytest.raises(ArgumentValueError, match=r"shape of the bias must be \(9, 8, 6\), one a position"):
        layer.get_weights()


def test_new_parameters_of_other_shapes_and_the_arguments_that_fit_them():
    layer = conv()
    layer.weight = nn.Parameter(torch.randn(5, 4, 3, 3, 4, 6))
    layer.stride = 2
    want = lc_triton.local_conv(X, layer.weight, layer.bias, stride=2, padding=1)
    assert torch.equal(layer(X), want)
    assert layer.output_size == (5, 4)


def test_arguments_of_computed_and_copied_layers():
    for computed in (weight_norm, pruned, two):
        layer = computed(conv())
        layer.padding_mode = "circular"
        want = lc_triton.local_conv(X, layer.weight, layer.bias, padding=1, padding_mode="circular")
        assert_close(layer(X), want.detach().double(), 1e-6)
        with pytest.raises(AttributeChangeError, match="weight would need the shape"):
            layer.stride = 2
    layer = conv()
    again = copy.deepcopy(layer)
    again.padding_mode = "circular"
    assert layer.padding_mode == "zeros"
    assert not torch.equal(layer(X), again(X))


@pytest.mark.parametrize("copied", [lambda layer: layer, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_arguments_of_a_lazy_layer_are_set_before_its_first_input(copied):
    lazy = lc_triton.LazyLocalConv2d(6, 3, bias="channel")
    lazy.stride, lazy.padding, lazy.padding_mode, lazy.activation = 2, 1, "circular", "tanh"
    lazy.groups = 2
    lazy.out_channels = 8
    lazy = copied(lazy)
    want = lc_triton.LocalConv2d(4, 8, 3, (9, 8), 2, 1, 1, 2, "channel", "circular", "tanh")
    lazy(X)
    assert repr(lazy) == repr(want)
    want.load_state_dict(lazy.state_dict())
    assert torch.equal(lazy(X), want(X))
    lazy.padding_mode = "zeros"
    assert not torch.equal(lazy(X), want(X))


def test_wrong_arguments_of_a_lazy_layer_are_refused_at_once():
    lazy = lc_triton.LazyLocalConv2d(6, 3)
    before = repr(lazy)
    for name, value in {
        "groups": 4,
        "stride": 0,
        "padding": "sme",
        "padding_mode": 3,
        "activation": "tahn",
        "in_channels": 4,
        "input_size": 9,
        "bias_kind": None,
        "kernel_size": (1, 2, 3),
    }.items():
        with pytest.raises(lc_triton.LocalConvError, match=name if name != "bias_kind" else "works it out"):
            setattr(lazy, name, value)
    assert repr(lazy) == before
    lazy.in_channels = None  # as it is
    keras = lc_triton.LocallyConnected2D(6, 3)
    keras.strides, keras.activation, keras.kernel_initializer = (2, 1), "relu", "ones"
    for name, value in {"strides": 0, "groups": 4, "data_format": 3, "kernel_constraint": "no"}.items():
        with pytest.raises(lc_triton.LocalConvError):
            setattr(keras, name, value)
    keras.build((None, 9, 8, 4))
    assert keras.weight.shape == (4, 6, 3, 3, 4, 6)
    assert keras.weight.min() == keras.weight.max() == 1
    assert keras.get_config()["strides"] == [2, 1]


def test_arguments_of_a_layer_that_ranks_share_are_set_before():
    layer = keras2d()
    layer._shared = lambda layer, x: x  # as parallelize_module leaves it
    for name, value in {
        "padding": "keras_same",
        "kernel_constraint": "non_neg",
        "data_format": "channels_first",
    }.items():
        before = getattr(layer, name)
        with pytest.raises(AttributeChangeError, match="ranks share this layer: set it before parallelize_module"):
            setattr(layer, name, value)
        assert getattr(layer, name) == before
    layer.activation = "relu"
    assert layer._plan.activation.name == "relu"


# ---- layers that have met no input


def lazy_conv():
    return lc_triton.LazyLocalConv1d(2, 2, activation="tanh")


def lazy_transposed():
    return lc_triton.LazyLocalConvTranspose1d(2, 2)


def unbuilt_keras():
    return lc_triton.LocallyConnected1D(2, 2, data_format="channels_first")


UNBUILT = pytest.mark.parametrize("make", [lazy_conv, lazy_transposed, unbuilt_keras])


@UNBUILT
@pytest.mark.parametrize("first", [0, 1])
def test_a_shallow_copy_of_an_unbuilt_layer_builds_too(make, first):
    x, layer = torch.randn(2, 3, 5), make()
    pair = (layer, copy.copy(layer))
    y = pair[first](x)
    assert torch.equal(pair[1 - first](x), y)
    assert pair[0].weight is pair[1].weight


@UNBUILT
def test_an_unbuilt_layer_without_the_hook_of_lazy_modules_builds(make):
    x, layer = torch.randn(2, 3, 5), make()
    layer._forward_pre_hooks.clear()
    assert torch.equal(layer(x), layer(x))


@UNBUILT
def test_an_unbuilt_layer_builds_after_a_functional_call(make):
    x, layer, other = torch.randn(2, 3, 5), make(), make()
    y = other(x)
    assert torch.equal(torch.func.functional_call(layer, dict(other.named_parameters()), (x,)), y)
    assert layer(x).shape == y.shape
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), y)


@UNBUILT
def test_an_unbuilt_layer_refuses_what_is_no_tensor(make):
    for net in (make(), nn.Sequential(make())):
        with pytest.raises(NotBuiltError, match="call it once on an input before it is traced"):
            torch.fx.symbolic_trace(net)
    for x, said in (([1.0], "torch.Tensor, got"), (torch.ones(2, 3, 5, dtype=torch.int32), "int32")):
        layer = make()
        with pytest.raises(lc_triton.LocalConvError, match=said):
            layer(x)
        assert layer.has_uninitialized_params()


# ---- parameters of other shapes or memory


def expanded(layer, name):
    setattr(layer, name, nn.Parameter(getattr(layer, name).detach()[:1].expand(getattr(layer, name).shape)))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_parameters_whose_entries_share_memory_are_not_written(name):
    for layer in (keras_layer(kernel_constraint="non_neg", bias_constraint="non_neg"), conv()):
        expanded(layer, name)
        before = state(layer)
        writes = [layer.reset_parameters]
        if isinstance(layer, lc_triton.LocallyConnected1D):
            weights = [w + 1 for w in layer.get_weights()]
            writes += [
                lambda layer=layer, w=weights: layer.set_weights(w),
                lambda m=layer: lc_triton.apply_constraints(m),
            ]
        for write in writes:
            with pytest.raises(ComputedParameterError, match=f"{name} .* its entries share memory .*contiguous"):
                write()
            assert_same_state(layer, before)
        if name == "weight":
            for init in ("xavier_uniform_", "kaiming_normal_", "orthogonal_", "dirac_"):
                with pytest.raises(ArgumentValueError, match="whose entries lie apart in memory"):
                    getattr(lc_triton.init, init)(layer.weight)
        assert_same_state(layer, before)


def test_a_bias_of_each_channel_in_keras_layers_is_named():
    layer = keras_layer()
    weights = layer.get_weights()
    layer.bias = nn.Parameter(torch.ones(2))
    before = state(layer)
    for ask in (layer.reset_parameters, layer.get_weights, lambda: layer.set_weights(weights), layer.count_params):
        with pytest.raises(ArgumentValueError, match=r"shape of the bias must be .*one a position"):
            ask()
        assert_same_state(layer, before)


def test_a_reset_waits_for_the_arguments_that_fit_new_parameters():
    layer = conv()
    before = layer.weight.detach()[:, :, :1].clone()
    layer.weight = nn.Parameter(before.clone())
    with pytest.raises(lc_triton.LocalConvError, match="weight"):
        layer.reset_parameters()
    assert torch.equal(layer.weight, before)


@UNBUILT
def test_an_unbuilt_layer_with_loaded_weights_refuses_to_draw(make):
    layer, other = make(), make()
    layer.reset_parameters()  # which the first call does
    other(torch.randn(2, 3, 5))
    layer.load_state_dict(other.state_dict())
    with pytest.raises(NotBuiltError, match="call it once on an input"):
        layer.reset_parameters()


def test_weights_that_torch_negates_lazily_are_read():
    layer = keras_layer()
    weight, bias = layer.get_weights()
    for name in ("weight", "bias"):
        value = getattr(layer, name).detach()
        setattr(layer, name, nn.Parameter(torch.complex(value, -value).conj().imag))
        assert getattr(layer, name).is_neg()
    assert np.array_equal(layer.get_weights()[0], weight)
    assert np.array_equal(layer.get_weights()[1], bias)


@pytest.mark.parametrize("activation", ["linear", None])
def test_a_layer_without_an_activation_becomes_a_convolution_by_either_name(activation):
    first = nn.Conv1d(2, 3, 2)
    layer = lc_triton.LocalConv1d.from_conv(first, 5)
    layer.activation = activation
    assert torch.equal(layer.to_conv().weight, first.weight)


# ---- activity penalties


def penalised():
    return lc_triton.LocallyConnected1D(2, 3, input_shape=(5, 2), activity_regularizer="l2")


@pytest.mark.parametrize("wrap", [lambda layer: None, softplus, weight_norm])
def test_copies_leave_the_penalty_of_the_last_forward(wrap):
    layer, x = penalised(), torch.randn(2, 5, 2)
    with torch.no_grad():
        layer.weight.abs_()
    wrap(layer)
    y = layer(x)
    assert lc_triton.regularization_loss(layer).grad_fn is not None
    copied = copy.deepcopy(layer)
    assert not lc_triton.regularization_loss(copied)
    assert torch.equal(copied(x), y)
    assert copied.weight is not layer.weight
    assert torch.equal(lc_triton.regularization_loss(copied), lc_triton.regularization_loss(layer))


def test_a_program_that_would_have_no_penalty_is_refused():
    layer = penalised()
    with pytest.raises(ArgumentTypeError, match=r"activity_regularizer must be .*its program would have no penalty"):
        torch.fx.symbolic_trace(layer)
    layer.activity_regularizer = None
    x = torch.randn(2, 5, 2)
    assert torch.equal(torch.fx.symbolic_trace(layer)(x), layer(x))


def test_a_penalty_whose_numbers_are_gone_is_refused():
    layer, x = penalised(), torch.randn(3, 2, 5, 2)

    def loss(x):
        layer(x)
        return lc_triton.regularization_loss(layer)

    inside = torch.func.vmap(loss)(x)
    for ended in (
        lambda: torch.func.vmap(layer)(x),
        lambda: make_fx(layer, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x[0]),
    ):
        ended()
        with pytest.raises(ArgumentValueError, match=r"activity penalty of LocallyConnected1D must be .*has ended"):
            lc_triton.regularization_loss(layer)
    for one, want in zip(x, inside, strict=True):
        assert_close(loss(one).detach(), want.detach(), 1e-6)
