"""Messages for wrong arguments of local_conv, local_conv_transpose, backend and TileConfig."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import lc_triton
from lc_triton import errors as E
from lc_triton.tiles.config import TileConfig
from tests.errors.checking import check_message, parametrize_errors


def conv(x=(2, 4, 9, 8), weight=(7, 6, 3, 3, 4, 6), bias=None, dtype=torch.float32, weight_dtype=None, **kwargs):
    x = torch.zeros(x, dtype=dtype) if isinstance(x, tuple) else x
    weight = torch.zeros(weight, dtype=weight_dtype or dtype) if isinstance(weight, tuple) else weight
    return lc_triton.local_conv(x, weight, bias, **kwargs)


def transposed(y=(2, 6, 7, 6), weight=(7, 6, 3, 3, 4, 6), bias=None, **kwargs):
    bias = bias if bias is None else torch.zeros(bias)
    return lc_triton.local_conv_transpose(torch.zeros(y), torch.zeros(weight), bias, **kwargs)


LOOP = [1]
LOOP.append(LOOP)

CALLS = [
    (
        lambda: transposed(y=(6, 7)),
        E.RankError,
        "y must have 4 dimensions (B, C, H, W) or 3 (C, H, W) for 2 spatial dimension(s), got shape (6, 7)",
    ),
    (
        lambda: transposed(y=(2, 4, 7, 6)),
        E.ChannelError,
        "y has 4 channels but the weight is for 6; y.shape=(..., 4, 7",
    ),
    (
        lambda: transposed(y=(2, 6, 8, 6)),
        E.SpatialSizeError,
        "y has spatial size (8, 6) but this layer's filters were made for (7, 6)",
    ),
    (lambda: transposed(bias=(7, 6, 4)), E.BiasShapeError, "bias must have shape (9, 8, 4) (one a position) or (4,)"),
    (
        lambda: transposed(output_padding=1),
        E.OutputSizeError,
        "output_padding=(1, 1) is not possible: with an input of (7, 6), kernel_size (3, 3), stride (1, 1)",
    ),
    (
        lambda: transposed(stride=2, output_size=(15, 15)),
        E.OutputSizeError,
        "output_size=(15, 15) is not possible: with an input of (7, 6), kernel_size (3, 3), stride (2, 2), padding "
        "((0, 0), (0, 0)) and dilation (1, 1) the output has at least (15, 13) and less than (15, 13) + stride sites",
    ),
    (lambda: transposed(padding=9), E.OutputSizeError, "output_padding=(0, 0) is not possible"),
    (lambda: transposed(padding="same"), E.PaddingError, "padding='same' is not for transposed layers: give ints"),
    (lambda: transposed(output_padding=-1), E.ArgumentValueError, "output_padding must be an integer >= 0, got -1"),
    (lambda: transposed(output_size=[1, 2, 3]), E.LengthError, "output_size must be an int or 2 ints"),
    (lambda: transposed(groups=4), E.GroupsError, "in_channels must be divisible by groups, got in_channels=6"),
    (
        lambda: conv(x=(4, 9)),
        E.RankError,
        "x must have 4 dimensions (B, C, H, W) or 3 (C, H, W) for 2 spatial dimension(s), got shape (4, 9)",
    ),
    (
        lambda: conv(x=(2, 4, 9), data_format="channels_last"),
        E.ChannelError,
        "x has 9 channels but the weight is for 4",
    ),
    (
        lambda: conv(weight=(7, 6, 3, 4, 6)),
        E.RankError,
        "weight must have 4, 6 or 8 dimensions (*out_spatial, *kernel, C // groups, F)",
    ),
    (lambda: conv(x=(2, 5, 9, 8)), E.ChannelError, "x has 5 channels but the weight is for 4; x.shape="),
    (
        lambda: conv(x=(2, 4, 10, 8)),
        E.WeightShapeError,
        "weight.shape=(7, 6, 3, 3, 4, 6) does not fit: for input size (10, 8), kernel (3, 3), stride (1, 1)",
    ),
    (lambda: conv(weight=(7, 6, 3, 3, 4, 0)), E.ArgumentValueError, "weight.shape must be sizes >= 1 everywhere"),
    (
        lambda: conv(x=(2, 4, 2, 8)),
        E.KernelTooLargeError,
        "kernel_size (3, 3) with dilation (1, 1) spans 3 in dimension 0, wider than the padded input 2",
    ),
    (
        lambda: conv(x=torch.zeros(2, 4, 9, 8, dtype=torch.int32)),
        E.DtypeError,
        "x has dtype int32; allowed are float16, bfloat16, float32 and float64",
    ),
    (lambda: conv(x=torch.zeros(2, 4, 9, 8, dtype=torch.complex64)), E.DtypeError, "x has dtype complex64"),
    (lambda: conv(x=torch.zeros(2, 4, 9, 8, dtype=torch.bool)), E.DtypeError, "x has dtype bool"),
    (lambda: conv(x=[[1.0]]), E.ArgumentTypeError, "x must be a torch.Tensor, got [[1.0]] of type list"),
    (lambda: conv(weight=None), E.ArgumentTypeError, "weight must be a torch.Tensor, got None"),
    (
        lambda: conv(weight_dtype=torch.float16),
        E.DtypeError,
        "weight has dtype float16; with x in float32 it must be float32",
    ),
    (
        lambda: conv(dtype=torch.float16, weight_dtype=torch.bfloat16),
        E.DtypeError,
        "with x in float16 it must be float16 or float32",
    ),
    (
        lambda: conv(bias=torch.zeros(6).double()),
        E.DtypeError,
        "bias has dtype float64; it must be of weight's dtype float32",
    ),
    (
        lambda: conv(bias=torch.zeros(7)),
        E.BiasShapeError,
        "bias must have shape (7, 6, 6) (one a position) or (6,) (one a channel), got (7,)",
    ),
    (
        lambda: conv(weight=torch.zeros(7, 6, 3, 3, 4, 6, device="meta")),
        E.DeviceMismatchError,
        "all tensors must be on one device, got x on cpu, weight on meta",
    ),
    (lambda: conv(stride=0), E.ArgumentValueError, "stride must be an integer >= 1, got 0"),
    (lambda: conv(stride=True), E.ArgumentTypeError, "stride must be an integer >= 1, got True of type bool"),
    (lambda: conv(stride=(1, 1.0)), E.ArgumentTypeError, "stride must be an integer >= 1, got 1.0 of type float"),
    (
        lambda: conv(stride=(1, 1, 1)),
        E.LengthError,
        "stride must be an int or 2 ints for 2 spatial dimension(s), got (1, 1, 1)",
    ),
    (lambda: conv(dilation=-1), E.ArgumentValueError, "dilation must be an integer >= 1, got -1"),
    (lambda: conv(groups=0), E.ArgumentValueError, "groups must be an integer >= 1, got 0"),
    (lambda: conv(groups=1.5), E.ArgumentTypeError, "groups must be an integer >= 1, got 1.5"),
    (
        lambda: conv(x=(2, 16, 9, 8), groups=4),
        E.GroupsError,
        "out_channels must be divisible by groups, got out_channels=6 with groups=4",
    ),
    (lambda: conv(padding=-1), E.ArgumentValueError, "padding must be an integer >= 0, got -1"),
    (lambda: conv(padding=[(1, -1), (0, 0)]), E.ArgumentValueError, "padding must be an integer >= 0, got -1"),
    (
        lambda: conv(padding=[(1, 1)]),
        E.LengthError,
        "padding must be 2 (low, high) pair(s) for 2 spatial dimension(s), got ((1, 1),)",
    ),
    (lambda: conv(padding=[(1, 1), 2]), E.LengthError, "padding must be 2 (low, high) pair(s)"),
    (
        lambda: conv(padding=(1, 2, 3)),
        E.LengthError,
        "padding must be a name, an int, 2 int(s) or 2 (low, high) pair(s)",
    ),
    (
        lambda: conv(padding="smae"),
        E.UnknownNameError,
        "padding 'smae' is not known (did you mean 'same'?); allowed: causal, keras_same, same, valid",
    ),
    (
        lambda: conv(padding="causal"),
        E.PaddingError,
        "padding='causal' exists in 1-D only, this layer has 2 spatial dimensions",
    ),
    (lambda: conv(padding=None), E.ArgumentTypeError, "padding must be an integer >= 0, got None"),
    (
        lambda: conv(padding_mode="reflct"),
        E.UnknownNameError,
        "padding_mode 'reflct' is not known (did you mean 'reflect'?)",
    ),
    (
        lambda: conv(padding_mode=0),
        E.ArgumentTypeError,
        "padding_mode must be one of zeros, reflect, replicate, circular, or a sequence of one a dimension, got 0",
    ),
    (lambda: conv(activation="rleu"), E.UnknownNameError, "activation 'rleu' is not known (did you mean 'relu'?)"),
    (
        lambda: conv(activation=3),
        E.ArgumentTypeError,
        "activation must be None, a name, a (name, constant) pair or a callable, got 3",
    ),
    (
        lambda: conv(activation=("relu", 2)),
        E.ArgumentValueError,
        'activation must be a name alone here; only "leaky_relu", "elu" and ("gelu", "tanh")',
    ),
    (
        lambda: conv(activation=("elu", -1.0)),
        E.ArgumentValueError,
        "activation must be ('elu', alpha) with a finite constant >= 0, got ('elu', -1.0)",
    ),
    (lambda: conv(activation=("lealy_relu", 0.2)), E.UnknownNameError, "did you mean 'leaky_relu'?"),
    (
        lambda: conv(data_format="channel_first"),
        E.UnknownNameError,
        "data_format 'channel_first' is not known (did you mean 'channels_first'?)",
    ),
    (lambda: lc_triton.backend("cuda").__enter__(), E.UnknownNameError, "backend 'cuda' is not known"),
    (
        lambda: conv(x=torch.zeros(2, 4, 9, 8).to_sparse()),
        E.ArgumentTypeError,
        "x must be a dense torch.Tensor, got an array of shape (2, 4, 9, 8)",
    ),
    (lambda: conv(stride=b"\x01\x01"), E.ArgumentTypeError, r"stride must be an integer >= 1, got b'\x01\x01' of type"),
    (lambda: conv(padding=[b"\x00\x00"] * 2), E.LengthError, "padding must be 2 (low, high) pair(s)"),
    (
        lambda: conv(groups=torch.tensor(True)),
        E.ArgumentTypeError,
        "groups must be an integer >= 1, got tensor(True) of type Tensor",
    ),
    (lambda: conv(stride=torch.tensor(1, device="meta")), E.ArgumentTypeError, "stride must be an integer >= 1, got t"),
    (lambda: conv(stride=2**31), E.ArgumentValueError, "stride must be an integer >= 1 and <= 2147483647, got 2147483"),
    (lambda: conv(activation=("elu", 10**400)), E.ArgumentValueError, "with a finite constant >= 0, got ('elu', 1000"),
    (lambda: conv(activation=("gelu", np.array(["none", "tanh"]))), E.ArgumentValueError, "activation must be a name"),
    (lambda: conv(stride=LOOP), E.ArgumentTypeError, "stride must be an integer >= 1, got "),
    (lambda: TileConfig(rows=True), E.ArgumentTypeError, "rows must be an integer >= 1, got True of type bool"),
    (lambda: TileConfig(num_stages=0), E.ArgumentValueError, "num_stages must be an integer >= 1, got 0"),
    (lambda: TileConfig(dot=1), E.ArgumentTypeError, "dot must be True or False, got 1 of type int"),
]


@parametrize_errors(CALLS)
def test_message(call, kind, message):
    check_message(call, kind, message)


def test_a_valid_argument_does_not_hide_an_equal_invalid_one():
    for good, bad in (((1, 1), (True, 1)), (1, True), ((1, 1), (1.0, 1)), (1, 1.0)):
        conv(stride=good)
        with pytest.raises(E.ArgumentTypeError):
            conv(stride=bad)
    conv(padding=[(0, 0), (0, 0)])
    with pytest.raises(E.ArgumentTypeError):
        conv(padding=[(False, 0), (0, 0)])
    conv(activation=("elu", 1.0))
    with pytest.raises(E.ArgumentValueError):
        conv(activation=("elu", True))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"groups": [1]}, "groups must be an integer >= 1, got [1] of type list"),
        ({"groups": {}}, "groups must be an integer >= 1, got {} of type dict"),
        ({"stride": np.array([1, 1])}, "stride must be an integer >= 1, got array([1, 1]) of type ndarray"),
        ({"stride": torch.tensor([1, 1])}, "stride must be an integer >= 1, got tensor([1, 1]) of type Tensor"),
        ({"dilation": torch.tensor(1.0)}, "dilation must be an integer >= 1, got tensor(1.) of type Tensor"),
        ({"dilation": {1}}, "dilation must be an integer >= 1, got {1} of type set"),
        ({"padding": {1: 1}}, "padding must be an integer >= 0, got {1: 1} of type dict"),
        ({"padding_mode": [["zeros"]] * 2}, "padding_mode must be one of zeros, reflect, replicate, circular, got"),
        ({"data_format": ["channels_last"]}, "data_format must be one of channels_first, channels_last"),
        ({"activation": {"elu": 1}}, "activation must be None, a name, a (name, constant) pair or a callable, got {"),
        ({"activation": torch.nn.ReLU}, "activation must be None, a name, a (name, constant) pair or a callable, got"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_arguments_of_wrong_types(kwargs, message):
    with pytest.raises(E.ArgumentTypeError) as caught:
        conv(**kwargs)
    assert message in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_triton_on_cpu_tensors_needs_the_interpreter():
    with lc_triton.backend("triton"), pytest.raises(E.BackendError, match="TRITON_INTERPRET=1"):
        conv()


@pytest.mark.subprocess
@pytest.mark.slow
def test_an_unknown_backend_in_the_environment_is_named():
    code = "import torch, lc_triton; lc_triton.local_conv(torch.zeros(1, 1, 3), torch.zeros(1, 3, 1, 1))"
    env = os.environ | {"LC_TRITON_BACKEND": "tirton"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "LC_TRITON_BACKEND 'tirton' is not known (did you mean 'triton'?)" in done.stderr


@pytest.mark.subprocess
@pytest.mark.slow
def test_an_empty_backend_in_the_environment_is_none():
    code = "import torch, lc_triton; lc_triton.local_conv(torch.zeros(1, 1, 3), torch.zeros(1, 3, 1, 1))"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"LC_TRITON_BACKEND": ""}, check=True)
