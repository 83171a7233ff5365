"""A copy of an input with more channels, of zeros, so that whole asynchronous copies make up a site."""

import triton
import triton.language as tl

from lc_triton.kernels.common import unbounded


@triton.jit
def pad_channels_kernel(
    p_x,  # (B, I0, I1, IH, IW, C), of any strides
    p_padded,  # (B, I0, I1, IH, IW, CX), contiguous
    strides,  # all six of x, in numbers
    SIZES: tl.constexpr,  # I0, I1, IH, IW
    C: tl.constexpr,
    CX: tl.constexpr,
    BN: tl.constexpr,
):
    """padded[..., :C] = x, padded[..., C:] = 0.

    A program copies BN numbers of one sample. Grid: blocks of numbers, samples.
    """
    N: tl.constexpr = SIZES[0] * SIZES[1] * SIZES[2] * SIZES[3] * CX
    BLOCKS: tl.constexpr = (N + BN - 1) // BN

    # Tile: numbers n of sample b.
    pid = tl.program_id(0)
    b = (pid // BLOCKS).to(tl.int64)
    n = (pid % BLOCKS).to(tl.int64) * BN + tl.arange(0, BN)

    # Addresses: the numbers in x [BN].
    c = n % CX
    site = n // CX
    iw = unbounded(site) % SIZES[3]
    row = unbounded(site) // SIZES[3]
    ih = unbounded(row) % SIZES[2]
    lead = unbounded(row) // SIZES[2]
    o_x = b * strides[0] + (lead // SIZES[1]) * strides[1] + (lead % SIZES[1]) * strides[2]
    o_x += ih * strides[3] + iw * strides[4] + c * strides[5]

    # Epilogue: the copy.
    b_x = tl.load(p_x + o_x, mask=(n < N) & (c < C), other=0.0)  # [BN]
    tl.store(p_padded + b * N + n, b_x, mask=n < N)  # [BN]
