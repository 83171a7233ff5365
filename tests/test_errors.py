"""Bad input: one clear message each, naming the argument, its value, what is allowed and what to do."""

import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import lc_triton
from lc_triton import errors
from lc_triton.tiles.config import TileConfig


def conv(x=(2, 4, 9, 8), weight=(7, 6, 3, 3, 4, 6), bias=None, dtype=torch.float32, weight_dtype=None, **kwargs):
    x = torch.zeros(x, dtype=dtype) if isinstance(x, tuple) else x
    weight = torch.zeros(weight, dtype=weight_dtype or dtype) if isinstance(weight, tuple) else weight
    return lc_triton.local_conv(x, weight, bias, **kwargs)


def layer(*args, **kwargs):
    return lc_triton.LocalConv2d(*args, **kwargs)


def transposed(y=(2, 6, 7, 6), weight=(7, 6, 3, 3, 4, 6), bias=None, **kwargs):
    bias = bias if bias is None else torch.zeros(bias)
    return lc_triton.local_conv_transpose(torch.zeros(y), torch.zeros(weight), bias, **kwargs)


def lazy(*args, **kwargs):
    return lc_triton.LazyLocalConv2d(*args, **kwargs)


def keras2d(filters=4, kernel_size=3, *args, x=None, **kwargs):
    made = lc_triton.LocallyConnected2D(filters, kernel_size, *args, **kwargs)
    return made if x is None else made(torch.zeros(x))


def replaced(shape):
    made = layer(2, 3, 3, 5)
    made.weight = torch.nn.Parameter(torch.zeros(shape))
    return made(torch.zeros(1, 2, 5, 5))


def convert(example=None, **kwargs):
    example = torch.zeros(1, 1, 3, 3) if example is None else example
    return lc_triton.convert_convs(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)), example, **kwargs)


LOOP = [1]
LOOP.append(LOOP)

