"""Messages for wrong arguments of the layers in torch's convention and of the conversions."""

import re

import numpy as np
import pytest
import torch

import lc_triton
from lc_triton import errors as E
from tests.errors.checking import check_message, parametrize_errors


def layer(*args, **kwargs):
    return lc_triton.LocalConv2d(*args, **kwargs)


def lazy(*args, **kwargs):
    return lc_triton.LazyLocalConv2d(*args, **kwargs)


def replaced(shape):
    made = layer(2, 3, 3, 5)
    made.weight = torch.nn.Parameter(torch.zeros(shape))
    return made(torch.zeros(1, 2, 5, 5))


def convert(example=None, **kwargs):
    example = torch.zeros(1, 1, 3, 3) if example is None else example
    return lc_triton.convert_convs(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)), example, **kwargs)


CALLS = [
    (
        lambda: lc_triton.LocalConvTranspose1d(2, 3, 3, 5)(torch.zeros(1, 2, 6)),
        E.SpatialSizeError,
        "y has spatial size (6,) but this layer's filters were made for (5,)",
    ),
    (
        lambda: lc_triton.LocalConvTranspose2d(2, 3, 3, 5, output_padding=1.0),
        E.ArgumentTypeError,
        "output_padding must be an integer >= 0, got 1.0 of type float",
    ),
    (
        lambda: layer(2, 3, 3, 5, padding=5, padding_mode="reflect"),
        E.PaddingError,
        "is too wide for padding_mode='reflect': an input of size 5 allows at most 4 a side",
    ),
    (lambda: layer(2, 3, 3, 5, padding=6, padding_mode="circular"), E.PaddingError, "allows at most 5 a side"),
    (
        lambda: layer(2, 3, 8, 3, padding="same", padding_mode="reflect"),
        E.PaddingError,
        "is too wide for padding_mode='reflect'",
    ),
    (lambda: layer(0, 3, 3, 5), E.ArgumentValueError, "in_channels must be an integer >= 1, got 0"),
    (lambda: layer(2, 3.0, 3, 5), E.ArgumentTypeError, "out_channels must be an integer >= 1, got 3.0"),
    (lambda: layer(2, 3, "3", 5), E.ArgumentTypeError, "kernel_size must be an integer >= 1, got '3'"),
    (lambda: layer(2, 3, 3, (5, 5, 5)), E.LengthError, "input_size must be an int or 2 ints"),
    (lambda: layer(2, 3, 6, 5), E.KernelTooLargeError, "use a smaller kernel, less dilation or more padding"),
    (
        lambda: layer(3, 4, 3, 5, groups=2),
        E.GroupsError,
        "in_channels must be divisible by groups, got in_channels=3 with groups=2",
    ),
    (
        lambda: layer(2, 3, 3, 5, bias="chanel"),
        E.UnknownNameError,
        "bias 'chanel' is not known (did you mean 'channel'?)",
    ),
    (lambda: layer(2, 3, 3, 5, dtype=torch.int8), E.DtypeError, "dtype has dtype int8"),
    (lambda: lazy(0, 3), E.ArgumentValueError, "out_channels must be an integer >= 1, got 0"),
    (lambda: lazy(3, 3, stride=0), E.ArgumentValueError, "stride must be an integer >= 1, got 0"),
    (lambda: lazy(3, 3, groups=2), E.GroupsError, "out_channels must be divisible by groups"),
    (lambda: lazy(3, 3, activation="tahn"), E.UnknownNameError, "did you mean 'tanh'?"),
    (lambda: lazy(3, 3)(torch.zeros(2, 4)), E.RankError, "x must have 4 dimensions"),
    (lambda: lazy(3, 6)(torch.zeros(1, 2, 5, 5)), E.KernelTooLargeError, "wider than the padded input 5"),
    (
        lambda: layer(2, 3, 3, 5)(torch.zeros(1, 2, 6, 5)),
        E.SpatialSizeError,
        "x has spatial size (6, 5) but this layer's filters were made for (5, 5)",
    ),
    (
        lambda: layer(2, 3, 3, 5)(torch.zeros(1, 2, 5, 4)),
        E.SpatialSizeError,
        "x has spatial size (5, 4) but this layer's filters were made for (5, 5)",
    ),
    (lambda: layer(2, 3, 3, 5)(torch.zeros(1, 3, 5, 5)), E.ChannelError, "x has 3 channels but the weight is for 2"),
    (lambda: layer(2, 3, 3, 5)(torch.zeros(5, 5)), E.RankError, "x must have 4 dimensions"),
    (lambda: layer(2, 3, 3, 5)("image"), E.ArgumentTypeError, "x must be a torch.Tensor"),
    (
        lambda: replaced((3, 3, 2, 3, 2, 3)),
        E.WeightShapeError,
        "weight.shape=(3, 3, 2, 3, 2, 3) does not fit: for input size (5, 5), kernel (3, 3), stride (1, 1), padding "
        "((0, 0), (0, 0)) and dilation (1, 1) it must be (3, 3, 3, 3, 2, 3) = (*out_spatial, *kernel, C // groups, F)",
    ),
    (lambda: layer(None, 3, 3, 5), E.ArgumentTypeError, "in_channels must be an integer >= 1, got None"),
    (lambda: layer(2, 3, 3, None), E.ArgumentTypeError, "input_size must be an integer >= 1, got None"),
    (
        lambda: layer(2**31 - 1, 2**31 - 1, 1, 4, device="meta"),
        E.TooManyNumbersError,
        "a weight would have 7.38e+19 numbers, and at most 5.76e+17 can be addressed: use smaller sizes or less",
    ),
    (
        lambda: layer(2, 3, 3, 5, device="nowhere"),
        E.ArgumentValueError,
        "device must be a device that torch can use here (RuntimeError: ",
    ),
    (
        lambda: lc_triton.LocalConv2d.from_conv(torch.nn.Conv2d(1, 1, 1), 2, bias=False),
        E.ArgumentValueError,
        "bias must be 'position' or 'channel', or what the convolution adds would be lost, got False",
    ),
    (
        lambda: layer(2, 3, 3, 5).to_conv(tolerance=None),
        E.ArgumentValueError,
        "tolerance must be a number >= 0, got None",
    ),
    (lambda: convert(filter=1), E.ArgumentTypeError, "filter must be None or a callable (name, module) -> bool, got 1"),
    (lambda: convert(bias="foo"), E.UnknownNameError, "bias 'foo' is not known"),
    (
        lambda: convert(example="image"),
        E.ConversionError,
        "model cannot be converted: it does not run on example_input (TypeError: conv2d() received an invalid comb",
    ),
]


