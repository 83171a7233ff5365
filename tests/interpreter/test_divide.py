"""`kernels.common.divide`, a division by a product and a shift, is exact for each value below its bound."""

import pytest
import torch
import triton
import triton.language as tl

from lc_triton.kernels.common import divide


@triton.jit
def divide_kernel(p_q, p_r, D: tl.constexpr, BOUND: tl.constexpr, N: tl.constexpr):
    x = tl.arange(0, N)
    q, r = divide(x, D, BOUND)
    tl.store(p_q + x, q, mask=x < BOUND)
    tl.store(p_r + x, r, mask=x < BOUND)


@pytest.mark.parametrize("bound", [1, 7, 64, 1000, 32_767, 70_001])  # the last bound is too large for a product
@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 9, 17, 64, 255, 1000])
def test_every_value(divisor, bound):
    q, r = (torch.full((bound,), -1, dtype=torch.int32) for _ in range(2))
    divide_kernel[(1,)](q, r, divisor, bound, triton.next_power_of_2(bound))
    x = torch.arange(bound, dtype=torch.int32)
    assert torch.equal(q, x // divisor)
    assert torch.equal(r, x % divisor)
