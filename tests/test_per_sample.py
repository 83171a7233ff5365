"""Filters of each sample, by vmap, and the layers of few channels in each group that vmap makes of them."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap

import lc_triton
from lc_triton._cpu import blocks, elementwise
from tests.cases import (
    Case,
    assert_as_accurate,
    assert_close,
    assert_results_close,
    expected,
    run,
    tensors,
    torch_results,
)

FEW = [
    Case("1d", (20,), 1, 1, 3, batch=3),
    Case("1d_dilated_stride", (40,), 1, 1, 3, stride=2, dilation=3, padding=2, batch=2),
    Case("2d", (6, 11), 1, 1, 3, padding=1, batch=2),
    Case("2d_even", (5, 12), 1, 1, (2, 4), padding=[(1, 0), (2, 1)], batch=1),
    Case("2d_stride", (7, 18), 1, 1, 2, stride=(1, 2)),
    Case("3d", (3, 4, 9), 1, 1, (2, 1, 2), padding=(1, 0, 0)),
    Case("two_groups", (5, 9), 2, 2, 3, groups=2, padding=1),
    Case("four_groups_multiplier", (4, 8), 2, 6, 3, groups=2, padding=1),
    Case("many_groups", (4, 9), 9, 9, 3, groups=9),
]


@pytest.fixture(params=itertools.product([None, 400], [0, 1 << 30]), ids=str)
def by_taps(request, monkeypatch):
    """Blocks of default and of small size, whose taps are multiplied one after the other or all at once."""
    block_bytes, at_once = request.param
    monkeypatch.setattr(elementwise, "AT_ONCE", at_once)
    if block_bytes:
        monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_values_and_gradients(case, by_taps):
    t = tensors(case)
    assert_results_close(run(case, t), expected(case, t))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", FEW[:3], ids=lambda case: case.name)
def test_dtypes(case, dtype, by_taps):
    t = tensors(case, dtype)
    found, exact, of_torch = run(case, t), expected(case, t), torch_results(case, t)
    for name in exact:
        assert_as_accurate(found[name], exact[name], of_torch[name], 3, name)


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_a_sum_has_the_same_bits_for_blocks_of_any_size(case, monkeypatch):
    t, sums = tensors(case, torch.float32), []
    for block_bytes in (blocks.BLOCK_BYTES, 400, 1):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
        sums.append(run(case, t)["y"])
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


def patches(x, k):
    """`(B, C, k * k, H, W)`, as F.unfold makes them."""
    return F.unfold(x, k, padding=k // 2).unflatten(1, (x.shape[1], k * k)).unflatten(-1, x.shape[-2:])


def test_kernel_prediction(by_taps):
    """Each pixel of each sample has one kernel for all channels, which become the batch of a layer of one channel."""
    x = torch.randn(2, 3, 9, 10, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 9, 10, 3, 3, dtype=torch.float64, requires_grad=True)

    def sample(x, w):
        return lc_triton.local_conv(x[:, None], w[..., None, None], padding=1)[:, 0]

    plain = lc_triton.local_conv(x.transpose(0, 1)[:, None], w[:, :, :, None, :, :, None, None], padding=(0, 1, 1))
    y, want = vmap(sample)(x, w), (patches(x, 3) * w.flatten(3).movedim(-1, 1)[:, None]).sum(2)
    assert_close(y, want.detach())
    assert_close(plain[:, 0].transpose(0, 1), want.detach())
    g = torch.randn_like(y)
    for got, exact in zip(torch.autograd.grad(y, (x, w), g), torch.autograd.grad(want, (x, w), g), strict=True):
        assert_close(got, exact)


def test_involution(by_taps):
    """Each pixel has one kernel for each group, whose channels become the batch of a depthwise layer."""
    groups, channels = 2, 6
    x = torch.randn(2, channels, 5, 9, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 5, 9, 3, 3, groups, dtype=torch.float64, requires_grad=True)

    def sample(x, w):
        own = x.unflatten(0, (groups, -1)).transpose(0, 1)
        return lc_triton.local_conv(own, w.unsqueeze(-2), padding=1, groups=groups).transpose(0, 1).flatten(0, 1)

    own = patches(x, 3).unflatten(1, (groups, -1))  # (B, G, C // G, k * k, H, W)
    one = x.unflatten(1, (groups, -1)).permute(2, 1, 0, 3, 4)
    plain = lc_triton.local_conv(one, w[:, :, :, None, :, :, None], padding=(0, 1, 1), groups=groups)
    y, want = vmap(sample)(x, w), (own * w.flatten(3, 4).permute(0, 4, 3, 1, 2).unsqueeze(2)).sum(3).flatten(1, 2)
    assert_close(y, want.detach())
    assert_close(plain.permute(2, 1, 0, 3, 4).flatten(1, 2), want.detach())
    g = torch.randn_like(y)
    for got, exact in zip(torch.autograd.grad(y, (x, w), g), torch.autograd.grad(want, (x, w), g), strict=True):
        assert_close(got, exact)
