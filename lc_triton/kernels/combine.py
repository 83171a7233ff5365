"""The second launch of a split loop: it adds the sums of the parts in order, then bias and activation."""

import triton
import triton.language as tl

from lc_triton.kernels.common import bias_and_activation, unbounded


@triton.jit(do_not_specialize=["R"])  # Triton would make a constexpr of R = 1, which has no .to()
def combine_kernel(
    p_parts,  # (SPLIT, R, N)
    p_bias,  # (N // F, F), (F) or None: EPILOGUE.bias
    p_y,  # (R, N)
    p_z,  # (R, N), or None
    R,  # samples; 1 for a weight gradient
    N: tl.constexpr,  # numbers of a row: places * F, or of a weight gradient all
    F: tl.constexpr,  # filters or channels of a place
    SPLIT: tl.constexpr,
    BN: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """y = act(z), and z if asked for: z = parts[0] + parts[1] + ... + bias.

    A program computes BN numbers of one row. Grid: blocks of numbers, rows.
    """
    STORE_Z: tl.constexpr = EPILOGUE.store_z
    BLOCKS: tl.constexpr = (N + BN - 1) // BN

    # Tile: numbers n of a row.
    pid = tl.program_id(0)
    n = (pid % BLOCKS).to(tl.int64) * BN + tl.arange(0, BN)
    m_n = n < N

    # Addresses: the numbers in a part, and in y and z [BN].
    o_y = (pid // BLOCKS).to(tl.int64) * N + n

    # Loop: the parts, in order, so that the sum is the same from run to run.
    b_z = tl.load(p_parts + o_y, mask=m_n, other=0.0)  # [BN]
    for s in tl.static_range(1, SPLIT):
        b_z += tl.load(p_parts + s * R.to(tl.int64) * N + o_y, mask=m_n, other=0.0)  # [BN]

    # Epilogue: bias and activation, then y and z.
    b_z, b_y = bias_and_activation(b_z[None, :], p_bias, unbounded(n) // F, unbounded(n) % F, m_n, F, EPILOGUE)
    tl.store(p_y + o_y[None, :], b_y.to(p_y.dtype.element_ty), mask=m_n[None, :])  # [1, BN]
    if STORE_Z:
        tl.store(p_z + o_y[None, :], b_z.to(p_z.dtype.element_ty), mask=m_n[None, :])  # [1, BN]
