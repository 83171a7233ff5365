"""Data made by tf_keras, JAX and flax themselves (tests/golden/README.md), through local_conv."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import lc_triton

GOLDEN = Path(__file__).parent / "golden"


def load(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"], np.load(GOLDEN / f"{name}.npz")


def arrays(npz, case):
    prefix = case["id"] + "/"
    return {k.removeprefix(prefix): torch.from_numpy(npz[k]) for k in npz.files if k.startswith(prefix)}


def close(actual, golden, tolerance=1e-9):
    torch.testing.assert_close(actual, golden, rtol=0, atol=tolerance * max(1.0, golden.abs().max().item()))


def leaf(t):
    return t.clone().requires_grad_()


def from_taps_last(kernel, taps, ndim):
    """(*out, C * taps, F) with channels slowest, as JAX and flax have it -> (*out, *kernel, C, F)."""
    out = kernel.shape[:ndim]
    return kernel.unflatten(ndim, (-1, *taps)).movedim(ndim, -2).reshape(*out, *taps, -1, kernel.shape[-1])


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with lc_triton.backend(request.param):
        yield


KERAS, KERAS_DATA = load("keras_cases")


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", KERAS, ids=[c["id"] for c in KERAS])
def test_keras(case):
    data, args = arrays(KERAS_DATA, case), case["args"]
    out, ndim = case["output_spatial"], len(case["output_spatial"])
    first = args.get("data_format") == "channels_first"
    filters = args["filters"]
    kernel = [args["kernel_size"]] * ndim if isinstance(args["kernel_size"], int) else args["kernel_size"]
    channels = case["input_shape"][1 if first else -1]
    x, weight = leaf(data["x"]), leaf(data["kernel_pdf"])
    bias = leaf(data["bias_pf"]) if "bias_pf" in data else None
    act = args.get("activation") or "linear"
    y = lc_triton.local_conv(
        x,
        weight.view(*out, *kernel, channels, filters),
        None if bias is None else bias.view(*out, filters),
        stride=args.get("strides", 1),
        padding=case["equivalent_padding"],
        activation=(lambda z: torch.softmax(z, -1)) if act == "softmax" else act,
        data_format=args.get("data_format") or "channels_last",
    )
    tolerance = 2e-8 if act == "gelu" else 1e-9
    close(y, data["y"], tolerance)
    y.backward(data["g"])
    close(x.grad, data["dx"], tolerance)
    close(weight.grad, data["dkernel_pdf"], tolerance)
    if bias is not None:
        close(bias.grad, data["dbias_pf"], tolerance)


JAX, JAX_DATA = load("jax_local")


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", JAX, ids=[c["id"] for c in JAX])
def test_jax(case):
    data, taps = arrays(JAX_DATA, case), case["filter_shape"]
    lhs, rhs, _ = case["effective_dimension_numbers"]
    ndim = len(taps)
    x, kernel = leaf(data["x"]), leaf(data["kernel"])
    spatial = [d for d in rhs if d not in "OI"]
    weight = from_taps_last(kernel.permute([rhs.index(d) for d in (*spatial, "I", "O")]), taps, ndim)
    padding = [tuple(p) for p in case["explicit_padding"]]
    inner = x
    for d, (lo, hi) in zip(spatial, padding, strict=True):  # JAX's negative padding crops
        dim = lhs.index(d)
        inner = inner.narrow(dim, max(-lo, 0), inner.shape[dim] - max(-lo, 0) - max(-hi, 0))
    y = lc_triton.local_conv(
        inner,
        weight,
        stride=case["window_strides"],
        padding=[(max(lo, 0), max(hi, 0)) for lo, hi in padding],
        dilation=case["rhs_dilation"] or 1,
        data_format="channels_first" if lhs[1] == "C" else "channels_last",
    )
    close(y, data["y"])
    y.backward(data["g"])
    close(x.grad, data["dx"])
    close(kernel.grad, data["dkernel"])


FLAX, FLAX_DATA = load("flax_convlocal")


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", FLAX, ids=[c["id"] for c in FLAX])
def test_flax(case):
    data, args = arrays(FLAX_DATA, case), case["args"]
    taps = args["kernel_size"]
    ndim = len(taps)
    x, kernel = leaf(data["x"]), leaf(data["kernel"])
    bias = leaf(data["bias"]) if "bias" in data else None
    weight = kernel * data["mask"] if case["mask"] else kernel
    inner, padding, mode = x, args["padding"], "zeros"
    dilation = args.get("kernel_dilation", 1)
    if step := args.get("input_dilation"):
        size = [(n - 1) * step + 1 for n in x.shape[1:-1]]
        inner = x.new_zeros(x.shape[0], *size, x.shape[-1])
        inner[:, ::step, ::step] = x
    if padding == "CIRCULAR":
        mode, padding = "circular", [((k - 1) // 2, k // 2) for k in taps]
    y = lc_triton.local_conv(
        inner,
        from_taps_last(weight, taps, ndim),
        bias,
        stride=args.get("strides", 1),
        padding=padding.lower() if isinstance(padding, str) else padding,
        dilation=dilation,
        padding_mode=mode,
        data_format="channels_last",
    )
    close(y, data["y"])
    y.backward(data["g"])
    for tensor, name in ((x, "dx"), (kernel, "dkernel"), (bias, "dbias")):
        if tensor is not None:
            close(tensor.grad, data[name])


def test_the_golden_files_hold_what_their_readme_says():
    assert (len(KERAS), len(JAX), len(FLAX)) == (28, 8, 7)
    for case in KERAS:
        data = arrays(KERAS_DATA, case)
        assert math.isclose((data["y"] * data["g"]).sum().item(), case["L"], rel_tol=1e-9)
