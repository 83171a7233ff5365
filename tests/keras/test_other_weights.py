"""Converted weights of other libraries: the layers compute the outputs or the definitions of these libraries."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lc_triton
from lc_triton.errors import LocalConvError
from tests.test_golden import FLAX, FLAX_DATA, JAX, JAX_DATA, arrays, close

B, C, H, W, K, FILTERS, STRIDE = 2, 3, 7, 8, (3, 2), 4, 2
OUT = tuple((n - k) // STRIDE + 1 for n, k in zip((H, W), K, strict=True))


def random_array(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def unfold(x):
    return F.unfold(torch.from_numpy(x), K, stride=STRIDE)


def darknet(x, kernel, bias):
    """darknet's forward_local_layer: each position multiplies its matrix (F, C*kh*kw) by its column of im2col."""
    columns = unfold(x).numpy()
    y = np.repeat(bias.reshape(1, FILTERS, -1), B, 0)
    for position, matrix in enumerate(kernel.reshape(-1, FILTERS, C * K[0] * K[1])):
        for sample in range(B):
            y[sample, :, position] += matrix @ columns[sample, :, position]
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
    x, kernel, bias = random_array(B, C, H, W), random_array(*shape), random_array(FILTERS, *OUT)
    want = torch.from_numpy(compute(x, kernel, bias))
    weight = lc_triton.convert_weights(kernel, kind, kernel_size=K, output_size=OUT)
    ours = lc_triton.convert_weights(bias, kind, bias=True)
    layer = lc_triton.LocallyConnected2D(FILTERS, K, STRIDE, input_shape=(H, W, C), dtype="float64")
    other = lc_triton.LocalConv2d(C, FILTERS, K, (H, W), stride=STRIDE, dtype=torch.float64)
    with torch.no_grad():
        for module in (layer, other):
            module.weight.copy_(torch.from_numpy(weight.copy()))
            module.bias.copy_(torch.from_numpy(ours.copy()))
    close(layer(torch.from_numpy(x).movedim(1, -1)).movedim(-1, 1), want, 1e-12)
    close(other(torch.from_numpy(x)), want, 1e-12)


@pytest.mark.parametrize("id", ["valid2d", "valid1d_nobias", "intpad_dil2d"])
def test_weights_of_flax(id):
    (case,) = (c for c in FLAX if c["id"] == id)
    data, args = arrays(FLAX_DATA, case), case["args"]
    weight = lc_triton.convert_weights(data["kernel"], "flax", kernel_size=args["kernel_size"])
    bias = lc_triton.convert_weights(data["bias"], "flax", bias=True) if "bias" in data else None
    y = lc_triton.local_conv(
        data["x"],
        weight,
        bias,
        stride=args.get("strides", 1),
        padding=args["padding"] if isinstance(args["padding"], int) else 0,
        dilation=args.get("kernel_dilation", 1),
        data_format="channels_last",
    )
    close(y, data["y"])


def test_the_order_of_a_window_is_not_that_of_the_taps():
    (case,) = (c for c in FLAX if c["id"] == "valid2d")
    data, k = arrays(FLAX_DATA, case), case["args"]["kernel_size"]
    weight = data["kernel"].reshape(*data["kernel"].shape[:2], *k, -1, data["kernel"].shape[-1])
    wrong = lc_triton.local_conv(data["x"], weight, data["bias"], data_format="channels_last")
    assert (wrong - data["y"]).abs().max() > 0.1


LOCAL = [c for c in JAX if not c["lhs_dilation"] and all(low >= 0 for pair in c["explicit_padding"] for low in pair)]


@pytest.mark.parametrize("case", LOCAL, ids=[c["id"] for c in LOCAL])
def test_weights_of_jax_in_both_orders(case):
    data, (lhs, rhs, _) = arrays(JAX_DATA, case), case["effective_dimension_numbers"]
    layout = "haiku" if rhs.startswith("OI") else "flax"
    y = lc_triton.local_conv(
        data["x"],
        lc_triton.convert_weights(data["kernel"], layout, kernel_size=case["filter_shape"]),
        stride=case["window_strides"],
        padding=case["explicit_padding"],
        dilation=case["rhs_dilation"] or 1,
        data_format="channels_last" if lhs.endswith("C") else "channels_first",
    )
    close(y, data["y"])


