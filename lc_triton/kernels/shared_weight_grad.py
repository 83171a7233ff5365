"""The weight gradient of filters that positions share: the positions of a region join the batch.

A program owns the filters of one region, or a block of them. Its rows are pairs of a sample and a position of the
region, all of which it sums itself:

    dW (BK x BN)  =  X^T (BK x rows)  @  dZ (rows x BN)       rows = B * positions of a region

Nothing of the size of unshared filters is written, and nothing is added by atomics.
"""

import triton
import triton.language as tl

from lc_triton.kernels.common import decode_k, divide, unbounded


@triton.jit
def position_along(r, i, BLOCK: tl.constexpr, COUNT: tl.constexpr, SIZE: tl.constexpr):
    """The position i < SIZE of region r along a dimension: a run of BLOCK positions, which comes again after COUNT."""
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
    p_x,  # (B, I0, I1, IH, IW, C) with rows of sites dense; x_pitch holds the other strides, in sites
    p_g,  # (B, O0, O1, OH, OW, F) likewise, in positions
    p_dw,  # (R, T, C // G, F), R regions; of split rows with SPLIT in front, the sums of its parts
    B,
    x_pitch,
    g_pitch,
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """dw = x^T . dz for one region, FT filters of a group and one block of k a program."""
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

    # Tile. The blocks of k of one tile run side by side: they share its g.
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
    if SHAPE.wide:  # 2^31 pairs of a sample and a position
        rows = B.to(tl.int64) * M
    first, last = rows * 0, rows
    if SPLIT > 1:
        part = pid // REGIONS
        steps = tl.cdiv(tl.cdiv(rows, BB), SPLIT)
        first = part * steps * BB
        last = tl.minimum(first + steps * BB, rows)
        p_dw += part.to(tl.int64) * SHAPE.weight_numel

    # Addresses of a window's sites, from its first one, and of the region's first position.
    k = chunk * BK + tl.arange(0, BK)
    t0, t1, kh, kw, c = decode_k(k, SHAPE.kernel[0], K1, SHAPE.kernel[2], SHAPE.kernel[3], C)
    d0, d1 = t0 * SHAPE.dilation[0], t1 * SHAPE.dilation[1]
    dh, dw = kh * SHAPE.dilation[2], kw * SHAPE.dilation[3]
    o_k = (d0 * x_pitch[1] + d1 * x_pitch[2] + dh * x_pitch[3] + dw) * SHAPE.channels + group * C + c  # [BK]
    m_k = k < KT
    r0, r1 = region // (N1 * NH * NW), region // (NH * NW) % N1
    rh, rw = region // NW % NH, region % NW

    # Loop over pairs of a sample and a position, the positions of a sample next to each other.
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

    # Epilogue.
    if SWAP:
        acc = tl.trans(acc)
    p_dw += region.to(tl.int64) * SHAPE.position_weights
    m_dw = m_k[:, None] & m_n[None, :]
    tl.store(p_dw + k[:, None] * F + f[None, :], acc.to(p_dw.dtype.element_ty), mask=m_dw)  # [BK, BN]
