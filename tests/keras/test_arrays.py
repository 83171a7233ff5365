"""The arrays that `set_weights` takes, and the layers that it and `get_weights` refuse."""

import warnings

import numpy as np
import pytest
import torch

import lc_triton
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, ComputedParameterError


def layer(**kwargs):
    return lc_triton.LocallyConnected1D(2, 3, input_shape=(6, 2), bias_initializer="normal", **kwargs)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


class Like:
    """What makes an array when it is asked for one, as a data set in an HDF5 file does."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __array__(self, dtype=None, copy=None):
        return self.array


ARRAYS = {
    "read backwards": lambda a: a[::-1].copy()[::-1],
    "read sideways": lambda a: a.T.copy().T,
    "big-endian": lambda a: a.astype(">f4"),
    "long": lambda a: a.astype(np.longdouble),
    "read-only": read_only,
    "like an array": Like,
    "lists": lambda a: a.tolist(),
    "a tensor": torch.from_numpy,
    "float64": lambda a: a.astype("f8"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_all_kinds_are_written(kind):
    kernel, bias = layer().get_weights()
    own = layer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.set_weights([ARRAYS[kind](kernel), ARRAYS[kind](bias)])
    assert np.array_equal(own.get_weights()[0], kernel)
    assert np.array_equal(own.get_weights()[1], bias)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about sparse, nested and quantized tensors
@pytest.mark.parametrize(
    "make",
    [
        lambda a: torch.from_numpy(a).to_sparse(),
        lambda a: torch.from_numpy(a).to_sparse_csr(),
        lambda a: torch.nested.nested_tensor([torch.from_numpy(row) for row in a]),
        lambda a: torch.quantize_per_tensor(torch.from_numpy(a), 0.1, 0, torch.qint8),
        lambda a: a.astype(object),
        lambda a: a > 0,
        lambda a: a + 0j,
        lambda a: np.full(a.shape, "a"),
    ],
)
def test_what_is_no_dense_array_is_refused_before_anything_is_written(make):
    own = layer()
    before = own.weight.clone()
    kernel, bias = own.get_weights()
    with pytest.raises(ArgumentTypeError, match=r"weights must be an? (dense )?array or tensor of real numbers, got"):
        own.set_weights([kernel + 1, make(bias)])
    assert torch.equal(own.weight, before)


def test_numbers_that_are_not_there_are_refused():
    own = layer()
    before = own.weight.clone()
    kernel, bias = own.get_weights()
    with pytest.raises(
        ComputedParameterError, match=r"bias of .*1D cannot be written: the value for it is on the meta"
    ):
        own.set_weights([kernel + 1, torch.from_numpy(bias).to("meta")])
    assert torch.equal(own.weight, before)


def test_a_layer_without_memory_is_refused():
    own = layer(device="meta")
    with pytest.raises(ComputedParameterError, match=r"weight of .*1D cannot be written: it is on the meta device"):
        own.set_weights(layer().get_weights())
    with pytest.raises(ArgumentValueError, match="weight of LocallyConnected1D must be on a device with memory"):
        own.get_weights()
    lc_triton.apply_constraints(own)
    own.reset_parameters()
    own.to_empty(device="cpu")
    other = layer()
    own.set_weights(other.get_weights())
    assert torch.equal(own.weight, other.weight)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("dtype", ["int8", "int4", "float8_e4m3"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_the_configuration_of_a_quantized_layer_makes_a_layer(weights, dtype, use_bias):
    own = layer(dtype=weights, use_bias=use_bias)
    config, count = own.get_config(), own.count_params()
    lc_triton.quantize_weights(own, dtype)
    # Without a bias it has no parameter left, and none that could train.
    changed = {} if use_bias else {"dtype": "float32", "trainable": False}
    assert own.get_config() == config | changed
    assert own.count_params() == count
    assert type(own).from_config(own.get_config()).output_shape == own.output_shape
