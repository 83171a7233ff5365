"""One block of k of the weight gradient: the sites it reads, the gradients of a block of samples, what is stored.

Without `tl.dot`, and with groups or several positions a tile, each column has a window of its own, of which
`decode_index` takes one index at a time. In all other tiles, `decode_block` takes a block of the input footprint.
"""

import triton
import triton.language as tl

from lc_triton.kernels.common import activation_backward, decode_k, site_is_read, tap
from lc_triton.kernels.update import first_of_blocks, update_weights


@triton.jit
def load_dz(p_g, p_saved, b, o_n, o_s, m, pitch, SHAPE: tl.constexpr, UPSTREAM: tl.constexpr):
    """A block of dz [BB, BN], in g's dtype: g itself, or g times the activation's derivative.

    b [BB] are the samples, m [BB, BN] masks; o_n [BN] are the columns' offsets in a sample of g, and o_s those in a
    sample of the saved tensor. `pitch` is g's stride from sample to sample, in positions.
    """
    b_g = tl.load(p_g + (b.to(tl.int64) * pitch * SHAPE.filters)[:, None] + o_n[None, :], mask=m, other=0.0)  # [BB, BN]
    ACT: tl.constexpr = UPSTREAM.activation  # Triton 3.6 cannot compare a field of a tuple: it takes a name
    CONSTANT: tl.constexpr = UPSTREAM.constant
    if ACT != "linear":
        p_s = p_saved + (b.to(tl.int64) * SHAPE.out_numel)[:, None] + o_s[None, :]
        b_s = tl.load(p_s, mask=m, other=0.0)  # [BB, BN]
        ACC: tl.constexpr = tl.float64 if p_g.dtype.element_ty == tl.float64 else tl.float32
        b_g = activation_backward(b_g.to(ACC), b_s.to(ACC), ACT, CONSTANT).to(b_g.dtype)
    return b_g


@triton.jit
def store_dz(p_dz, b_g, b, o_s, m, SHAPE: tl.constexpr, UPSTREAM: tl.constexpr):
    """Store a block b_g [BB, BN] of dz for the input gradient, if it is asked for."""
    STORE_DZ: tl.constexpr = UPSTREAM.store_dz
    if STORE_DZ:
        tl.store(p_dz + (b.to(tl.int64) * SHAPE.out_numel)[:, None] + o_s[None, :], b_g, mask=m)  # [BB, BN]


@triton.jit
def sum_bias(
    p_g,
    p_saved,
    p_db,
    p_dz,
    first,
    last,
    B,
    o_n,
    o_s,
    m_n,
    g_pitch,
    ACC: tl.constexpr,
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    UPSTREAM: tl.constexpr,
):
    """Store the bias gradient of samples first to last - 1, and their dz, if they are asked for.

    first is a multiple of BB, and last another, or B: the mask b < B is enough. Other arguments are as of `load_dz`.
    """
    BB: tl.constexpr = TILE.block_b
    BN: tl.constexpr = TILE.block_n
    WITH_BIAS: tl.constexpr = UPSTREAM.with_bias
    STORE_DZ: tl.constexpr = UPSTREAM.store_dz
    BY_BLOCK: tl.constexpr = p_g.dtype.element_ty.primitive_bitwidth > 16  # on sm_100, a block of sums would spill
    if WITH_BIAS or STORE_DZ:
        b_db = tl.zeros((BN,) if BY_BLOCK else (BB, BN), ACC)
        for start in range(first, last, BB):
            b = start + tl.arange(0, BB)
            m = (b < B)[:, None] & m_n[None, :]
            b_g = load_dz(p_g, p_saved, b, o_n, o_s, m, g_pitch[0], SHAPE, UPSTREAM)  # [BB, BN]
            store_dz(p_dz, b_g, b, o_s, m, SHAPE, UPSTREAM)  # [BB, BN]
            b_db += tl.sum(b_g.to(ACC), 0) if BY_BLOCK else b_g.to(ACC)
        if WITH_BIAS:
            b_sum = b_db if BY_BLOCK else tl.sum(b_db, 0)  # [BN]
            tl.store(p_db + o_s, b_sum.to(p_db.dtype.element_ty), mask=m_n)  # [BN]


