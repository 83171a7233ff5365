"""Outputs of the layers for Keras 3 equal those of the layers for torch and of Keras 2."""

import pytest
import torch

from lc_triton.keras import layout
from tests.cases import CASES, IDS, assert_close, tensors
from tests.keras.keras3.common import LAYERS, QUIET, TWINS, layers
from tests.test_golden import KERAS as GOLDEN
from tests.test_golden import KERAS_DATA as DATA
from tests.test_golden import arrays, close, leaf

pytestmark = QUIET

NAMED = [i for i, c in enumerate(CASES) if isinstance(c.padding, str) or c.padding == 0]


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("case", [CASES[i] for i in NAMED], ids=[IDS[i] for i in NAMED])
def test_a_layer_equals_the_torch_layer(case, data_format):
    n = len(case.in_spatial)
    x = tensors(case).x
    x = leaf(x if data_format == "channels_last" else x.movedim(-1, 1))
    arguments = {
        "strides": case.stride,
        "padding": case.padding or "valid",
        "dilation_rate": case.dilation,
        "groups": case.groups,
        "data_format": data_format,
        "activation": "tanh",
        "dtype": "float64",
        "bias_initializer": "random_normal",
    }
    layer = LAYERS[n](case.filters, case.kernel, **arguments)
    twin = TWINS[n](case.filters, case.kernel, **arguments, input_shape=tuple(x.shape[1:]))
    y = layer(x)
    kernel, bias = layer.get_weights()
    twin.set_weights([kernel, layout.bias_to_keras(torch.from_numpy(bias), data_format)])
    want = twin(x)
    assert torch.equal(y, want)
    assert (len(x), *y.shape[1:]) == layer.compute_output_shape(tuple(x.shape))
    g = torch.randn_like(y)
    got = torch.autograd.grad(y, (x, layer.kernel.value, layer.bias.value), g)
    dx, dw, db = torch.autograd.grad(want, (x, twin.weight, twin.bias), g)
    assert_close(got[0], dx)
    assert_close(got[1], layout.kernel_to_keras(dw, case.geometry, data_format))
    assert_close(got[2], db)


@pytest.mark.parametrize("case", GOLDEN, ids=[c["id"] for c in GOLDEN])
def test_a_layer_equals_keras_2(case):
    data, args = arrays(DATA, case), case["args"]
    padding = "keras_same" if args["padding"] == "same" else args["padding"]
    layer = getattr(layers, case["cls"])(**args | {"padding": padding}, dtype="float64")
    layer.build(case["input_shape"])
    geometry = layer._geometry

    def kernel(values):  # (P, D, F) in the order (taps, channels)
        return layout.kernel_to_keras(values.view(geometry.weight_shape), geometry, args["data_format"])

    weights = [kernel(data["kernel_pdf"])]
    if args["use_bias"]:
        weights.append(data["bias_pf"].view(geometry.bias_shape))
    layer.set_weights([w.numpy() for w in weights])

    tolerance = 2e-8 if args["activation"] == "gelu" else 1e-9
    x = leaf(data["x"])
    y = layer(x)
    close(y, data["y"], tolerance)
    y.backward(data["g"])
    close(x.grad, data["dx"], tolerance)
    close(layer.kernel.value.grad, kernel(data["dkernel_pdf"]), tolerance)
    if args["use_bias"]:
        close(layer.bias.value.grad, data["dbias_pf"].view(geometry.bias_shape), tolerance)


@pytest.mark.parametrize("implementation", [1, 2, 3])
def test_implementations_compute_the_same(implementation):
    x = torch.arange(12.0).view(1, 6, 2)
    layer = layers.LocallyConnected1D(2, 3, implementation=implementation, kernel_initializer="ones")
    assert torch.equal(layer(x), x.unfold(1, 3, 1).sum((2, 3))[..., None].expand(1, 4, 2))