def test_the_cases_have_both_orders_of_jax():
    assert {c["effective_dimension_numbers"][1][:2] for c in LOCAL} >= {"OI", "HW", "WI"}


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("layout", ["flax", "haiku", "unfold", "darknet", "conv2d_local"])
def test_conversions_permute_the_axes(layout, ndim):
    out, k, c, f = (4, 3, 2)[:ndim], (2, 3, 1)[:ndim], 5, 6
    want = torch.arange(np.prod((*out, *k, c, f))).reshape(*out, *k, c, f)
    orders = {"flax": "ockf", "haiku": "fcko", "unfold": "fcko", "darknet": "ofck", "conv2d_local": "ofck"}
    places = {"o": range(ndim), "k": range(ndim, 2 * ndim), "c": [2 * ndim], "f": [2 * ndim + 1]}
    permuted = want.permute([axis for letter in orders[layout] for axis in places[letter]])
    if layout in ("flax", "haiku", "unfold"):
        at = ndim if layout == "flax" else 1
        permuted = permuted.flatten(at, at + ndim)
    assert torch.equal(lc_triton.convert_weights(permuted, layout, kernel_size=k), want)
    array = lc_triton.convert_weights(permuted.numpy(), layout, kernel_size=k)
    assert isinstance(array, np.ndarray)
    assert np.array_equal(array, want.numpy())
    if layout == "unfold":
        flat = permuted.flatten(2)
        assert torch.equal(lc_triton.convert_weights(flat, layout, kernel_size=k, output_size=out), want)
    bias = torch.arange(np.prod((*out, f))).reshape(*out, f)
    theirs = bias if layout == "flax" else bias.movedim(-1, 0)
    assert torch.equal(lc_triton.convert_weights(theirs, layout, bias=True), bias)


KERNEL = np.zeros((5, 4, 18, 8))


@pytest.mark.parametrize(
    ("array", "layout", "given", "message"),
    [
        ([1.0], "flax", {}, "array must be a numpy array or a tensor"),
        (KERNEL, "flex", {}, "layout 'flex' is not known .did you mean 'flax'"),
        (KERNEL, "flax", {}, "kernel_size must be the kernel's sizes: the windows of layout 'flax' are one axis"),
        (KERNEL, "flax", {"kernel_size": 4}, "sizes whose product divides a window's 18 numbers"),
        (KERNEL, "flax", {"kernel_size": 0}, "kernel_size must be a positive int"),
        (KERNEL, "flax", {"kernel_size": "3"}, "kernel_size must be a positive int"),
        (KERNEL, "flax", {"kernel_size": 3.0}, "kernel_size must be a positive int"),
        (KERNEL, "flax", {"kernel_size": True}, "kernel_size must be a positive int"),
        (KERNEL, ["flax"], {"kernel_size": 3}, "layout must be one of flax"),
        (KERNEL, "flax", {"kernel_size": 3, "bias": 1}, "bias must be True or False"),
        (KERNEL, "flax", {"kernel_size": (3, 3, 3)}, r"array must be of shape \(\*out, C\*prod\(k\), F\)"),
        (
            KERNEL,
            "flax",
            {"kernel_size": 3, "output_size": (5, 5)},
            r"output_size must be \(5, 4\), which the array has",
        ),
        (KERNEL[0], "unfold", {"kernel_size": (3, 3)}, "output_size must be 2 sizes with the product 8"),
        (KERNEL[0], "unfold", {"kernel_size": (2, 9), "output_size": (3, 3)}, "2 sizes with the product 8"),
        (KERNEL[0, 0], "darknet", {}, "array must be of shape .* for layout 'darknet'"),
        (np.zeros((5, 4, 8, 2, 3, 3)), "darknet", {"kernel_size": (3, 2)}, r"kernel_size must be \(3, 3\)"),
        (np.zeros((8, 5, 4)), "haiku", {"bias": True, "output_size": (4, 5)}, r"output_size must be \(5, 4\)"),
    ],
)
def test_wrong_arguments(array, layout, given, message):
    with pytest.raises(LocalConvError, match=message):
        lc_triton.convert_weights(array, layout, **given)