@triton.jit
def decode_block(block, o01, oh0, ow0, x_pitch, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """Decode the indices of a block of k: what each of them reads of x, and what of the weights it stands for.

    o01, oh0 and ow0 are the tile's first position. All results are [BK].

    Returns (k, t, dh, dw, c, o_k, m_k):
        k: the indices.
        t: the tap along the two leading dimensions, as one number.
        dh, dw: rows and columns from the first site of the tile's first window.
        c: the channel, counted in its group.
        o_k, m_k: the offset in a sample of x, of the first group, and whether a window of the tile reads it.
    """
    K0: tl.constexpr = SHAPE.kernel[0]
    K1: tl.constexpr = SHAPE.kernel[1]
    SH: tl.constexpr = SHAPE.stride[2]
    SW: tl.constexpr = SHAPE.stride[3]
    TQ: tl.constexpr = TILE.rows
    TP: tl.constexpr = TILE.cols
    BK: tl.constexpr = TILE.block_k
    k = block * BK + tl.arange(0, BK)
    t0, t1, row, col, c = decode_k(k, K0, K1, TILE.footprint_rows, TILE.footprint_cols, SHAPE.group_channels)
    dh, dw = row * TILE.step_h, col * TILE.step_w
    o_k, m_k = site_of(o01, t0, t1, oh0 * SH + dh, ow0 * SW + dw, x_pitch, SHAPE)
    m_k = m_k & (k < TILE.k_total)
    m_k = m_k & site_is_read(dh, tl.minimum(SHAPE.outputs[2] - oh0, TQ), SHAPE.kernel[2], SHAPE.dilation[2], SH, TQ)
    m_k = m_k & site_is_read(dw, tl.minimum(SHAPE.outputs[3] - ow0, TP), SHAPE.kernel[3], SHAPE.dilation[3], SW, TP)
    return k, t0 * K1 + t1, dh, dw, c, o_k + c, m_k


@triton.jit
def decode_index(k, o01, oh, ow, channel, x_pitch, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """What index k (one number) of each column's window reads: the offset in a sample of x, and whether there is such a
    number, both [BN].

    o01 and oh, ow [BN] are the columns' positions, `channel` [BN] is the first channel of their groups.
    """
    t0, t1, kh, kw, c = decode_k(
        k, SHAPE.kernel[0], SHAPE.kernel[1], SHAPE.kernel[2], SHAPE.kernel[3], SHAPE.group_channels
    )
    ih, iw = oh * SHAPE.stride[2] + kh * SHAPE.dilation[2], ow * SHAPE.stride[3] + kw * SHAPE.dilation[3]
    o_k, m_k = site_of(o01, t0, t1, ih, iw, x_pitch, SHAPE)
    return o_k + channel + c, m_k & (k < TILE.k_total)


@triton.jit
def site_of(o01, t0, t1, ih, iw, x_pitch, SHAPE: tl.constexpr):
    """The offset in a sample of x of the first channel of a site, and whether the site is inside the input.

    The site is that of leading position o01 and taps t0 and t1, and of row ih and column iw of the padded input.
    """
    o0, o1 = o01 // SHAPE.outputs[1], o01 % SHAPE.outputs[1]
    i0 = o0 * SHAPE.stride[0] - SHAPE.pad[0] + t0 * SHAPE.dilation[0]
    i1 = o1 * SHAPE.stride[1] - SHAPE.pad[1] + t1 * SHAPE.dilation[1]
    ih, iw = ih - SHAPE.pad[2], iw - SHAPE.pad[3]
    m = (ih >= 0) & (ih < SHAPE.inputs[2]) & (iw >= 0) & (iw < SHAPE.inputs[3])
    if SHAPE.lead:
        m = m & (i0 >= 0) & (i0 < SHAPE.inputs[0]) & (i1 >= 0) & (i1 < SHAPE.inputs[1])
    return (i0 * x_pitch[1] + i1 * x_pitch[2] + ih * x_pitch[3] + iw) * SHAPE.channels, m


@triton.jit
def band_offsets(k, t, dh, dw, c, jr, jc, m_n, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """The offsets of the weights of indices k [BK] and columns [BN], counted from the first weight of the column's
    position and filter; and which of them are in the band. Both are [BK, BN].

    k, t, dh, dw, c: from `decode_block`.
    jr, jc, m_n: row and column of each column's position in the tile, and whether the column exists.
    """
    KH: tl.constexpr = SHAPE.kernel[2]
    KW: tl.constexpr = SHAPE.kernel[3]
    C: tl.constexpr = SHAPE.group_channels  # of the weight: C // G
    F: tl.constexpr = SHAPE.filters
    kh, m_h = tap(dh[:, None] - (jr * SHAPE.stride[2])[None, :], KH, SHAPE.dilation[2])
    kw, m_w = tap(dw[:, None] - (jc * SHAPE.stride[3])[None, :], KW, SHAPE.dilation[3])
    o_w = ((((t * KH)[:, None] + kh) * KW + kw) * C + c[:, None]) * F
    return o_w, m_h & m_w & (k < TILE.k_total)[:, None] & m_n[None, :]


@triton.jit
def store_block(
    acc,
    p_dw,
    p_m,
    p_v,
    p_amax,
    p_correction,
    p_added,
    p_scalars,
    block,
    k,
    t,
    dh,
    dw,
    c,
    jr,
    jc,
    position,
    box,
    f0,
    f,
    group,
    m_n,
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    UPDATE: tl.constexpr,
):
    """Store the band of the product acc [BK, BN], or with UPDATE update the weight at p_dw by it.

    Taps on the padding are stored too, as zeros: each weight has a gradient, whether x is read for it or not.

    p_m to p_scalars: as of `update_weights`.
    k, t, dh, dw, c: [BK], from `decode_block` of `block`.
    jr, jc, position, f, m_n: [BN], from `tile_offsets`, as are f0 and group.
    box: of a tile of one position, that position; a descriptor needs it as one number.
    """
    FG: tl.constexpr = SHAPE.group_filters
    BK: tl.constexpr = TILE.block_k
    BN: tl.constexpr = TILE.block_n
    DESCRIPTOR: tl.constexpr = TILE.descriptor
    RULE: tl.constexpr = UPDATE.rule
    if DESCRIPTOR:  # k counts the one position's weights in their order; a descriptor stores nothing past their end
        tl.static_assert(RULE == "none", "a descriptor stores, and loads nothing")
        b_dw = acc.to(p_dw.dtype).reshape(1, BK, BN)
        p_dw.store([box.to(tl.int32), block * BK, group * FG + f0], b_dw)  # [1, BK, BN]
    else:
        o_w, m_dw = band_offsets(k, t, dh, dw, c, jr, jc, m_n, SHAPE, TILE)
        if RULE == "none":
            p_dw += position.to(tl.int64) * SHAPE.position_weights + f
            tl.store(p_dw[None, :] + o_w, acc.to(p_dw.dtype.element_ty), mask=m_dw)  # [BK, BN]
        else:
            o_n = position.to(tl.int64) * SHAPE.position_weights + f
            o_w = o_n[None, :] + o_w
            o_b, m_b = o_w, m_dw
            BLOCK: tl.constexpr = UPDATE.block
            if BLOCK > 0:
                jr, jc = first_of_blocks(jr, BLOCK), first_of_blocks(jc, BLOCK)  # [BN // BLOCK]
                m_n = first_of_blocks(tl.where(m_n, 0, 1), BLOCK) == 0  # a block exists if its first filter does
                o_b, m_b = band_offsets(k, t, dh, dw, c, jr, jc, m_n, SHAPE, TILE)  # [BK, BN // BLOCK]
                o_b = tl.reshape(first_of_blocks(o_n, BLOCK)[None, :] + o_b, (BK * BN // BLOCK,))
                m_b = tl.reshape(m_b, (BK * BN // BLOCK,))
            update_weights(acc, p_dw, p_m, p_v, p_amax, p_correction, p_added, p_scalars, o_w, m_dw, o_b, m_b, UPDATE)
