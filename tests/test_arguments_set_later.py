"""Arguments set on a layer after its construction take effect, or raise an error that names the argument."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import lc_triton
from lc_triton.errors import (
    ArgumentValueError,
    AttributeChangeError,
    KernelTooLargeError,
)
from tests.cases import assert_close
from tests.layer_states import (
    conv,
    pruned,
    sum_of_two,
    weight_norm,
)

X = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(0))


def transposed(**kwargs):
    return lc_triton.LocalConvTranspose2d(4, 6, 3, (9, 8), **({"stride": 2, "bias": "channel"} | kwargs))


def keras2d(**kwargs):
    return lc_triton.LocallyConnected2D(6, 3, **({"padding": "same", "input_shape": (4, 9, 8)} | kwargs))


def visible_state(layer):
    """The repr, the configuration and the sizes that a layer reports."""
    reported = [repr(layer)]
    if isinstance(layer, lc_triton.LocallyConnected2D):
        return [*reported, layer.get_config(), layer.input_shape, layer.output_shape]
    return [*reported, layer.output_size, layer.bias_kind, layer.input_size, layer.in_channels]


# (constructor, its arguments, attributes set later, arguments of the layer to compare with)
EFFECTIVE = [
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


@pytest.mark.parametrize(("make", "arguments", "changes", "other"), EFFECTIVE)
def test_an_argument_set_later_equals_one_given_to_the_constructor(make, arguments, changes, other):
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
    assert visible_state(layer) == visible_state(want)
    assert torch.equal(layer(x), want(x))
    for rebuilt in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), saved_and_loaded(layer)):
        assert visible_state(rebuilt) == visible_state(layer)
        assert torch.equal(rebuilt(x), layer(x))
    if make is not keras2d and layer.activation is None and layer.padding != ((2, 0), (0, 2)):
        other = layer.to_conv(tolerance=9.0)
        assert (other.stride, other.dilation) == (layer.stride, layer.dilation)
        assert other(x).shape == layer(x).shape


def saved_and_loaded(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_data_format_is_set_later():
    layer = keras2d(data_format="channels_first")
    y = layer(X)
    layer.data_format = None  # Keras's default, channels last
    assert layer.input_shape == (9, 8, 4)
    assert layer.output_shape == (None, 9, 8, 6)
    assert layer.get_config()["data_format"] == "channels_last"
    assert torch.equal(layer(X.movedim(1, -1)), y.movedim(1, -1))


# (constructor, attribute, value, error, message)
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
    before, y = visible_state(layer), layer(x)
    plan = layer._plan
    with pytest.raises(error, match=message) as raised:
        setattr(layer, name, value)
    assert isinstance(raised.value, lc_triton.LocalConvError)
    assert layer._plan is plan
    assert visible_state(layer) == before
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("make", [conv, transposed, keras2d])
def test_every_public_attribute_takes_effect_or_is_refused(make):
    layer = make()
    plain = {*dir(nn.Module()), "weight", "bias", "initialize_parameters", "has_uninitialized_params"}
    plain |= {"infer_parameters", "cls_to_become"}  # attributes of torch's lazy modules
    plain |= {"trainable"}  # a property that sets requires_grad of the parameters
    names = [n for n in dir(layer) if not n.startswith("_") and n not in plain]
    attributes = {n for n in names if not callable(getattr(layer, n)) or n == "convolution"} - {"convolution"}
    assert attributes <= layer._arguments | layer._fixed
    for name in attributes & layer._fixed:
        with pytest.raises(AttributeChangeError):
            setattr(layer, name, getattr(layer, name))
    for name in attributes & layer._arguments:  # setting the present value keeps the plan
        plan = layer._plan
        setattr(layer, name, getattr(layer, name))
        assert layer._plan is plan


def test_an_activation_changes_between_a_module_and_a_name():
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


def test_the_reported_bias_follows_the_bias_parameter():
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


def test_a_weight_of_another_shape_and_the_argument_that_fits_it():
    layer = conv()
    layer.weight = nn.Parameter(torch.randn(5, 4, 3, 3, 4, 6))
    layer.stride = 2
    want = lc_triton.local_conv(X, layer.weight, layer.bias, stride=2, padding=1)
    assert torch.equal(layer(X), want)
    assert layer.output_size == (5, 4)


def test_arguments_of_computed_and_copied_layers():
    for computed in (weight_norm, pruned, sum_of_two):
        layer = computed(conv())
        layer.padding_mode = "circular"
        want = lc_triton.local_conv(X, layer.weight, layer.bias, padding=1, padding_mode="circular")
        assert_close(layer(X), want.detach().double(), 1e-6)
        with pytest.raises(AttributeChangeError, match="weight would need the shape"):
            layer.stride = 2
    layer = conv()
    rebuilt = copy.deepcopy(layer)
    rebuilt.padding_mode = "circular"
    assert layer.padding_mode == "zeros"
    assert not torch.equal(layer(X), rebuilt(X))


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
    lazy.in_channels = None  # the present value
    keras = lc_triton.LocallyConnected2D(6, 3)
    keras.strides, keras.activation, keras.kernel_initializer = (2, 1), "relu", "ones"
    for name, value in {"strides": 0, "groups": 4, "data_format": 3, "kernel_constraint": "no"}.items():
        with pytest.raises(lc_triton.LocalConvError):
            setattr(keras, name, value)
    keras.build((None, 9, 8, 4))
    assert keras.weight.shape == (4, 6, 3, 3, 4, 6)
    assert keras.weight.min() == keras.weight.max() == 1
    assert keras.get_config()["strides"] == [2, 1]


def test_a_layer_that_ranks_share_refuses_new_arguments_but_an_activation():
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
