"""A sample of users' code for type checkers. Lines with an `ignore` comment must have its error, others none.

mypy checks it in `tests/typing/test_types.py`, pyright in `make types`; nothing runs it.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import lc_triton
from lc_triton import LocalConv2d, LocalConvError, LocallyConnected2D, local_conv

# Modules of the package, without an import of their own.
model: nn.Module = lc_triton.keras.load_model(Path("model.h5"))
lc_triton.keras.load_weights(model, "model.weights.h5")
style = lc_triton.parallel.PositionParallel()
kernels: type[nn.Module] = lc_triton.LazyLocalConv2d

# Layers and what they return.
layer = LocalConv2d(3, 8, kernel_size=3, input_size=(6, 6), padding="same", bias="channel", activation="relu")
lc_triton.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
assert_type(layer.weight, Tensor)
output: Tensor = layer(torch.randn(2, 3, 6, 6))
assert_type(local_conv(torch.randn(2, 3, 6, 6), layer.weight, padding=((1, 1), (0, 2)), padding_mode="reflect"), Tensor)
assert_type(lc_triton.local_conv_transpose(torch.randn(2, 8, 6, 6), layer.weight, stride=(2, 1)), Tensor)
keras_layer = LocallyConnected2D(8, (3, 3), activation="hard_sigmoid", data_format="channels_first", padding="valid")
loss: Tensor = layer(torch.randn(2, 3, 6, 6)).sum() + lc_triton.regularization_loss(nn.Sequential(keras_layer))

# Every form of an activation.
LocalConv2d(3, 8, 3, 6, activation=("leaky_relu", 0.2))
LocalConv2d(3, 8, 3, 6, activation=("gelu", "tanh"))
LocalConv2d(3, 8, 3, 6, activation=torch.tanh)
LocalConv2d(3, 8, 3, 6, activation=nn.PReLU())
LocalConv2d(3, 8, 3, 6, activation=None)
local_conv(torch.randn(2, 3, 6, 6), layer.weight, activation=lambda y: y.clamp(min=0))

with lc_triton.backend("reference"), lc_triton.tuning(seconds=1.0):
    y = layer(torch.randn(2, 3, 6, 6))

converted = lc_triton.convert_convs(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(1, 3, 9, 9), bias="position")
made = lc_triton.precompile(layer, [(32, 3, 6, 6)], "h100", out="kernels", autocast=torch.bfloat16)
assert_type(made.compiled, int)
try:
    layer(torch.randn(2, 4, 6, 6))
except LocalConvError as error:
    print(error.fields["name"])

# Names that do not exist.
LocalConv2d(3, 8, 3, 6, activation="rleu")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
LocalConv2d(3, 8, 3, 6, activation=("relu", 0.1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
LocalConv2d(3, 8, 3, 6, padding="full")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
LocalConv2d(3, 8, 3, 6, bias="positions")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
LocallyConnected2D(8, 3, activation="hardsigmoid")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
LocallyConnected2D(8, 3, data_format="NCHW")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
local_conv(y, y, data_format="channel_last")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
lc_triton.backend("tritn")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
LocalConv2d(3, 8, 3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
