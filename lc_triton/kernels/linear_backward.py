"""The input gradient of a layer whose window is one site, and the update of its weight: one pass over the weight."""

import triton
import triton.language as tl

from lc_triton.kernels.update import update_weights


@triton.jit(do_not_specialize=["B", "x_pitch", "g_pitch"])
def linear_backward_kernel(
    p_x,  # (B, P, C), x_pitch positions from sample to sample
    p_g,  # (B, P, F), g_pitch positions from sample to sample
    p_dx,  # (B, P, C)
    p_w,  # (P, C, F), the weight
    p_m,  # (P, C, F), its states
    p_v,  # (P, C, F)
    p_amax,  # None: states in 8 bits are updated by the weight gradient's kernel
    p_correction,  # (P, C, F), of a weight in bfloat16, to its master
    p_added,  # (P, C, F), a gradient that is a part of the sum
    p_scalars,  # (9), or (11) with a penalty
    B,
    x_pitch,
    g_pitch,
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    UPDATE: tl.constexpr,
):
    """dx = g . w^T and dw = x^T . g of one position and BK channels a program, which updates w by dw; BB >= B.

    Each block of the weight is loaded once: dx is a product of the weight as it was.
    """
    C: tl.constexpr = SHAPE.channels
    F: tl.constexpr = SHAPE.filters
    BB: tl.constexpr = TILE.block_b
    BK: tl.constexpr = TILE.block_k
    BN: tl.constexpr = TILE.block_n
    ACC: tl.constexpr = tl.float64 if p_x.dtype.element_ty == tl.float64 else tl.float32

    # Tile. The blocks of channels of one position run side by side: they share its g.
    pid = tl.program_id(0)
    CHUNKS: tl.constexpr = (C + BK - 1) // BK
    c = (pid % CHUNKS).to(tl.int32) * BK + tl.arange(0, BK)
    position = (pid // CHUNKS).to(tl.int64)
    b = tl.arange(0, BB)
    m_c, m_b = c < C, b < B

    # Addresses.
    row = b.to(tl.int64)
    p_g += position * F + (row * g_pitch * F)[:, None]  # [BB, 1]
    p_xb = p_x + position * C + (row * x_pitch * C)[:, None] + c[None, :]  # [BB, BK]
    o_c = position * (C * F) + c[:, None] * F  # [BK, 1]
    b_x = tl.load(p_xb, mask=m_b[:, None] & m_c[None, :], other=0.0)  # [BB, BK]

    # Loop over filters.
    if TILE.dot:
        acc = tl.zeros((BK, BB), ACC)
    else:
        acc = tl.zeros((BB, BK, BN), ACC)  # summed over filters once, after the loop
    for start in tl.range(0, F, BN, num_stages=2):
        f = start + tl.arange(0, BN)
        m_f = f < F
        b_g = tl.load(p_g + f[None, :], mask=m_b[:, None] & m_f[None, :], other=0.0)  # [BB, BN]
        o_w = o_c + f[None, :]
        m_w = m_c[:, None] & m_f[None, :]
        b_own = tl.load(p_w + o_w, mask=m_w, other=0.0)  # [BK, BN]
        b_w = b_own.to(b_g.dtype)
        if TILE.dot:  # channels are the rows of both products, so that few samples fill them
            acc = tl.dot(b_w, tl.trans(b_g), acc, input_precision=TILE.precision, out_dtype=ACC)
            b_dw = tl.dot(tl.trans(b_x), b_g, input_precision=TILE.precision, out_dtype=ACC)  # [BK, BN]
        else:
            acc += b_g[:, None, :].to(ACC) * b_w[None, :, :].to(ACC)
            b_dw = tl.sum(b_x[:, :, None].to(ACC) * b_g[:, None, :].to(ACC), 0)  # [BK, BN]
        update_weights(b_dw, p_w, p_m, p_v, p_amax, p_correction, p_added, p_scalars, o_w, m_w, o_w, m_w, UPDATE, b_own)

    # Epilogue.
    if TILE.dot:
        b_dx = tl.trans(acc)
    else:
        b_dx = tl.sum(acc, 2)
    o_dx = (row * (SHAPE.positions * C))[:, None] + position * C + c[None, :]
    tl.store(p_dx + o_dx, b_dx.to(p_dx.dtype.element_ty), mask=m_b[:, None] & m_c[None, :])  # [BB, BK]
