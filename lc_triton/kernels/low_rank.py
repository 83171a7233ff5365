"""The forward of a layer whose positions mix a few filters: a position's weights are made where they are multiplied.

A program owns BP positions, BB samples and BN filters of one group. In each step it loads BK entries of all R sets of
filters of the basis, mixes them for one position after the other, in the accumulator's dtype, and multiplies. The basis
comes from L2 once for all positions of a program, and their weights are never in memory.
"""
# ruff: noqa: RUF005  (Triton's language has no starred items of a tuple)

import triton
import triton.language as tl

from lc_triton.kernels.blocks import block_of, multiply, place_of, window_sites
from lc_triton.kernels.common import bias_and_activation


@triton.jit(do_not_specialize=["B"])
def low_rank_forward_kernel(
    p_x,  # (B, I0, I1, IH, IW, C), with IW and C dense
    p_w,  # (R, T, C // G, F), the basis: R sets of filters
    p_mixing,  # (P, R)
    p_bias,  # (P, F), (F) or None: EPILOGUE.bias
    p_y,  # (B, P, F)
    p_z,  # (B, P, F), or None
    B,
    x_pitch,  # the strides of x along B, I0, I1 and IH, in sites
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """y = act(z), and z if asked for: z = x . w[p] + bias, with w[p] = sum over r of mixing[p, r] * basis[r].

    A program computes BP positions, BB samples and BN filters of one group; k counts the entries of a window.
    Grid: blocks of samples, blocks of filters, groups, blocks of positions.
    """
    C: tl.constexpr = SHAPE.group_channels
    F: tl.constexpr = SHAPE.filters
    FG: tl.constexpr = SHAPE.group_filters
    G: tl.constexpr = SHAPE.groups
    KT: tl.constexpr = SHAPE.kernel[0] * SHAPE.kernel[1] * SHAPE.kernel[2] * SHAPE.kernel[3] * C
    P: tl.constexpr = SHAPE.outputs[0] * SHAPE.outputs[1] * SHAPE.outputs[2] * SHAPE.outputs[3]
    BB: tl.constexpr = TILE.block_b
    BK: tl.constexpr = TILE.block_k
    BN: tl.constexpr = TILE.block_n
    BP: tl.constexpr = TILE.positions
    R: tl.constexpr = TILE.rank
    ACC: tl.constexpr = tl.float64 if p_x.dtype.element_ty == tl.float64 else tl.float32

    # Tile: samples b, filters f, positions from p0 on.
    b, m_b, inner, pid = block_of(B, BB, FG, BN)
    group = (pid % G).to(tl.int32)
    f, m_n = group * FG + inner + tl.arange(0, BN), inner + tl.arange(0, BN) < FG
    p0 = (pid // G).to(tl.int64) * BP if SHAPE.wide else (pid // G).to(tl.int32) * BP

    # Addresses: the samples [BB] and the filters [BN]; and the coefficients of each position, one number each.
    p_x += b.to(tl.int64) * x_pitch[0] * SHAPE.channels
    p_w += f
    mixing, acc = (), ()
    for j in tl.static_range(BP):
        p_row = p_mixing + (p0 + j).to(tl.int64) * R
        row = ()
        for r in tl.static_range(R):
            row = row + (tl.load(p_row + r, mask=p0 + j < P, other=0.0).to(ACC),)
        mixing = mixing + (row,)
        acc = acc + (tl.zeros((BB, BN), ACC),)

    # Loop: the entries of a window.
    for start in range(0, KT, BK):
        k = start + tl.arange(0, BK)
        m_w = (k < KT)[:, None] & m_n[None, :]
        basis = ()
        for r in tl.static_range(R):
            basis = basis + (tl.load(p_w[None, :] + r * (KT * F) + k[:, None] * F, mask=m_w, other=0.0),)  # [BK, BN]
        sums = ()
        for j in tl.static_range(BP):
            _, o0, o1, oh, ow = place_of(p0 + j, SHAPE.outputs[2], SHAPE.outputs[3], SHAPE.outputs[1], SHAPE)
            o_x, m_k = window_sites(k, group, o0, o1, oh, ow, x_pitch, SHAPE)  # [BK]
            m_x = m_b[:, None] & (m_k & (p0 + j < P))[None, :]
            b_x = tl.load(p_x[:, None] + o_x[None, :], mask=m_x, other=0.0)  # [BB, BK]
            b_w = basis[0].to(ACC) * mixing[j][0]
            for r in tl.static_range(1, R):
                b_w += basis[r].to(ACC) * mixing[j][r]  # [BK, BN]
            sums = sums + (multiply(acc[j], b_x, b_w.to(b_x.dtype), TILE),)
        acc = sums

    # Epilogue: bias and activation, then y and z.
    for j in tl.static_range(BP):
        p = p0 + j
        b_z, b_y = bias_and_activation(acc[j], p_bias, p, f, m_n & (p < P), F, EPILOGUE)
        o_y = b.to(tl.int64)[:, None] * SHAPE.out_numel + p.to(tl.int64) * F + f[None, :]
        m_y = m_b[:, None] & (m_n & (p < P))[None, :]
        tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_y)  # [BB, BN]
        if EPILOGUE.store_z:
            tl.store(p_z + o_y, b_z.to(p_z.dtype.element_ty), mask=m_y)  # [BB, BN]
