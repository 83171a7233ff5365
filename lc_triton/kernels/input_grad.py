"""The input gradient, in gather form: each site collects from the windows that read it.

It is the transposed layer's forward, and has the forward's epilogue.
"""

import triton
import triton.language as tl

from lc_triton.kernels.common import finish, reads_any, tap, unbounded, walk


@triton.jit
def window(k, s0, s1, sh, sw, first_h, first_w, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """What step k of the walk meets: leading taps, window (o0, o1, oh, ow), filter; and whether there is such a window.

    The leading taps are part of the answer; those of rows and columns differ from site to site.
    """
    K0: tl.constexpr = SHAPE.kernel[0]
    K1: tl.constexpr = SHAPE.kernel[1]
    FG: tl.constexpr = SHAPE.filters // SHAPE.groups
    KT: tl.constexpr = K0 * K1 * TILE.run_rows * TILE.run_cols * FG
    S0: tl.constexpr = SHAPE.stride[0]
    S1: tl.constexpr = SHAPE.stride[1]
    t0, t1, row, col, f = walk(k, K0, K1, TILE.run_rows, TILE.run_cols, FG)
    oh, ow = first_h + row * TILE.step_h, first_w + col * TILE.step_w
    o0, o1 = t0 * 0, t1 * 0
    m = (k < KT) & (oh >= 0) & (oh < SHAPE.outputs[2]) & (ow >= 0) & (ow < SHAPE.outputs[3])
    if SHAPE.lead:
        o0, o1 = unbounded(s0 - t0 * SHAPE.dilation[0]), unbounded(s1 - t1 * SHAPE.dilation[1])
        m = m & (o0 >= 0) & (o0 % S0 == 0) & (o0 < SHAPE.outputs[0] * S0)
        m = m & (o1 >= 0) & (o1 % S1 == 0) & (o1 < SHAPE.outputs[1] * S1)
        o0, o1 = o0 // S0, o1 // S1
    return t0, t1, o0, o1, oh, ow, f, m


@triton.jit(do_not_specialize=["B"])
def input_grad_kernel(
    p_g,  # (B, O0, O1, OH, OW, F) with rows of positions dense; g_pitch holds the other strides, in positions
    p_w,  # (P, T, C // G, F), or with TILE.descriptor a tensor descriptor of it
    p_bias,  # (sites, C) or (C)
    p_dx,  # (B, sites, C); of a split walk (SPLIT, B, sites, C), the sums of its parts
    B,
    g_pitch,
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """dx = act(g . w^T + bias): BB samples, TQ x TP sites and FT channels a program; k walks positions and filters."""
    G: tl.constexpr = SHAPE.groups
    C: tl.constexpr = SHAPE.channels
    CG: tl.constexpr = C // G
    F: tl.constexpr = SHAPE.filters
    FG: tl.constexpr = F // G
    K0: tl.constexpr = SHAPE.kernel[0]
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
    FT: tl.constexpr = TILE.block_f
    BN: tl.constexpr = TQ * TP * FT
    ROWS: tl.constexpr = TILE.run_rows
    COLS: tl.constexpr = TILE.run_cols
    KT: tl.constexpr = K0 * K1 * ROWS * COLS * FG
    SPLIT: tl.constexpr = TILE.split
    STEPS: tl.constexpr = (KT + BK - 1) // BK
    WALK: tl.constexpr = (STEPS + SPLIT - 1) // SPLIT * BK  # of one program
    DESCRIPTOR: tl.constexpr = TILE.descriptor
    DOT: tl.constexpr = TILE.dot
    OWN: tl.constexpr = not DOT and (G > 1 or TQ * TP > 1)  # each column walks the windows of its own site
    SWAP: tl.constexpr = TILE.swap
    PRECISION: tl.constexpr = TILE.precision
    ACC: tl.constexpr = tl.float64 if p_g.dtype.element_ty == tl.float64 else tl.float32

    pid = tl.program_id(0)
    n_b = tl.cdiv(B, BB)
    b = (pid % n_b) * BB + tl.arange(0, BB)
    m_b = b < B
    pid = (pid // n_b).to(tl.int32)  # a batch past 2^31 is an int64, and boxes are counted by an int32
    n = tl.arange(0, BN)
    jr, jc = n // (TP * FT), (n // FT) % TP
    if DOT:  # a program stays within one group
        CB: tl.constexpr = (CG + FT - 1) // FT
        c0 = (pid % CB) * FT
        cg = c0 + n % FT
        group = (pid // CB) % G
        m_n = cg < CG
        c = group * CG + cg
        pid = pid // (CB * G)
    else:  # a block of channels across groups
        CB: tl.constexpr = (C + FT - 1) // FT
        c = (pid % CB) * FT + n % FT
        group = unbounded(c) // CG
        cg = unbounded(c) % CG
        m_n = c < C
        pid = pid // CB
    if SHAPE.wide:  # 2^31 numbers in a sample: 32 bits may not count its sites
        pid = pid.to(tl.int64)
    TILES_W: tl.constexpr = (IW + TP - 1) // TP
    TILES_H: tl.constexpr = (IH + TQ - 1) // TQ
    iw0 = (pid % TILES_W) * TP
    ih0 = (pid // TILES_W) % TILES_H * TQ
    i01 = pid // (TILES_W * TILES_H)
    part = 0
    if SPLIT > 1:
        part = (i01 // (SHAPE.inputs[0] * I1)).to(tl.int32)
        i01 = i01 % (SHAPE.inputs[0] * I1)
    m_n = m_n & (ih0 + jr < IH) & (iw0 + jc < IW)
    site = (i01 * IH + ih0 + jr) * IW + iw0 + jc  # [BN]
    # A site in padded coordinates is oh * SH + kh * DH; the walk starts at the first window that can reach the tile.
    s0, s1 = i01 // I1 + SHAPE.pad[0], i01 % I1 + SHAPE.pad[1]
    sh, sw = ih0 + SHAPE.pad[2], iw0 + SHAPE.pad[3]
    if OWN:
        sh, sw = (sh + jr)[:, None], (sw + jc)[:, None]  # [BN, 1]
    if TILE.step_h == 1:  # maximum before //, which truncates: a window row below 0 does not exist
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
    if DOT:
        acc = tl.zeros((BN, BB) if SWAP else (BB, BN), ACC)
    else:
        acc = tl.zeros((BB, BN, BK), ACC)  # summed over k once, after the loop
    for start in range(0, WALK, BK):
        k0 = part * WALK + start
        k = k0 + tl.arange(0, BK)
        if OWN:
            k = k[None, :]
        t0, t1, o0, o1, oh, ow, f, m_k = window(k, s0, s1, sh, sw, first_h, first_w, SHAPE, TILE)
        if OWN:
            kh, m_h = tap(sh - oh * SH, KH, DH)
            kw, m_w = tap(sw - ow * SW, KW, DW)
            m_k = m_k & m_h & m_w & m_n[:, None]
        else:
            m_k = m_k & reads_any(sh - oh * SH, tl.minimum(IH - ih0, TQ), KH, DH, TQ)
            m_k = m_k & reads_any(sw - ow * SW, tl.minimum(IW - iw0, TP), KW, DW, TP)
        position = ((o0 * O1 + o1) * OH + oh) * OW + ow  # [BK], or [BN, BK]
        o_k = o0 * g_pitch[1] + o1 * g_pitch[2] + oh * g_pitch[3] + ow
        o_k = o_k * F + f

        if OWN:
            p_k = p_w + position.to(tl.int64) * (K0 * K1 * KH * KW * CG * F) + f
            o_w = (((t0 * K1 + t1) * KH + kh) * KW + kw) * (CG * F) + o_n[:, None]
            b_w = tl.load(p_k + o_w, mask=m_k, other=0.0)  # [BN, BK]
        elif DESCRIPTOR:  # one site, and a step within one position: a box of one tap's weights
            d0, d1, q0, q1, qh, qw, f0, m_q = window(k0, s0, s1, sh, sw, first_h, first_w, SHAPE, TILE)
            kh, m_h = tap(sh - qh * SH, KH, DH)
            kw, m_w = tap(sw - qw * SW, KW, DW)
            # A window that is not there lies past the last position, where a descriptor reads zeros.
            q = tl.where(m_q & m_h & m_w, ((q0 * O1 + q1) * OH + qh) * OW + qw, O0 * O1 * OH * OW)
            t = (((d0 * K1 + d1) * KH + kh) * KW + kw).to(tl.int32)
            b_w = p_w.load([q.to(tl.int32), t, c0, group * FG + f0]).reshape(BN, BK)
        else:
            kh, m_h = tap((sh + jr)[:, None] - (oh * SH)[None, :], KH, DH)
            kw, m_w = tap((sw + jc)[:, None] - (ow * SW)[None, :], KW, DW)
            o_w = ((((t0 * K1 + t1) * KH)[None, :] + kh) * KW + kw) * (CG * F) + o_n[:, None]
            p_k = p_w + position.to(tl.int64) * (K0 * K1 * KH * KW * CG * F) + f
            b_w = tl.load(p_k[None, :] + o_w, mask=m_h & m_w & m_k[None, :] & m_n[:, None], other=0.0)  # [BN, BK]
        if DOT:
            b_g = tl.load(
                p_g[:, None] + (o_k + group * FG)[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0
            )  # [BB, BK]
            b_w = b_w.to(b_g.dtype)
            if SWAP:
                acc = tl.dot(b_w, tl.trans(b_g), acc, input_precision=PRECISION, out_dtype=ACC)
            else:
                acc = tl.dot(b_g, tl.trans(b_w), acc, input_precision=PRECISION, out_dtype=ACC)
        elif not OWN:
            b_g = tl.load(p_g[:, None] + o_k[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
            b_w = b_w.to(b_g.dtype)
            acc += b_g[:, None, :].to(ACC) * b_w[None, :, :].to(ACC)
        else:
            o_g = o_k + (group * FG)[:, None]
            m_g = m_b[:, None, None] & m_k[None, :, :]
            b_g = tl.load(p_g[:, None, None] + o_g[None, :, :], mask=m_g, other=0.0)  # [BB, BN, BK]
            b_w = b_w.to(b_g.dtype)
            acc += b_g.to(ACC) * b_w[None, :, :].to(ACC)

    if not DOT:
        acc = tl.sum(acc, 2)
    elif SWAP:
        acc = tl.trans(acc)
    _, b_dx = finish(acc, p_bias, site, c, m_n, C, EPILOGUE)
    if SPLIT > 1:
        p_dx += part.to(tl.int64) * B * SHAPE.in_numel
    o_dx = b.to(tl.int64)[:, None] * SHAPE.in_numel + site[None, :].to(tl.int64) * C + c[None, :]
    tl.store(p_dx + o_dx, b_dx.to(p_dx.dtype.element_ty), mask=m_b[:, None] & m_n[None, :])
