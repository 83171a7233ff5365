"""The weight gradient of filters that positions share: the positions of a region join the batch.

A program owns a block of filters of one region. It sums over rows, which are pairs of a sample and a position of the
region: all of them, or of a split loop one part of them.

    dW (BK x BN)  =  X^T (BK x rows)  @  dZ (rows x BN)       rows = B * positions of the largest region

Nothing of the size of unshared filters is written, and nothing is added by atomics.
"""

import triton
import triton.language as tl

from lc_triton.kernels.common import decode_k, divide, unbounded


@triton.jit
def position_along(r, i, BLOCK: tl.constexpr, COUNT: tl.constexpr, SIZE: tl.constexpr):
    """The i-th position of region r along a dimension, where position o belongs to region o // BLOCK % COUNT.

    SIZE is the most positions of a region. In a smaller region, the last ones lie past the last position.
    """
    if COUNT == 1:
        o = i
    elif BLOCK == 1:
        o = i * COUNT + r
    elif BLOCK == SIZE:
        o = r * BLOCK + i
    else:
        turn, place = divide(i, BLOCK, SIZE)
        o = (turn * COUNT + r) * BLOCK + place
    return o


@triton.jit(do_not_specialize=["B"])
def shared_weight_grad_kernel(
    p_x,  # (B, I0, I1, IH, IW, C), with IW and C dense
    p_g,  # (B, O0, O1, OH, OW, F), with OW and F dense: the gradient of z
    p_dw,  # (R, T, C // G, F), R regions; of split rows with SPLIT in front, the sums of the parts
    B,
    x_pitch,  # the strides of x along B, I0, I1 and IH, in sites
    g_pitch,  # the strides of g along B, O0, O1 and OH, in positions
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """dw[r, t, c, f] = sum over b and the positions p of region r of x[b, site(p, t), c] * g[b, p, f].

    A program computes BK indices of a window and BN filters of one group and region, for all rows or one part of them.
    Grid: blocks of k, blocks of filters, groups, regions, parts.
    """
    C: tl.constexpr = SHAPE.group_channels
    F: tl.constexpr = SHAPE.filters
    FG: tl.constexpr = SHAPE.group_filters
    G: tl.constexpr = SHAPE.groups
    K1: tl.constexpr = SHAPE.kernel[1]
    N1: tl.constexpr = SHAPE.region_counts[1]
    NH: tl.constexpr = SHAPE.region_counts[2]
    NW: tl.constexpr = SHAPE.region_counts[3]
    M0: tl.constexpr = SHAPE.region_sizes[0]
    M1: tl.constexpr = SHAPE.region_sizes[1]
    MH: tl.constexpr = SHAPE.region_sizes[2]
    MW: tl.constexpr = SHAPE.region_sizes[3]
    M: tl.constexpr = M0 * M1 * MH * MW
    REGIONS: tl.constexpr = SHAPE.regions
    BB: tl.constexpr = TILE.block_b
    BK: tl.constexpr = TILE.block_k
    BN: tl.constexpr = TILE.block_n
    KB: tl.constexpr = TILE.k_blocks
    KT: tl.constexpr = TILE.k_total
    SPLIT: tl.constexpr = TILE.split
    SWAP: tl.constexpr = TILE.swap
    PRECISION: tl.constexpr = TILE.precision
    ACC: tl.constexpr = tl.float64 if p_x.dtype.element_ty == tl.float64 else tl.float32

    # Tile: indices k, filters f, rows first to last - 1. The blocks of k of the same filters run side by side: they
    # share g.
    pid = tl.program_id(0)
    chunk = pid % KB
    pid = pid // KB
    BLOCKS: tl.constexpr = (FG + BN - 1) // BN
    inner = (pid % BLOCKS) * BN + tl.arange(0, BN)
    pid = pid // BLOCKS
    group = pid % G
    pid = pid // G
    region = pid % REGIONS
    f, m_n = group * FG + inner, inner < FG
    rows = B * M
    if SHAPE.wide:  # there may be 2^31 rows
        rows = B.to(tl.int64) * M
    first, last = rows * 0, rows
    if SPLIT > 1:
        part = pid // REGIONS
        steps = tl.cdiv(tl.cdiv(rows, BB), SPLIT)
        first = part * steps * BB
        last = tl.minimum(first + steps * BB, rows)
        p_dw += part.to(tl.int64) * SHAPE.weight_numel

    # Addresses: the sites and channels of a window, from its first site [BK], and the region along each dimension.
    k = chunk * BK + tl.arange(0, BK)
    if SHAPE.wide:  # rows of sites may lie 2^31 numbers apart
        k = k.to(tl.int64)
    t0, t1, kh, kw, c = decode_k(k, SHAPE.kernel[0], K1, SHAPE.kernel[2], SHAPE.kernel[3], C)
    d0, d1 = t0 * SHAPE.dilation[0], t1 * SHAPE.dilation[1]
    dh, dw = kh * SHAPE.dilation[2], kw * SHAPE.dilation[3]
    o_k = (d0 * x_pitch[1] + d1 * x_pitch[2] + dh * x_pitch[3] + dw) * SHAPE.channels + group * C + c  # [BK]
    m_k = k < KT
    r0, r1 = region // (N1 * NH * NW), region // (NH * NW) % N1
    rh, rw = region // NW % NH, region % NW

    # Loop: rows. The positions of a sample come one after another.
    acc = tl.zeros((BN, BK) if SWAP else (BK, BN), ACC)
    for start in range(first, last, BB):
        j = start + tl.arange(0, BB)
        b = unbounded(j) // M
        q, iw = divide(j - b * M, MW, M)
        q, ih = divide(q, MH, M0 * M1 * MH)
        i0, i1 = divide(q, M1, M0 * M1)
        o0 = position_along(r0, i0, SHAPE.region_blocks[0], SHAPE.region_counts[0], M0)
        o1 = position_along(r1, i1, SHAPE.region_blocks[1], N1, M1)
        oh = position_along(rh, ih, SHAPE.region_blocks[2], NH, MH)
        ow = position_along(rw, iw, SHAPE.region_blocks[3], NW, MW)
        m_j = (j < last) & (oh < SHAPE.outputs[2]) & (ow < SHAPE.outputs[3])
        if SHAPE.lead:
            m_j = m_j & (o0 < SHAPE.outputs[0]) & (o1 < SHAPE.outputs[1])
        s0, s1 = o0 * SHAPE.stride[0] - SHAPE.pad[0], o1 * SHAPE.stride[1] - SHAPE.pad[1]
        sh, sw = oh * SHAPE.stride[2] - SHAPE.pad[2], ow * SHAPE.stride[3] - SHAPE.pad[3]
        o_x = b.to(tl.int64) * x_pitch[0] + s0 * x_pitch[1] + s1 * x_pitch[2] + sh * x_pitch[3] + sw  # [BB]
        o_g = b.to(tl.int64) * g_pitch[0] + o0 * g_pitch[1] + o1 * g_pitch[2] + oh * g_pitch[3] + ow  # [BB]
        m_x = m_j[:, None] & m_k[None, :]
        if SHAPE.padded:
            jh, jw = sh[:, None] + dh[None, :], sw[:, None] + dw[None, :]
            m_x = m_x & (jh >= 0) & (jh < SHAPE.inputs[2]) & (jw >= 0) & (jw < SHAPE.inputs[3])
            if SHAPE.lead:
                j0, j1 = s0[:, None] + d0[None, :], s1[:, None] + d1[None, :]
                m_x = m_x & (j0 >= 0) & (j0 < SHAPE.inputs[0]) & (j1 >= 0) & (j1 < SHAPE.inputs[1])
        b_x = tl.load((p_x + o_x * SHAPE.channels)[:, None] + o_k[None, :], mask=m_x, other=0.0)  # [BB, BK]
        b_g = tl.load((p_g + o_g * F)[:, None] + f[None, :], mask=m_j[:, None] & m_n[None, :], other=0.0)  # [BB, BN]
        if SWAP:
            acc = tl.dot(tl.trans(b_g), b_x, acc, input_precision=PRECISION, out_dtype=ACC)
        else:
            acc = tl.dot(tl.trans(b_x), b_g, acc, input_precision=PRECISION, out_dtype=ACC)

    # Epilogue: dw, or the part's sum.
    if SWAP:
        acc = tl.trans(acc)  # [BK, BN]
    p_dw += region.to(tl.int64) * SHAPE.position_weights
    m_dw = m_k[:, None] & m_n[None, :]
    tl.store(p_dw + k[:, None] * F + f[None, :], acc.to(p_dw.dtype.element_ty), mask=m_dw)  # [BK, BN]