@parametrize_errors(CALLS)
def test_message(call, kind, message):
    check_message(call, kind, message)


def call_with_parameter(layer, name, value):
    """Replace a parameter of a layer by a tensor, and call the layer."""
    delattr(layer, name)
    layer.register_buffer(name, value)
    x = torch.zeros(2, 3, 6, 5) if isinstance(layer, lc_triton.LowRankLocalConv2d) else torch.zeros(2, 4, 3)
    return layer(x)


def low_rank(name, value):
    return call_with_parameter(lc_triton.LowRankLocalConv2d(3, 4, 3, input_size=(6, 5), rank=2), name, value)


def linear(name, value):
    return call_with_parameter(lc_triton.LocalLinear(4, 3, 2), name, value)


PARAMETERS = [
    (
        lambda: low_rank("mixing", torch.zeros(4, 3, 2).to_sparse()),
        E.ArgumentTypeError,
        "mixing must be a dense torch.T",
    ),
    (lambda: low_rank("mixing", torch.zeros(4, 3, 2, device="meta")), E.DeviceMismatchError, "mixing on meta"),
    (lambda: low_rank("mixing", torch.zeros(4, 3, 2, dtype=torch.int64)), E.DtypeError, "mixing has dtype int64"),
    (lambda: low_rank("basis", torch.zeros(2, 3, 3, 3, 4).to_sparse()), E.ArgumentTypeError, "basis must be a dense"),
    (lambda: linear("weight", torch.zeros(4, 3, 2).to_sparse()), E.ArgumentTypeError, "weight must be a dense torch.T"),
    (lambda: linear("weight", torch.zeros(4, 3, 2).to_mkldnn()), E.ArgumentTypeError, "weight must be a dense torch.T"),
    (lambda: linear("bias", torch.zeros(4, 2).to_sparse()), E.ArgumentTypeError, "bias must be a dense torch.Tensor"),
    (
        lambda: lc_triton.init.orthogonal_(torch.zeros(2, 2, 1, 1, 3, 4, dtype=torch.int8)),
        E.DtypeError,
        "tensor has dtype",
    ),
    (
        lambda: lc_triton.init.xavier_normal_(torch.zeros(2, 1, 3, 4).to(torch.complex64)),
        E.DtypeError,
        "dtype complex64",
    ),
    (
        lambda: lc_triton.local_conv(
            torch.zeros(2, 3, 4), torch.zeros(2, 3, 3, 4, dtype=torch.int8), weight_scale=torch.nested.nested_tensor([])
        ),
        E.ArgumentTypeError,
        "weight_scale must be a dense torch.Tensor",
    ),
    (
        lambda: lc_triton.FusedAdamW([(torch.zeros(3),)]),
        E.ArgumentValueError,
        "the arguments of FusedAdamW must be valid",
    ),
]


@parametrize_errors(PARAMETERS)
def test_message_of_a_parameter(call, kind, message):
    check_message(call, kind, message)


CHANNELS = [
    (lambda: lc_triton.LocalConv2d(3, 4, 3, input_size=(6, 5)), (2, 6, 5, 3), "from dimension 3 to 1: x.movedim(3, 1)"),
    (lambda: lc_triton.LocalConv2d(3, 4, 3, input_size=(6, 5)), (6, 5, 3), "from dimension 2 to 0: x.movedim(2, 0)"),
    (lambda: lc_triton.LocallyConnected2D(4, 3, input_shape=(6, 5, 3)), (2, 3, 6, 5), "x.movedim(1, 3)"),
    (
        lambda: lc_triton.LocalConvTranspose1d(3, 4, 3, input_size=6),
        (2, 6, 3),
        "y.movedim(2, 1)",
    ),
    (lambda: lc_triton.LocalConv2d(3, 4, 3, input_size=(6, 5)), (2, 2, 6, 5), "or make a layer for 2"),
]


@pytest.mark.parametrize(("make", "shape", "message"), CHANNELS)
def test_the_message_names_the_dimension_of_the_channels(make, shape, message):
    layer = make()
    with pytest.raises(E.ChannelError, match=re.escape(message)) as caught:
        layer(torch.zeros(shape))
    assert "data_format" not in str(caught.value)


def test_the_order_of_torchs_arguments_is_explained():
    with pytest.raises(E.KernelTooLargeError, match=r"\(3, 3\) .* the fourth argument is input_size"):
        lc_triton.LocalConv2d(3, 4, 3, 1, 1)


@pytest.mark.parametrize("value", ["float16", float, np.float32])
def test_dtypes_of_other_libraries_are_refused(value):
    with pytest.raises(E.ArgumentTypeError, match=r"dtype must be a torch\.dtype, such as torch\.float16"):
        lc_triton.LocalConv2d(3, 4, 3, 6, dtype=value)
