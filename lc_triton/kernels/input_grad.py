"""The input gradient, in gather form: each site collects from the windows that read it.

It is also the transposed layer's forward. For that it adds a bias and an activation, as the forward does.
"""

import triton
import triton.language as tl

from lc_triton.kernels.common import (
    bias_and_activation,
    decode_k,
    region_of,
    tap,
    tile_offsets,
    unbounded,
    window_reads,
)


@triton.jit
def window(k, s0, s1, sh, sw, first_h, first_w, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """Decode indices k of the k-loop: leading taps t0 and t1, window (o0, o1, oh, ow), filter f, and whether the window
    exists and its taps t0 and t1 read the tile's leading site.

    The taps of rows and columns differ from site to site of the tile: callers find them by `tap`.

    s0, s1: the tile's leading site in padded coordinates.
    first_h, first_w: the row and column of the first window of the k-loop.
    """
    K0: tl.constexpr = SHAPE.kernel[0]
    K1: tl.constexpr = SHAPE.kernel[1]
    FG: tl.constexpr = SHAPE.group_filters
    S0: tl.constexpr = SHAPE.stride[0]
    S1: tl.constexpr = SHAPE.stride[1]
    t0, t1, row, col, f = decode_k(k, K0, K1, TILE.footprint_rows, TILE.footprint_cols, FG)
    oh, ow = first_h + row * TILE.step_h, first_w + col * TILE.step_w
    o0, o1 = t0 * 0, t1 * 0
    m = (k < TILE.k_total) & (oh >= 0) & (oh < SHAPE.outputs[2]) & (ow >= 0) & (ow < SHAPE.outputs[3])
    if SHAPE.lead:
        o0, o1 = unbounded(s0 - t0 * SHAPE.dilation[0]), unbounded(s1 - t1 * SHAPE.dilation[1])
        m = m & (o0 >= 0) & (o0 % S0 == 0) & (o0 < SHAPE.outputs[0] * S0)
        m = m & (o1 >= 0) & (o1 % S1 == 0) & (o1 < SHAPE.outputs[1] * S1)
        o0, o1 = o0 // S0, o1 // S1
    return t0, t1, o0, o1, oh, ow, f, m


@triton.jit(do_not_specialize=["B"])
def input_grad_kernel(
    p_g,  # (B, O0, O1, OH, OW, F), with OW and F dense
    p_w,  # (P, T, C // G, F), or with TILE.descriptor a tensor descriptor of it
    # With SHAPE.shared, regions take the place of P.
    p_bias,  # (sites, C), (C) or None: EPILOGUE.bias
    p_dx,  # (B, sites, C); of a split loop (SPLIT, B, sites, C), the sums of its parts
    B,
    g_pitch,  # the strides of g along B, O0, O1 and OH, in positions
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """dx[b, s, c] = act(sum over f, and p, t with site(p, t) = s, of g[b, p, f] * w[p, t, c, f] + bias[s, c]).

    A program computes BB samples, TQ x TP sites and FT channels of each, or one part of their sums over k, which counts
    (leading taps, rows of windows, columns of windows, filter).
    Grid: blocks of samples, blocks of channels, groups (with `tl.dot`), tile columns and rows, leading sites, parts.
    """
    C: tl.constexpr = SHAPE.channels  # of all groups
    CG: tl.constexpr = SHAPE.group_channels
    F: tl.constexpr = SHAPE.filters
    FG: tl.constexpr = SHAPE.group_filters
    K1: tl.constexpr = SHAPE.kernel[1]
    KH: tl.constexpr = SHAPE.kernel[2]
    KW: tl.constexpr = SHAPE.kernel[3]
    SH: tl.constexpr = SHAPE.stride[2]
    SW: tl.constexpr = SHAPE.stride[3]
    DH: tl.constexpr = SHAPE.dilation[2]
    DW: tl.constexpr = SHAPE.dilation[3]
    I1: tl.constexpr = SHAPE.inputs[1]
    IH: tl.constexpr = SHAPE.inputs[2]
    IW: tl.constexpr = SHAPE.inputs[3]
    O0: tl.constexpr = SHAPE.outputs[0]
    O1: tl.constexpr = SHAPE.outputs[1]
    OH: tl.constexpr = SHAPE.outputs[2]
    OW: tl.constexpr = SHAPE.outputs[3]
    TQ: tl.constexpr = TILE.rows
    TP: tl.constexpr = TILE.cols
    BB: tl.constexpr = TILE.block_b
    BK: tl.constexpr = TILE.block_k
    BN: tl.constexpr = TILE.block_n
    KP: tl.constexpr = TILE.k_part
    SPLIT: tl.constexpr = TILE.split
    DESCRIPTOR: tl.constexpr = TILE.descriptor
    DOT: tl.constexpr = TILE.dot
    OWN: tl.constexpr = TILE.own_windows  # each column gathers the windows of its own site
    SWAP: tl.constexpr = TILE.swap
    PRECISION: tl.constexpr = TILE.precision
    ACC: tl.constexpr = tl.float64 if p_g.dtype.element_ty == tl.float64 else tl.float32

    # Tile: samples b, columns n of sites and channels. The order of programs is the forward's, for the same reasons.
    pid = tl.program_id(0)
    n_b = tl.cdiv(B, BB)
    b = (pid % n_b) * BB + tl.arange(0, BB)
    m_b = b < B
    pid = (pid // n_b).to(tl.int32)  # B is an int64 from 2^31 on, and a descriptor takes coordinates of 32 bits
    i01, ih0, iw0, part, jr, jc, site, c0, c, cg, group, m_n = tile_offsets(pid, True, SHAPE, TILE)

    # Addresses: the first window that can reach the tile (with OWN: each column's site), the weights of each column
    # [BN], the samples [BB]. In padded coordinates, the site of window oh and tap kh is oh * SH + kh * DH.
    s0, s1 = i01 // I1 + SHAPE.pad[0], i01 % I1 + SHAPE.pad[1]
    sh, sw = ih0 + SHAPE.pad[2], iw0 + SHAPE.pad[3]
    if OWN:
        sh, sw = (sh + jr)[:, None], (sw + jc)[:, None]  # [BN, 1]
    if TILE.step_h == 1:  # no window row is below 0; // truncates, so that it rounds up numbers from 0 on alone
        first_h = tl.maximum(sh - (KH - 1) * DH, 0) + SH - 1
        if SH > 1:
            first_h = unbounded(first_h) // SH
    else:
        first_h = sh - (KH - 1) * DH
    if TILE.step_w == 1:
        first_w = tl.maximum(sw - (KW - 1) * DW, 0) + SW - 1
        if SW > 1:
            first_w = unbounded(first_w) // SW
    else:
        first_w = sw - (KW - 1) * DW

    o_n = cg * F + group * FG  # [BN]
    p_g += b.to(tl.int64) * g_pitch[0] * F

    # Loop: the windows that can reach the tile and their filters.
    if DOT:
        acc = tl.zeros((BN, BB) if SWAP else (BB, BN), ACC)
    else:
        acc = tl.zeros((BB, BN, BK), ACC)  # summed over k once, after the loop
    for start in range(0, KP, BK):
        k0 = part * KP + start
        k = k0 + tl.arange(0, BK)
        if OWN:
            k = k[None, :]
        t0, t1, o0, o1, oh, ow, f, m_k = window(k, s0, s1, sh, sw, first_h, first_w, SHAPE, TILE)
        if OWN:
            kh, m_h = tap(sh - oh * SH, KH, DH)
            kw, m_w = tap(sw - ow * SW, KW, DW)
            m_k = m_k & m_h & m_w & m_n[:, None]
        else:
            m_k = m_k & window_reads(sh - oh * SH, tl.minimum(IH - ih0, TQ), KH, DH, TQ)
            m_k = m_k & window_reads(sw - ow * SW, tl.minimum(IW - iw0, TP), KW, DW, TP)
        position = ((o0 * O1 + o1) * OH + oh) * OW + ow  # [BK], or [BN, BK]
        if SHAPE.shared:  # weights are found by the region of a position
            position = region_of(o0, o1, oh, ow, SHAPE)
        o_k = o0 * g_pitch[1] + o1 * g_pitch[2] + oh * g_pitch[3] + ow
        o_k = o_k * F + f  # [BK], or [BN, BK]

        if OWN:
            p_k = p_w + position.to(tl.int64) * SHAPE.position_weights + f
            o_w = (((t0 * K1 + t1) * KH + kh) * KW + kw) * (CG * F) + o_n[:, None]
            b_w = tl.load(p_k + o_w, mask=m_k, other=0.0)  # [BN, BK]
        elif DESCRIPTOR:  # one site, and a step of filters of one window: the box is weights of one tap
            d0, d1, q0, q1, qh, qw, f0, m_q = window(k0, s0, s1, sh, sw, first_h, first_w, SHAPE, TILE)
            kh, m_h = tap(sh - qh * SH, KH, DH)
            kw, m_w = tap(sw - qw * SW, KW, DW)
            # A window that does not exist, or does not read the site, is given the place past the last position, where
            # a descriptor reads zeros.
            if SHAPE.shared:
                q = tl.where(m_q & m_h & m_w, region_of(q0, q1, qh, qw, SHAPE), SHAPE.regions)
            else:
                q = tl.where(m_q & m_h & m_w, ((q0 * O1 + q1) * OH + qh) * OW + qw, O0 * O1 * OH * OW)
            t = (((d0 * K1 + d1) * KH + kh) * KW + kw).to(tl.int32)
            b_w = p_w.load([q.to(tl.int32), t, c0, group * FG + f0]).reshape(BN, BK)  # [BN, BK]
        else:  # the weights of the tap that connects window k with site n; zeros where there is none
            kh, m_h = tap((sh + jr)[:, None] - (oh * SH)[None, :], KH, DH)
            kw, m_w = tap((sw + jc)[:, None] - (ow * SW)[None, :], KW, DW)
            o_w = ((((t0 * K1 + t1) * KH)[None, :] + kh) * KW + kw) * (CG * F) + o_n[:, None]
            p_k = p_w + position.to(tl.int64) * SHAPE.position_weights + f
            b_w = tl.load(p_k[None, :] + o_w, mask=m_h & m_w & m_k[None, :] & m_n[:, None], other=0.0)  # [BN, BK]
        if DOT:
            o_g = o_k + group * FG  # [BK]
            b_g = tl.load(p_g[:, None] + o_g[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
            b_w = b_w.to(b_g.dtype)
            if SWAP:
                acc = tl.dot(b_w, tl.trans(b_g), acc, input_precision=PRECISION, out_dtype=ACC)
            else:
                acc = tl.dot(b_g, tl.trans(b_w), acc, input_precision=PRECISION, out_dtype=ACC)
        elif not OWN:  # one site, one group
            b_g = tl.load(p_g[:, None] + o_k[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
            b_w = b_w.to(b_g.dtype)
            acc += b_g[:, None, :].to(ACC) * b_w[None, :, :].to(ACC)
        else:
            o_g = o_k + (group * FG)[:, None]
            m_g = m_b[:, None, None] & m_k[None, :, :]
            b_g = tl.load(p_g[:, None, None] + o_g[None, :, :], mask=m_g, other=0.0)  # [BB, BN, BK]
            b_w = b_w.to(b_g.dtype)
            acc += b_g.to(ACC) * b_w[None, :, :].to(ACC)

    # Epilogue: bias and activation, then dx; of a split loop, the part's sum alone.
    if not DOT:
        acc = tl.sum(acc, 2)
    elif SWAP:
        acc = tl.trans(acc)  # [BB, BN]
    _, b_dx = bias_and_activation(acc, p_bias, site, c, m_n, C, EPILOGUE)
    if SPLIT > 1:
        p_dx += part.to(tl.int64) * B * SHAPE.in_numel
    o_dx = b.to(tl.int64)[:, None] * SHAPE.in_numel + site[None, :].to(tl.int64) * C + c[None, :]
    tl.store(p_dx + o_dx, b_dx.to(p_dx.dtype.element_ty), mask=m_b[:, None] & m_n[None, :])  # [BB, BN]
