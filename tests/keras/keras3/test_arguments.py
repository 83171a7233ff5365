"""Arguments of the layers for Keras 3: their order, and messages for wrong ones."""

import inspect

import numpy as np
import pytest
import torch

from lc_triton import errors
from tests.keras import positional_arguments
from tests.keras.keras3.common import LAYERS, QUIET, TWINS, keras, layers

pytestmark = QUIET


def test_positional_arguments():
    config = layers.LocallyConnected2D(*positional_arguments.ARGUMENTS).get_config()
    assert config["strides"] == (2, 2)
    assert config["activity_regularizer"]["config"] == {"l1": 0.01, "l2": 0.01}  # the constants of this name in Keras 2
    positional_arguments.check_configuration(config)


def test_arguments_are_in_the_order_of_the_torch_layers():
    def positional(cls):
        return [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    for n, layer in LAYERS.items():
        assert positional(layer) == positional(TWINS[n])


def test_the_default_data_format_is_that_of_keras():
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


def test_a_mask_is_dropped_with_a_warning():
    x = keras.layers.Masking()(torch.zeros(2, 5, 3))
    for layer in (layers.LocallyConnected1D(3, 2), keras.layers.Conv1D(3, 2)):
        with pytest.warns(UserWarning, match="does not support masking"):
            layer(x)


def test_arguments_of_every_keras_layer():
    layer = layers.LocallyConnected2D(16, (9, 9), activation="relu", name="L4", trainable=True)
    assert (layer.name, layer.trainable) == ("L4", True)
    frozen = layers.LocallyConnected2D(2, 3, trainable=False, dtype="float64", name="frozen")
    y = frozen(torch.zeros(1, 5, 5, 3))
    assert y.dtype == torch.float64
    assert not y.requires_grad
    assert not any(w.value.requires_grad for w in frozen.weights)
    config = frozen.get_config()
    assert (config["name"], config["trainable"]) == ("frozen", False)
    rebuilt = layers.LocallyConnected2D.from_config(config)
    assert (rebuilt.name, rebuilt.trainable) == ("frozen", False)
    rebuilt.trainable = True
    assert rebuilt(torch.zeros(1, 5, 5, 3)).requires_grad
    with pytest.warns(UserWarning, match="prefer using an `Input"):
        first = layers.LocallyConnected1D(2, 3, input_shape=(7, 2))
    assert keras.Sequential([first]).output_shape == (None, 5, 2)
    for wrong in ({"name": 3}, {"trainable": "yes"}, {"dtype": "flaot32"}, {"batch_input_shape": (None, 7, 2)}):
        with pytest.raises((ValueError, TypeError)) as caught:
            layers.LocallyConnected1D(2, 3, **wrong)
        assert next(iter(wrong)) in str(caught.value) or str(*wrong.values()) in str(caught.value)
