"""Outputs of the models of saved/make_more.py: functions, resizing, cells and stateful layers."""

import re

import numpy as np
import pytest
import torch

import lc_triton
from lc_triton.errors import LocalConvError
from lc_triton.keras import load_model
from lc_triton.keras.saved.arguments import Place
from lc_triton.keras.saved.classes import CLASSES
from lc_triton.keras.saved.operations import find
from tests.keras.outputs import assert_outputs_close, extract_archive, load_arrays

pytestmark = pytest.mark.subprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return extract_archive("more", tmp_path_factory.mktemp("more"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["functions", "interpolated"])
def test_outputs_are_those_of_keras(folder, name):
    assert_outputs_close(
        load_model(folder / f"{name}.h5")(*load_arrays(folder, name, "x")), load_arrays(folder, name, "y")
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h5", "keras"])
def test_the_optimizer_of_a_model_inside_is_not_read(folder, kind):
    model = load_model(folder / f"adversarial.{kind}")
    assert_outputs_close(model(*load_arrays(folder, "adversarial", "x")), load_arrays(folder, "adversarial", "y"))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        f"generator.dense.{name}" for name in ("weight", "bias")
    ]


def test_states_are_kept_for_the_next_batch_until_a_reset(folder):
    model, (x,) = load_model(folder / "stateful.h5"), load_arrays(folder, "stateful", "x")
    for letter in "yz":
        assert_outputs_close(model(x), load_arrays(folder, "stateful", letter))
    with pytest.raises(LocalConvError, match=r"batch of a stateful layer.*reset_states\(\) ends that"):
        model(x[:1])
    assert not any("last_state" in name for name in model.state_dict())
    model.reset_states()
    assert_outputs_close(model(x), load_arrays(folder, "stateful", "y"))
    model.reset_states()
    assert_outputs_close(tuple(y[:1] for y in model(x[:1])), [y[:1] for y in load_arrays(folder, "stateful", "y")])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cells", "remembering"])
def test_a_training_step_is_that_of_keras(folder, name):
    model, inputs = load_model(folder / f"{name}.h5"), load_arrays(folder, name, "x")
    outputs = model(*inputs)
    assert_outputs_close(outputs, load_arrays(folder, name, "y"))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum(y.square().mean() for y in outputs) + lc_triton.regularization_loss(model)
    assert abs(loss.item() / float(np.load(folder / "outputs.npz")[f"{name}/loss"]) - 1) < 1e-6
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    lc_triton.attach_constraints(model, optimizer)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        assert_outputs_close(model(*inputs), load_arrays(folder, name, "after"))


def test_conv_lstm_with_channels_first_equals_channels_last():
    """TensorFlow has no convolution with channels first on CPUs to compare with."""
    given = {"name": "l", "filters": 3, "kernel_size": 2, "return_sequences": True, "return_state": True}
    layers = []
    for order, shape in (("channels_last", (4, 5, 6, 2)), ("channels_first", (4, 2, 5, 6))):
        arguments = CLASSES["ConvLSTM2D"].model_validate({**given, "data_format": order, "dropout": 0.5})
        layers.append(arguments.module(Place("ConvLSTM2D", (shape,))).double())
    last, first = layers
    for parameter in last.parameters():
        torch.nn.init.normal_(parameter)
    first.load_state_dict(last.state_dict())
    x = torch.randn(2, 4, 5, 6, 2, dtype=torch.float64)
    pairs = zip(last.eval()(x), first.eval()(x.movedim(-1, 2)), (2, 1, 1), strict=True)
    for y, z, axis in pairs:
        torch.testing.assert_close(y.movedim(-1, axis), z, rtol=1e-12, atol=0)
    torch.manual_seed(0)
    dropped = last.train()(x)[0]
    torch.manual_seed(0)
    torch.testing.assert_close(last(x)[0], dropped, rtol=0, atol=0)
    assert not torch.equal(dropped, last.eval()(x)[0])
    with pytest.raises(ValueError, match="its input has a mask"):
        last(x, mask=torch.ones(2, 4, dtype=torch.bool))


def test_einsum_is_refused_with_its_reason():
    """Keras writes only the equation into the file, which it cannot read either."""
    with pytest.raises(ValueError, match=r"saves the equation of tf\.einsum, and not which tensors it takes"):
        find("einsum")


def test_interpolation_that_tensorflow_rounds_is_refused_in_float64():
    """Only bilinear interpolation has TensorFlow's order of operations; other methods would have errors of 1e-7."""
    with pytest.raises(ValueError, match="bicubic interpolation of float64"):
        find("image.resize")(torch.ones(1, 4, 4, 2, dtype=torch.float64), [2, 2], method="bicubic")


def test_pooling_of_tensorflow_1(folder):
    x = load_arrays(folder, "functions", "x")[1]
    one = find("compat.v1.nn.max_pool")(x, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="SAME", data_format="NHWC")
    torch.testing.assert_close(one, load_arrays(folder, "functions", "y")[11], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("function", "kwargs", "message"),
    [
        ("image.resize", {"size": [2, 2], "antialias": True}, "preserve_aspect_ratio or antialias"),
        ("image.resize", {"size": [2, 2], "method": "spline"}, "method='spline' of image.resize"),
        ("strided_slice", {"begin": [0], "end": [1], "ellipsis_mask": 1}, "ellipsis_mask"),
        ("nn.max_pool2d", {"ksize": [1, 2, 3], "strides": 1}, r"windows \[1, 2, 3\] of pooling"),
    ],
)
def test_arguments_of_functions_that_have_no_counterpart_are_named(function, kwargs, message):
    with pytest.raises(ValueError, match=message):
        find(function)(torch.ones(1, 4, 4, 2), **kwargs)


def test_functions_that_no_model_of_the_fixtures_has():
    """Their values by the documentation of TensorFlow."""
    indices = torch.tensor([[0, 2], [3, -1]])
    one = torch.tensor([[[1, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]]])
    hot = find("one_hot")
    assert torch.equal(hot(indices, 3), one.float())
    assert torch.equal(hot(indices, 3, on_value=5, off_value=-1, axis=-1, dtype="int32"), (6 * one - 1).int())
    assert torch.equal(hot(indices, 3, on_value=0.1, dtype="float64"), 0.1 * one.double())
    assert torch.equal(hot(indices, 3, on_value=2**24 + 1, dtype="int64"), (2**24 + 1) * one)
    x = torch.arange(24.0).reshape(1, 2, 3, 4)
    bias = [1.0, 2.0]
    assert torch.equal(find("nn.bias_add")(x, bias, data_format="NCHW"), x + torch.tensor(bias).view(1, 2, 1, 1))
    assert find("math.floordiv")(-7, 2) == -4
    assert torch.equal(find("squeeze")(x), x[0])
    assert tuple(find("stack")([2, 3])) == (2, 3)


X = torch.ones(1, 4, 4, 2)


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        ("image.resize", (X[0], [2, 2]), "takes images (batch, height, width, channels), not 3 axes"),
        ("nn.max_pool2d", (X[0], 2, 2), "pooling of 3 axes with padding VALID"),
        ("nn.conv2d", (X[0, 0], [[1.0]]), "a convolution of 2 axes with padding VALID"),
        ("image.pad_to_bounding_box", (X, 1, 0, 4, 4), "4 by 4 pixels have no place in 4 by 4"),
        ("norm", (X, 3), "a norm of order 3 has no counterpart here"),
        ("zeros_like", (X, "complex64"), "dtype complex64 is none of float16, bfloat16"),
        ("where", (X > 0,), "where with one argument has no counterpart here"),
        ("one_hot", (torch.tensor([1]), 3, None, None, 0), "axis=0 of one_hot has no counterpart here"),
        ("split", (X, 3, 1), "4 cannot be split into 3 equal parts"),
        ("pad", (X[0, 0], [[0, 0], [1, 1]], "WRAP"), "padding mode 'WRAP' has no counterpart here"),
        ("pad", (X[0, 0], [[0, 0], [2, 0]], "REFLECT"), "paddings 2 and 0 are more than 2 numbers have beside them"),
        ("gather", (X, torch.tensor([0]), 2, 1), "batch_dims=1 of gather along axis 2 has no counterpart here"),
        ("nn.space_to_depth", (X, 2, "NCHW"), "data_format='NCHW' has no counterpart here"),
        ("__operators__.getitem", (find("shape")(X), [{"start": 0}, {"start": 1}]), "a shape is indexed by [{"),
        ("__operators__.getitem", (X, [{"start": 0.5}]), "a slice {'start': 0.5} of other things than whole numbers"),
        ("__operators__.getitem", (X, ["a"]), "an index a that has no counterpart here"),
    ],
)
def test_arguments_that_do_not_fit_are_named(function, args, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        find(function)(*args)
