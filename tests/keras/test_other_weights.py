"""Weights of other libraries, by the lines of docs/keras.md."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lc_triton
from tests.test_golden import FLAX, FLAX_DATA, arrays, close

DOCUMENT = Path(__file__).parents[2] / "docs" / "keras.md"
NAMES = {}
for block in re.findall(r"```python\n(def from_flax.*?)```", DOCUMENT.read_text(), re.DOTALL):
    exec(compile(block, DOCUMENT.name, "exec"), NAMES)

B, C, H, W, K, FILTERS, STRIDE = 2, 3, 7, 8, (3, 2), 4, 2
OUT = tuple((n - k) // STRIDE + 1 for n, k in zip((H, W), K, strict=True))


def drawn(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def unfold(x):
    return F.unfold(torch.from_numpy(x), K, stride=STRIDE)


def darknet(x, kernel, bias):
    """forward_local_layer: at each place, its matrix (F, C*kh*kw) times its column of im2col, added to the biases."""
    columns = unfold(x).numpy()
    y = np.repeat(bias.reshape(1, FILTERS, -1), B, 0)
    for place, matrix in enumerate(kernel.reshape(-1, FILTERS, C * K[0] * K[1])):
        for sample in range(B):
            y[sample, :, place] += matrix @ columns[sample, :, place]
    return y.reshape(B, FILTERS, *OUT)


def by_unfold(x, kernel, bias):
    y = torch.einsum("bdl,fdl->bfl", unfold(x), torch.from_numpy(kernel))
    return y.numpy().reshape(B, FILTERS, *OUT) + bias


def conv2d_local(x, kernel, bias):
    """conv2d_local of https://github.com/pytorch/pytorch/pull/1583."""
    weight = torch.from_numpy(kernel)
    columns = unfold(x)
    columns = columns.view(columns.size(0), columns.size(1), columns.size(2), 1).permute(0, 2, 3, 1)
    out = torch.matmul(columns, weight.view(OUT[0] * OUT[1], FILTERS, -1).permute(0, 2, 1))
    return out.view(B, *OUT, FILTERS).permute(0, 3, 1, 2).numpy() + bias


KINDS = {
    "darknet": (darknet, (*OUT, FILTERS, C, *K)),
    "unfold": (by_unfold, (FILTERS, C * K[0] * K[1], OUT[0] * OUT[1])),
    "conv2d_local": (conv2d_local, (*OUT, FILTERS, C, *K)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_another_library(kind):
    compute, shape = KINDS[kind]
    x, kernel, bias = drawn(B, C, H, W), drawn(*shape), drawn(FILTERS, *OUT)
    want = torch.from_numpy(compute(x, kernel, bias))
    weight, ours = NAMES[f"from_{kind}"](kernel, bias, K)
    layer = lc_triton.LocallyConnected2D(FILTERS, K, STRIDE, input_shape=(H, W, C), dtype="float64")
    NAMES["set_weights"](layer, weight, ours)
    close(layer(torch.from_numpy(x).movedim(1, -1)).movedim(-1, 1), want, 1e-12)
    other = lc_triton.LocalConv2d(C, FILTERS, K, (H, W), stride=STRIDE, dtype=torch.float64)
    with torch.no_grad():
        other.weight.copy_(torch.from_numpy(weight.copy()))
        other.bias.copy_(torch.from_numpy(ours.copy()))
    close(other(torch.from_numpy(x)), want, 1e-12)


def test_weights_of_flax():
    (case,) = (c for c in FLAX if c["id"] == "valid2d")
    data, k = arrays(FLAX_DATA, case), tuple(case["args"]["kernel_size"])
    weight, bias = NAMES["from_flax"](data["kernel"].numpy(), data["bias"].numpy(), k)
    layer = lc_triton.LocallyConnected2D(bias.shape[-1], k, input_shape=tuple(data["x"].shape[1:]), dtype="float64")
    NAMES["set_weights"](layer, weight, bias)
    close(layer(data["x"]), data["y"])
    layer.set_weights([data["kernel"].numpy().reshape(layer.get_weights()[0].shape), bias])  # its own order is taken
    assert (layer(data["x"]) - data["y"]).abs().max() > 0.1
