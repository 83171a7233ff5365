"""Keras's arguments of LocallyConnected1D/2D/3D, the text of a layer, and messages for wrong arguments."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch

import lc_triton
from tests.keras import positional_arguments


def test_positional_arguments():
    config = lc_triton.LocallyConnected2D(*positional_arguments.ARGUMENTS).get_config()
    assert config["strides"] == [2, 2]
    positional_arguments.check_configuration(config)


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


def test_the_text_of_a_layer():
    layer = lc_triton.LocallyConnected2D(4, 3, (1, 2), activation="relu", kernel_regularizer="l2", use_bias=False)
    assert repr(layer) == (
        "LocallyConnected2D(4, kernel_size=(3, 3), strides=(1, 2), activation='relu', use_bias=False, "
        "kernel_regularizer=L2(l2=0.01))"
    )


KERAS_2 = {  # arguments of the constructors in Keras 2, with those of the base class
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
        read_back = lc_triton.LocallyConnected1D.from_config(json.loads(json.dumps(config)))
        assert repr(read_back) == repr(layer)
        assert read_back.get_config() == config
    unbuilt = lc_triton.LocallyConnected1D(4, 3, input_dim=2)
    assert lc_triton.LocallyConnected1D.from_config(unbuilt.get_config()).get_config() == unbuilt.get_config()
    with pytest.raises(lc_triton.LocalConvError, match="input_dim must be 3 for an input of shape"):
        unbuilt(torch.zeros(1, 7, 3))
    assert unbuilt(torch.zeros(1, 7, 2)).shape == (1, 5, 4)


@pytest.mark.parametrize("built", [True, False])
def test_trainable(built):
    x = torch.ones(1, 5, 4, 2)
    shape = {"input_shape": (5, 4, 2)} if built else {}
    layer = lc_triton.LocallyConnected2D(3, 2, trainable=False, kernel_constraint="max_norm", **shape)
    assert layer.trainable is False
    for copied in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        copied(x)
        assert [p.requires_grad for p in copied.parameters()] == [False, False]
        assert not copied(x).requires_grad
        assert copied.get_config()["trainable"] is False
        assert "trainable=False" in repr(copied)
        copied.trainable = True
        copied(x).sum().backward()
        assert all(p.grad is not None for p in copied.parameters())
        copied.trainable = False
        assert not any(p.requires_grad for p in copied.parameters())


def test_a_constant_of_an_activation_goes_through_a_configuration():
    layer = lc_triton.LocallyConnected1D(2, 3, input_shape=(7, 2), activation=("leaky_relu", 0.3))
    config = json.loads(json.dumps(layer.get_config()))
    assert config["activation"] == ["leaky_relu", 0.3]
    rebuilt = lc_triton.LocallyConnected1D.from_config(config)
    rebuilt.build((None, 7, 2))
    rebuilt.set_weights(layer.get_weights())
    x = torch.randn(4, 7, 2)
    assert torch.equal(rebuilt(x), layer(x))


def test_axes_of_norms_in_a_configuration():
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
def test_dtypes(dtype, want):
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


def test_wrong_input_length_and_trainable():
    with pytest.raises(lc_triton.LocalConvError, match="input_length must be None for 2 spatial dimensions"):
        lc_triton.LocallyConnected2D(4, 3, input_length=7)
    layer = lc_triton.LocallyConnected2D(4, 3)
    with pytest.raises(lc_triton.LocalConvError, match="trainable must be True or False, got 'no'"):
        layer.trainable = "no"


@pytest.mark.parametrize("built", [True, False])
def test_an_array_is_refused_with_its_type(built):
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
