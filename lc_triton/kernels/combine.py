"""The second launch of a split loop: add the sums of its parts in order, then bias and activation."""

import triton
import triton.language as tl

from lc_triton.kernels.common import bias_and_activation, unbounded


@triton.jit(do_not_specialize=["R"])  # of 1 it would make a Python integer, which has no .to()
def combine_kernel(
    p_parts,  # (SPLIT, R, N)
    p_bias,  # (N // F, F) or (F)
    p_y,  # (R, N)
    p_z,  # (R, N)
    R,
    N: tl.constexpr,
    F: tl.constexpr,
    SPLIT: tl.constexpr,
    BN: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """y = act(parts[0] + parts[1] + ... + bias), and z if asked for: BN numbers of one row a program."""
    STORE_Z: tl.constexpr = EPILOGUE.store_z
    BLOCKS: tl.constexpr = (N + BN - 1) // BN
    # Tile: BN columns of one row.
    pid = tl.program_id(0)
    n = (pid % BLOCKS).to(tl.int64) * BN + tl.arange(0, BN)
    m_n = n < N

    # Addresses.
    o_y = (pid // BLOCKS).to(tl.int64) * N + n

    # Loop over the parts.
    b_z = tl.load(p_parts + o_y, mask=m_n, other=0.0)  # [BN]
    for s in tl.static_range(1, SPLIT):
        b_z += tl.load(p_parts + s * R.to(tl.int64) * N + o_y, mask=m_n, other=0.0)  # [BN]

    # Epilogue.
    b_z, b_y = bias_and_activation(b_z[None, :], p_bias, unbounded(n) // F, unbounded(n) % F, m_n, F, EPILOGUE)
    tl.store(p_y + o_y[None, :], b_y.to(p_y.dtype.element_ty), mask=m_n[None, :])  # [1, BN]
    if STORE_Z:
        tl.store(p_z + o_y[None, :], b_z.to(p_z.dtype.element_ty), mask=m_n[None, :])  # [1, BN]
