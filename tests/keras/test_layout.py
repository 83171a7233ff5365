"""Conversions of kernels, compared with a loop over all entries of a weight, and with kernels of tf_keras."""

import numpy as np
import pytest
import torch

from lc_triton.core.geometry import Geometry
from lc_triton.keras import layout
from tests.cases import CASES, IDS, assert_close, tensors
from tests.test_golden import KERAS, KERAS_DATA, arrays

FORMATS = ["channels_last", "channels_first"]


def connections(geo, data_format):
    """The entries of a weight that read the input: (flat output, flat input), and the index in the weight."""

    def flat(spatial, channel, sizes, channels):
        if data_format == "channels_first":
            return int(np.ravel_multi_index((channel, *spatial), (channels, *sizes)))
        return int(np.ravel_multi_index((*spatial, channel), (*sizes, channels)))

    channels, filters = geo.in_channels // geo.groups, geo.out_channels // geo.groups
    found = []
    for position in np.ndindex(geo.out_spatial):
        for tap in np.ndindex(geo.kernel):
            steps = zip(position, geo.stride, tap, geo.dilation, geo.padding, strict=True)
            site = tuple(p * s + t * d - low for p, s, t, d, (low, _) in steps)
            if any(not 0 <= i < size for i, size in zip(site, geo.in_spatial, strict=True)):
                continue
            for c, f in np.ndindex(channels, geo.out_channels):
                output = flat(position, f, geo.out_spatial, geo.out_channels)
                source = flat(site, f // filters * channels + c, geo.in_spatial, geo.in_channels)
                found.append(((output, source), (*position, *tap, c, f)))
    return found


def index_tensors(pairs):
    return tuple(torch.tensor(pairs).T)


@pytest.mark.slow
@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_implementations_2_and_3(case, data_format):
    geo, weight = case.geometry, tensors(case).weight
    pairs, indices = map(list, zip(*sorted(connections(geo, data_format)), strict=True))
    values = weight[index_tensors(indices)]
    outputs, inputs = index_tensors(pairs)
    connected = torch.zeros_like(weight)
    connected[index_tensors(indices)] = values
    dense = torch.zeros(geo.sites * geo.in_channels, geo.positions * geo.out_channels, dtype=torch.float64)
    unconnected = torch.full_like(dense, torch.nan)
    dense[inputs, outputs] = unconnected[inputs, outputs] = values

    assert torch.equal(layout.connected(weight, geo), connected)
    assert layout.kernel_shape(geo, data_format, 3) == values.shape
    assert torch.equal(layout.kernel_to_keras(weight, geo, data_format, 3), values)
    assert torch.equal(layout.kernel_from_keras(values, geo, data_format, 3), connected)
    shape = layout.kernel_shape(geo, data_format, 2)
    assert torch.equal(layout.kernel_to_keras(weight, geo, data_format, 2), dense.reshape(shape))
    given = unconnected.reshape(shape).movedim(0, -1).contiguous().movedim(-1, 0)  # a kernel with permuted strides
    assert torch.equal(layout.kernel_from_keras(given, geo, data_format, 2), connected)


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_implementation_1(case, data_format):
    geo, weight = case.geometry, tensors(case).weight
    kernel = layout.kernel_to_keras(weight, geo, data_format)
    assert layout.kernel_shape(geo, data_format) == kernel.shape
    place = tuple(size // 2 for size in weight.shape)
    position, tap = place[: geo.ndim], place[geo.ndim : -2]
    channels = geo.in_channels // geo.groups
    window = (*tap, place[-2]), (*geo.kernel, channels)
    if data_format == "channels_first":
        window = (place[-2], *tap), (channels, *geo.kernel)
    p = np.ravel_multi_index(position, geo.out_spatial)
    assert kernel[p, np.ravel_multi_index(*window), place[-1]] == weight[place]
    assert torch.equal(layout.kernel_from_keras(kernel, geo, data_format), weight)


@pytest.mark.parametrize("case", KERAS, ids=[c["id"] for c in KERAS])
def test_kernels_made_by_keras(case):
    data, args = arrays(KERAS_DATA, case), case["args"]
    data_format, implementation = args.get("data_format") or "channels_last", args["implementation"]
    shape = case["input_shape"][1:]
    channels, spatial = (shape[0], shape[1:]) if data_format == "channels_first" else (shape[-1], shape[:-1])
    geo = Geometry.make(
        spatial,
        channels,
        args["filters"],
        args["kernel_size"],
        stride=args.get("strides", 1),
        padding=case["equivalent_padding"],
    )
    assert layout.kernel_shape(geo, data_format, implementation) == data["kernel"].shape
    weight = layout.kernel_from_keras(data["kernel"], geo, data_format, implementation)
    assert torch.equal(weight.reshape(data["kernel_pdf"].shape), data["kernel_pdf"])
    if implementation == 3:
        outputs, inputs = data["kernel_idxs"].T.long()
        assert torch.equal(layout.kernel_to_keras(weight, geo, data_format, 3), data["kernel"])
        dense = layout.kernel_to_keras(weight, geo, data_format, 2)
        dense = dense.reshape(geo.sites * channels, -1)
        assert torch.equal(dense[inputs, outputs], data["kernel"])
        assert dense.count_nonzero() == data["kernel"].count_nonzero()


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("implementation", [1, 2, 3])
def test_gradients_reach_the_weight(implementation, data_format):
    case = CASES[IDS.index("2d_groups")]
    weight = tensors(case).weight.requires_grad_()
    kernel = layout.kernel_to_keras(layout.connected(weight, case.geometry), case.geometry, data_format, implementation)
    kernel.square().sum().backward()
    assert_close(weight.grad, 2 * layout.connected(weight.detach(), case.geometry))


@pytest.mark.parametrize("implementation", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_conversions_do_not_change_numbers_of_any_dtype(implementation, dtype):
    geo = CASES[IDS.index("2d_same")].geometry
    weight = torch.arange(geo.weight_numel).reshape(geo.weight_shape).to(dtype)
    kernel = layout.kernel_to_keras(weight, geo, "channels_first", implementation)
    assert kernel.dtype == dtype
    back = layout.kernel_from_keras(kernel, geo, "channels_first", implementation)
    assert torch.equal(back, weight if implementation == 1 else layout.connected(weight, geo))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_bias_of_channels_first_is_reshaped_without_a_transpose(ndim):
    ours = torch.arange(24.0).reshape(*(2, 3, 2)[: ndim - 1], -1, 2)
    keras = layout.bias_to_keras(ours, "channels_first")
    assert keras.shape == ours.shape
    for *position, f in np.ndindex(*ours.shape):
        place = int(np.ravel_multi_index((f, *position), (ours.shape[-1], *ours.shape[:-1])))
        assert keras.flatten()[place] == ours[(*position, f)]
    assert torch.equal(layout.bias_from_keras(keras, "channels_first"), ours)
    assert torch.equal(layout.bias_to_keras(ours, "channels_last"), ours)
    assert torch.equal(layout.bias_from_keras(ours, "channels_last"), ours)