E = errors
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
        "padding_mode must be one of zeros, reflect, replicate, circular, got 0",
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
    (lambda: keras2d(0), E.ArgumentValueError, "filters must be an integer >= 1, got 0"),
    (lambda: keras2d(2.0), E.ArgumentTypeError, "filters must be an integer >= 1, got 2.0"),
    (lambda: keras2d(True), E.ArgumentTypeError, "filters must be an integer >= 1, got True of type bool"),
    (lambda: keras2d(4, (3, 3, 3)), E.LengthError, "kernel_size must be an int or 2 ints for 2 spatial dimension(s)"),
    (lambda: keras2d(4, 3.0), E.ArgumentTypeError, "kernel_size must be an integer >= 1, got 3.0 of type float"),
    (lambda: keras2d(strides=0), E.ArgumentValueError, "strides must be an integer >= 1, got 0"),
    (lambda: keras2d(dilation_rate=0), E.ArgumentValueError, "dilation_rate must be an integer >= 1, got 0"),
    (lambda: keras2d(groups=0), E.ArgumentValueError, "groups must be an integer >= 1, got 0"),
    (lambda: keras2d(groups=3), E.GroupsError, "filters must be divisible by groups, got filters=4 with groups=3"),
    (
        lambda: keras2d(groups=2, input_shape=(5, 5, 3)),
        E.GroupsError,
        "in_channels must be divisible by groups, got in_channels=3 with groups=2",
    ),
    (lambda: keras2d(padding="full"), E.UnknownNameError, "padding 'full' is not known; allowed: causal, keras_same"),
    (lambda: keras2d(padding="sam"), E.UnknownNameError, "padding 'sam' is not known (did you mean 'same'?)"),
    (lambda: keras2d(padding=1), E.ArgumentTypeError, "padding must be one of valid, same, keras_same, causal, got 1"),
    (lambda: keras2d(padding="causal"), E.PaddingError, "padding='causal' exists in 1-D only"),
    (lambda: keras2d(data_format="channels_fist"), E.UnknownNameError, "did you mean 'channels_first'?"),
    (
        lambda: keras2d(activation="sofmax"),
        E.UnknownNameError,
        "'sofmax' is not known (did you mean 'softmax'?)",
    ),
    (lambda: keras2d(activation="hardsigmoid"), E.UnknownNameError, "did you mean 'hard_sigmoid'?"),
    (lambda: keras2d(activation=1), E.ArgumentTypeError, "activation must be None, a name, a (name, constant) pair or"),
    (lambda: keras2d(use_bias=1), E.ArgumentTypeError, "use_bias must be True or False, got 1 of type int"),
    (
        lambda: keras2d(kernel_initializer="glorot"),
        E.UnknownNameError,
        "initializer 'glorot' is not known (did you mean 'glorot_normal'?)",
    ),
    (lambda: keras2d(bias_initializer="zeroes"), E.UnknownNameError, "did you mean 'zeros'?"),
    (
        lambda: keras2d(kernel_initializer={"class_name": "Constant", "config": {"val": 1}}),
        E.UnknownNameError,
        "initializer Constant argument 'val' is not known (did you mean 'value'?)",
    ),
    (
        lambda: keras2d(kernel_initializer={"class": "Constant"}),
        E.ArgumentValueError,
        'initializer must be a dict with "class_name" and "config" if it is a configuration',
    ),
    (
        lambda: keras2d(kernel_initializer=lc_triton.keras.initializers.Zeros),
        E.ArgumentTypeError,
        "initializer must be None, a name, a configuration or a callable object",
    ),
    (
        lambda: keras2d(kernel_initializer="identity", input_shape=(5, 5, 2)),
        E.ArgumentValueError,
        "another here: a window has 18 numbers, there are 4 filters, identity needs as many",
    ),
    (
        lambda: keras2d(kernel_initializer=lambda shape, dtype: torch.zeros(3), input_shape=(5, 5, 2)),
        E.ArgumentValueError,
        "shape of what the initializer returned must be (9, 18, 4), got (3,)",
    ),
    (
        lambda: keras2d(kernel_initializer=lambda shape, dtype: None, input_shape=(5, 5, 2)),
        E.ArgumentTypeError,
        "what the initializer returned must be an array or tensor of real numbers, got None",
    ),
    (
        lambda: lc_triton.keras.initializers.RandomNormal(stddev=-1.0),
        E.ArgumentValueError,
        "stddev must be a finite number >= 0, got -1.0",
    ),
    (lambda: lc_triton.keras.initializers.HeNormal(seed="a"), E.ArgumentTypeError, "seed must be an integer >= 0"),
    (
        lambda: lc_triton.keras.initializers.GlorotUniform(fan_mode="kers"),
        E.UnknownNameError,
        "fan_mode 'kers' is not known (did you mean 'keras'?)",
    ),
    (lambda: keras2d(kernel_regularizer="l3"), E.UnknownNameError, "regularizer 'l3' is not known (did you mean 'l"),
    (
        lambda: keras2d(activity_regularizer=0.1),
        E.ArgumentTypeError,
        "regularizer must be None, a name, a configuration",
    ),
    (
        lambda: lc_triton.keras.regularizers.L2(float("nan")),
        E.ArgumentValueError,
        "l2 must be a finite number >= 0, got nan",
    ),
    (
        lambda: lc_triton.keras.regularizers.OrthogonalRegularizer()(torch.ones(3)),
        E.ArgumentValueError,
        "regularizer must be another for weights of shape (3,): it compares the rows of matrices",
    ),
    (lambda: keras2d(bias_constraint="maxnorm"), E.UnknownNameError, "constraint 'maxnorm' is not known (did you mean"),
    (
        lambda: lc_triton.keras.constraints.MaxNorm(0),
        E.ArgumentValueError,
        "max_value must be a finite number > 0, got 0",
    ),
    (lambda: lc_triton.keras.constraints.UnitNorm(axis=1.0), E.ArgumentTypeError, "axis must be an integer"),
    (
        lambda: keras2d(
            kernel_constraint={"class_name": "UnitNorm", "config": {"axis": 3}}, input_shape=(5, 5, 2)
        ).constrain_(),
        E.ArgumentValueError,
        "axis must be an axis of a tensor of shape (9, 18, 4), got 3",
    ),
    (
        lambda: keras2d(
            kernel_constraint={"class_name": "UnitNorm", "config": {"axis": 1}},
            implementation=3,
            input_shape=(5, 5, 2),
        ).constrain_(),
        E.ArgumentValueError,
        "axis must be an axis of a tensor of shape (648,), got 1",
    ),
    (
        lambda: keras2d(kernel_constraint=lambda w: w.sum(), input_shape=(5, 5, 2)).constrain_(),
        E.ArgumentValueError,
        "what the constraint returned must be a tensor of shape (9, 18, 4)",
    ),
    (lambda: keras2d(implementation=4), E.ArgumentValueError, "implementation must be 1, 2 or 3"),
    (lambda: keras2d(dtype="float8"), E.ArgumentTypeError, "dtype must be a torch.dtype, or a name"),
    (lambda: keras2d(dtype=torch.int64), E.DtypeError, "dtype has dtype int64"),
    (lambda: keras2d(input_shape=(5, 5)), E.LengthError, "input_shape must be 3 sizes (spatial sizes and channels, wi"),
    (lambda: keras2d(input_shape=5), E.ArgumentTypeError, "input_shape must be a sequence of sizes, got 5"),
    (
        lambda: keras2d(input_shape=(5, None, 3)),
        E.ArgumentValueError,
        "input_shape must be known sizes: every output position has filters of its own, so only the batch may be None",
    ),
    (lambda: keras2d(input_shape=(2, 5, 3)), E.KernelTooLargeError, "wider than the padded input 2"),
    (
        lambda: keras2d().build((5, 5, 3)),
        E.LengthError,
        "input_shape must be 4 sizes (batch, spatial sizes",
    ),
    (
        lambda: keras2d(input_shape=(5, 5, 3)).build((None, 6, 5, 3)),
        E.ArgumentValueError,
        "input_shape must be (batch, 5, 5, 3), what this layer is built for: make a new layer for others, got (None, 6",
    ),
    (
        lambda: keras2d(x=(5, 5, 3)),
        E.RankError,
        "x must have 4 dimensions (batch, rows, cols, channels), got shape (5, 5, 3)",
    ),
    (
        lambda: keras2d(input_shape=(5, 5, 3), x=(1, 6, 5, 3)),
        E.SpatialSizeError,
        "x has spatial size (6, 5) but this layer's filters were made for (5, 5)",
    ),
    (
        lambda: keras2d(input_shape=(5, 5, 3), x=(1, 5, 5, 4)),
        E.ChannelError,
        "x.shape=(1, 5, 5, 4) was read as channels_last",
    ),
    (
        lambda: keras2d().count_params(),
        E.NotBuiltError,
        "LocallyConnected2D is not built: give input_shape=, call build",
    ),
    (lambda: keras2d().get_weights(), E.NotBuiltError, "LocallyConnected2D is not built"),
    (lambda: keras2d().set_weights([]), E.NotBuiltError, "LocallyConnected2D is not built"),
    (
        lambda: keras2d(input_shape=(5, 5, 2)).set_weights([np.zeros((9, 18, 4))]),
        E.ArgumentValueError,
        "weights must be a list of 2 array(s) of shape (9, 18, 4) and (3, 3, 4), got [(9, 18, 4)]",
    ),
    (
        lambda: keras2d(implementation=2, input_shape=(5, 5, 2)).set_weights(
            [np.zeros((9, 18, 4)), np.zeros((3, 3, 4))]
        ),
        E.ArgumentValueError,
        "weights must be a list of 2 array(s) of shape (5, 5, 2, 3, 3, 4) and (3, 3, 4), got [(9, 18, 4), (3, 3, 4)]",
    ),
    (
        lambda: keras2d(implementation=3, use_bias=False, input_shape=(5, 5, 2)).set_weights([np.zeros((9, 18, 4))]),
        E.ArgumentValueError,
        "weights must be a list of 1 array(s) of shape (648,), got [(9, 18, 4)]",
    ),
    (
        lambda: keras2d(input_shape=(5, 5, 2)).set_weights(np.zeros((9, 18, 4))),
        E.ArgumentTypeError,
        "weights must be a list of 2 array(s)",
    ),
    (
        lambda: keras2d(input_shape=(5, 5, 2)).set_weights(["a", "b"]),
        E.ArgumentTypeError,
        "weights must be an array or tensor of real numbers, got 'a'",
    ),
    (
        lambda: lc_triton.LocallyConnected2D.from_config({"filters": 4, "kernel_size": 3, "stride": 2}),
        E.UnknownNameError,
        "argument 'stride' is not known (did you mean 'strides'?)",
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
    (lambda: keras2d(data_format=""), E.UnknownNameError, "data_format '' is not known"),
    (
        lambda: keras2d(input_shape=b"\x05\x05\x02"),
        E.ArgumentTypeError,
        "input_shape must be a sequence of sizes, got b",
    ),
    (
        lambda: keras2d(kernel_regularizer=np.array(["l2", "l1"])),
        E.ArgumentTypeError,
        "regularizer must be None, a name, a c",
    ),
    (
        lambda: keras2d(kernel_initializer={"class_name": "Ones", "config": torch.ones(2)}),
        E.ArgumentValueError,
        'initializer must be a dict with "class_name" and "config" if it is a configuration',
    ),
    (
        lambda: keras2d(kernel_initializer={"class_name": "Ones", "config": {1: 1}}),
        E.UnknownNameError,
        "initializer Ones argument 1 is not known; allowed: none",
    ),
    (
        lambda: lc_triton.keras.initializers.Constant(10**30),
        E.ArgumentValueError,
        "value must be a finite number, got 1000000000000000000000000000000",
    ),
    (
        lambda: lc_triton.keras.constraints.UnitNorm(axis=[]),
        E.ArgumentValueError,
        "axis must be None, an axis or several, got []",
    ),
    (
        lambda: lc_triton.keras.constraints.UnitNorm(axis=(1, -1))(torch.ones(2, 2)),
        E.ArgumentValueError,
        "axis must be axes that are named once, got (1, -1)",
    ),
    (lambda: lc_triton.keras.activations.get(1), E.ArgumentTypeError, "activation must be None, a name, a (name, cons"),
    (lambda: lc_triton.regularization_loss(1), E.ArgumentTypeError, "model must be a torch.nn.Module, got 1"),
    (lambda: lc_triton.apply_constraints(None), E.ArgumentTypeError, "model must be a torch.nn.Module, got None"),
    (
        lambda: lc_triton.attach_constraints(torch.nn.ReLU(), None),
        E.ArgumentTypeError,
        "optimizer must be a torch.optim.Optimizer, got None",
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
    (lambda: TileConfig(rows=True), E.ArgumentTypeError, "rows must be an integer >= 1, got True of type bool"),
    (lambda: TileConfig(num_stages=0), E.ArgumentValueError, "num_stages must be an integer >= 1, got 0"),
    (lambda: TileConfig(dot=1), E.ArgumentTypeError, "dot must be True or False, got 1 of type int"),
]


@pytest.mark.parametrize(("call", "kind", "message"), CALLS, ids=[f"{i}_{c[1].__name__}" for i, c in enumerate(CALLS)])
def test_message(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)
    assert isinstance(caught.value, lc_triton.LocalConvError)
    assert isinstance(caught.value, ValueError | TypeError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (kind, str(caught.value))


def test_a_good_call_does_not_make_its_look_alike_good():
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
        ({"padding_mode": ["zeros"]}, "padding_mode must be one of zeros, reflect, replicate, circular, got ['zeros']"),
        ({"data_format": ["channels_last"]}, "data_format must be one of channels_first, channels_last"),
        ({"activation": {"elu": 1}}, "activation must be None, a name, a (name, constant) pair or a callable, got {"),
        ({"activation": torch.nn.ReLU}, "activation must be None, a name, a (name, constant) pair or a callable, got"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_arguments_that_cannot_be_cached_or_meant(kwargs, message):
    with pytest.raises(E.ArgumentTypeError) as caught:
        conv(**kwargs)
    assert message in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_triton_on_cpu_tensors_needs_the_interpreter():
    with lc_triton.backend("triton"), pytest.raises(E.BackendError, match="TRITON_INTERPRET=1"):
        conv()


def test_an_unknown_backend_in_the_environment_is_named():
    code = "import torch, lc_triton; lc_triton.local_conv(torch.zeros(1, 1, 3), torch.zeros(1, 3, 1, 1))"
    env = os.environ | {"LC_TRITON_BACKEND": "tirton"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "LC_TRITON_BACKEND 'tirton' is not known (did you mean 'triton'?)" in done.stderr


def test_an_empty_backend_in_the_environment_is_none():
    code = "import torch, lc_triton; lc_triton.local_conv(torch.zeros(1, 1, 3), torch.zeros(1, 3, 1, 1))"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"LC_TRITON_BACKEND": ""}, check=True)


class Unprintable:
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.ones((2, 3, 6, 5), "float32"), "got an array of shape (2, 3, 6, 5) and dtype float32 of type ndarray"),
        ([0.5] * 1000, "... of type list"),
        (Unprintable(), "got what has no repr of type Unprintable"),
        (torch.nested.nested_tensor([torch.zeros(3, 6, 5)]), "of type Tensor"),  # which has no shape
    ],
    ids=["array", "long", "unprintable", "nested"],
)
def test_a_message_shows_no_wall_of_numbers(value, shown):
    with pytest.raises(E.ArgumentTypeError) as caught:
        lc_triton.LocalConv2d(3, 4, 3, input_size=(6, 5))(value)
    assert shown in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.fields["value"] is value


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
def test_channels_in_another_dimension_are_found(make, shape, message):
    layer = make()
    with pytest.raises(E.ChannelError, match=re.escape(message)) as caught:
        layer(torch.zeros(shape))
    assert "data_format" not in str(caught.value)


def test_the_order_of_torchs_arguments_is_explained():
    with pytest.raises(E.KernelTooLargeError, match=r"\(3, 3\) .* the fourth argument is input_size"):
        lc_triton.LocalConv2d(3, 4, 3, 1, 1)


@pytest.mark.parametrize("value", ["float16", float, np.float32])
def test_a_dtype_of_another_librarys_is_told_from_torchs(value):
    with pytest.raises(E.ArgumentTypeError, match=r"dtype must be a torch\.dtype, such as torch\.float16"):
        lc_triton.LocalConv2d(3, 4, 3, 6, dtype=value)


def test_every_kind_of_error_is_both_ours_and_pythons():
    for name in errors.__all__:
        kind = getattr(errors, name)
        if kind is not errors.LocalConvError:
            assert issubclass(kind, errors.LocalConvError)
            assert issubclass(kind, ValueError | TypeError | ImportError | RuntimeError)
