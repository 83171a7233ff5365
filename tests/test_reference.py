"""The definition itself, against facts it does not share code with."""

import pytest
import torch
import torch.nn.functional as F

from lc_triton.core.geometry import Geometry
from lc_triton.ops import reference
from tests.cases import CASES, IDS, assert_close, expected, tensors, torch_results

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_equals_convolution_where_all_positions_share_filters(case):
    geo, t = case.geometry, tensors(case)
    first = t.weight[(0,) * geo.ndim]  # (*kernel, C // G, F)
    shared = first.expand(*geo.out_spatial, *first.shape)
    y = reference.forward(t.x, shared, None, geo)
    x = F.pad(t.x.movedim(-1, 1), [side for pair in reversed(geo.padding) for side in pair])
    kernel = first.movedim((-1, -2), (0, 1))
    conv = CONV[geo.ndim](x, kernel, stride=geo.stride, dilation=geo.dilation, groups=geo.groups)
    assert_close(y, conv.movedim(1, -1))


@pytest.mark.parametrize("case", [c for c in CASES if len(c.in_spatial) == 2 and c.groups == 1], ids=lambda c: c.name)
def test_equals_unfold_and_einsum(case):
    geo, t = case.geometry, tensors(case)
    x = F.pad(t.x.movedim(-1, 1), [side for pair in reversed(geo.padding) for side in pair])
    patches = F.unfold(x, geo.kernel, dilation=geo.dilation, stride=geo.stride)  # (B, C * T, P)
    patches = patches.view(case.batch, geo.in_channels, geo.taps, -1)
    weight = t.weight.reshape(-1, geo.taps, geo.in_channels, geo.out_channels)
    y = torch.einsum("bctp,ptcf->bpf", patches, weight).view(case.batch, *geo.out_spatial, -1) + t.bias
    assert_close(reference.forward(t.x, t.weight, t.bias, geo), y)


def test_by_hand():
    geo = Geometry.make((3,), 1, 1, 2, padding=[(1, 0)])
    x = torch.tensor([[[1.0], [2.0], [3.0]]])
    weight = torch.tensor([[10.0, 1.0], [20.0, 2.0], [30.0, 3.0]]).view(3, 2, 1, 1)
    y = reference.forward(x, weight, torch.tensor([[0.5], [0.25], [0.125]]), geo)
    assert y.flatten().tolist() == [1 * 1 + 0.5, 20 * 1 + 2 * 2 + 0.25, 30 * 2 + 3 * 3 + 0.125]


def test_a_kernel_as_large_as_the_input_is_a_dense_layer():
    geo = Geometry.make((3, 4), 2, 5, (3, 4))
    x, weight = torch.randn(6, 3, 4, 2).double(), torch.randn(geo.weight_shape).double()
    assert_close(reference.forward(x, weight, None, geo).flatten(1), x.flatten(1) @ weight.flatten(0, -2))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_values_and_gradients_equal_patches_and_a_matrix_product(case):
    t = tensors(case)
    want = torch_results(case, t)
    for name, got in expected(case, t).items():
        assert_close(got, want[name], name=name)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch on the copy it makes for an even kernel
@pytest.mark.parametrize("spatial", [(7,), (5, 6), (4, 3, 5)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_same_is_torchs_own_where_torch_has_it(spatial, kernel):
    geo = Geometry.make(spatial, 2, 3, kernel, padding="same")
    x, one = torch.randn(2, *spatial, 2).double(), torch.randn(*[kernel] * len(spatial), 2, 3).double()
    conv = CONV[geo.ndim](x.movedim(-1, 1), one.movedim((-1, -2), (0, 1)), padding="same").movedim(1, -1)
    assert_close(reference.forward(x, one.expand(geo.weight_shape), None, geo), conv)
