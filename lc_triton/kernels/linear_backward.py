"""The input gradient of a layer whose window is one site, and the update of its weight, which is read once."""

import triton
import triton.language as tl

from lc_triton.kernels.update import update_weights


@triton.jit(do_not_specialize=["B", "x_pitch", "g_pitch"])
def linear_backward_kernel(
    p_x,  # (B, P, C), with P and C dense
    p_g,  # (B, P, F), with P and F dense
    p_dx,  # (B, P, C)
    p_w,  # (P, C, F), the weight
    # The pointers from here to p_scalars are those of `update_weights`; None where UPDATE needs none.
    p_m,  # (P, C, F), the first state
    p_v,  # (P, C, F), the second state
    p_amax,  # None: states in 8 bits are updated by the weight gradient's kernel
    p_correction,  # (P, C, F), of a weight in bfloat16, to its master
    p_added,  # (P, C, F), a gradient that is a part of the sum
    p_scalars,  # the rule's factors, then the penalty's
    B,  # at most BB
    x_pitch,  # the stride of x along B, in positions
    g_pitch,  # the stride of g along B, in positions
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    UPDATE: tl.constexpr,
):
    """dx[b, p, c] = sum over f of g[b, p, f] * w[p, c, f], and the update of w by dw = sum over b of x * g.

    A program computes BK channels of one position, for all samples and filters. It loads each block of the weight once,
    and uses it for dx before it updates it. Grid: blocks of channels, positions.
    """
    C: tl.constexpr = SHAPE.channels
    F: tl.constexpr = SHAPE.filters
    BB: tl.constexpr = TILE.block_b
    BK: tl.constexpr = TILE.block_k
    BN: tl.constexpr = TILE.block_n
    ACC: tl.constexpr = tl.float64 if p_x.dtype.element_ty == tl.float64 else tl.float32

    # Tile: channels c, a position, all samples b. The blocks of channels of one position run side by side: they share
    # its g.
    pid = tl.program_id(0)
    CHUNKS: tl.constexpr = (C + BK - 1) // BK
    c = (pid % CHUNKS).to(tl.int32) * BK + tl.arange(0, BK)
    position = (pid // CHUNKS).to(tl.int64)
    b = tl.arange(0, BB)
    m_c, m_b = c < C, b < B

    # Addresses: the samples of g, the weights of each channel; x, which all filters use, is loaded here.
    row = b.to(tl.int64)
    p_g += position * F + (row * g_pitch * F)[:, None]  # [BB, 1]
    p_xb = p_x + position * C + (row * x_pitch * C)[:, None] + c[None, :]  # [BB, BK]
    o_c = position * (C * F) + c[:, None] * F  # [BK, 1]
    b_x = tl.load(p_xb, mask=m_b[:, None] & m_c[None, :], other=0.0)  # [BB, BK]

    # Loop: filters. Each step updates its own weights.
    if TILE.dot:
        acc = tl.zeros((BK, BB), ACC)
    else:
        acc = tl.zeros((BB, BK, BN), ACC)  # summed over filters once, after the loop
    for start in tl.range(0, F, BN, num_stages=2):
        f = start + tl.arange(0, BN)
        m_f = f < F
        b_g = tl.load(p_g + f[None, :], mask=m_b[:, None] & m_f[None, :], other=0.0)  # [BB, BN]
        o_w = o_c + f[None, :]  # [BK, BN]
        m_w = m_c[:, None] & m_f[None, :]
        b_own = tl.load(p_w + o_w, mask=m_w, other=0.0)  # [BK, BN]
        b_w = b_own.to(b_g.dtype)
        if TILE.dot:  # channels are the rows of both products: samples may be fewer than an instruction's rows
            acc = tl.dot(b_w, tl.trans(b_g), acc, input_precision=TILE.precision, out_dtype=ACC)
            b_dw = tl.dot(tl.trans(b_x), b_g, input_precision=TILE.precision, out_dtype=ACC)  # [BK, BN]
        else:
            acc += b_g[:, None, :].to(ACC) * b_w[None, :, :].to(ACC)
            b_dw = tl.sum(b_x[:, :, None].to(ACC) * b_g[:, None, :].to(ACC), 0)  # [BK, BN]
        update_weights(b_dw, p_w, p_m, p_v, p_amax, p_correction, p_added, p_scalars, o_w, m_w, o_w, m_w, UPDATE, b_own)

    # Epilogue: dx.
    if TILE.dot:
        b_dx = tl.trans(acc)
    else:
        b_dx = tl.sum(acc, 2)  # [BB, BK]
    o_dx = (row * (SHAPE.positions * C))[:, None] + position * C + c[None, :]
    tl.store(p_dx + o_dx, b_dx.to(p_dx.dtype.element_ty), mask=m_b[:, None] & m_c[None, :])  # [BB, BK]
