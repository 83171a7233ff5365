"""Padding and size arithmetic against brute force over the definition."""

import itertools
import math

import pytest

from lc_triton.core.geometry import Geometry
from lc_triton.errors import KernelTooLargeError

SIZES = [
    (n, k, s, d) for n, k, s, d in itertools.product((1, 2, 5, 6, 9), (1, 2, 3, 4), (1, 2, 3, 5), (1, 2)) if k <= n + 3
]


def make(n, k, s, d, padding):
    return Geometry.make((n,), 1, 1, k, stride=s, padding=padding, dilation=d)


@pytest.mark.parametrize(("n", "k", "s", "d"), SIZES)
def test_same_is_tensorflows(n, k, s, d):
    geo = make(n, k, s, d, "same")
    assert geo.out_spatial == (-(-n // s),)
    # TensorFlow: the least total padding that gives ceil(n / s) positions, the odd one at the high end.
    total = next(
        t for t in itertools.count() if n + t >= (k - 1) * d + 1 and (n + t - (k - 1) * d - 1) // s + 1 >= -(-n // s)
    )
    assert geo.padding == ((total // 2, total - total // 2),)


@pytest.mark.parametrize(("n", "k", "s"), sorted({(n, k, s) for n, k, s, _ in SIZES}))
def test_keras_same_starts_half_a_kernel_low(n, k, s):
    geo = make(n, k, s, 1, "keras_same")
    assert geo.out_spatial == (-(-n // s),)
    # Windows cover o * s - k // 2 and the k - 1 sites after it; the high end is padded as far as the last one reads.
    assert geo.padding == ((k // 2, max(0, (-(-n // s) - 1) * s - k // 2 + k - n)),)


@pytest.mark.parametrize(("n", "k", "s", "d"), SIZES)
def test_causal_sees_no_later_site(n, k, s, d):
    geo = make(n, k, s, d, "causal")
    last_site = (k - 1) * d - geo.padding[0][0]  # of position 0
    assert last_site == 0
    assert geo.out_spatial == (-(-n // s),)


def test_counts_of_the_keras_documents_example():
    geo = Geometry.make((32, 32), 3, 64, (3, 3))
    assert geo.weight_numel == (30 * 30) * (3 * 3 * 3 * 64)
    assert geo.weight_shape == (30, 30, 3, 3, 3, 64)
    assert geo.bias_shape == (30, 30, 64)
    assert (geo.positions, geo.taps, geo.window, geo.sites) == (900, 9, 27, 1024)
    assert geo.flops(8) == 2 * 8 * 900 * 27 * 64


def test_four_dimensions_change_nothing_but_the_lead():
    geo = Geometry.make((5,), 4, 6, 3, stride=2, padding="same", groups=2)
    four = geo.as_4d()
    assert four.out_spatial == (1, 1, 1, *geo.out_spatial)
    assert (four.window, four.weight_numel) == (geo.window, geo.weight_numel)


@pytest.mark.parametrize("padding", ["same", "keras_same", "causal", 0, 2, [(3, 0)]])
def test_there_are_as_many_positions_as_windows_fit(padding):
    added = math.inf if isinstance(padding, str) else 3 if isinstance(padding, list) else 2 * padding
    for n, k, s, d in SIZES:
        if (k - 1) * d + 1 > n + added:
            with pytest.raises(KernelTooLargeError):
                make(n, k, s, d, padding)
            continue
        geo = make(n, k, s, d, padding)
        ((low, high),) = geo.padding
        starts = [start for start in range(-low, n + high, s) if start + (k - 1) * d < n + high]
        assert geo.out_spatial == (len(starts),)
        assert Geometry.from_weight(geo.weight_shape, (n,), 1, stride=s, padding=padding, dilation=d) == geo
        assert geo.padded().out_spatial == geo.out_spatial
        assert geo.padded().in_spatial == (low + n + high,)
