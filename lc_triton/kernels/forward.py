"""The forward face: patch gather, per-position matmul, bias and activation in one launch."""

import triton
import triton.language as tl

from lc_triton.kernels.common import finish, read_by_any, tap, unbounded, walk


@triton.jit(do_not_specialize=["B"])
def forward_kernel(
    p_x,  # (B, I0, I1, IH, IW, C) with rows of sites dense; x_pitch holds the other strides, in sites
    p_w,  # (P, T, C // G, F), or with TILE.descriptor a tensor descriptor of it as (P, T * C // G, F)
    p_bias,  # (P, F) or (F)
    p_y,  # (B, P, F); of a split walk (SPLIT, B, P, F), the sums of its parts
    p_z,  # (B, P, F)
    B,
    x_pitch,
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """y = act(x . w + bias), and z if asked for: BB samples, TQ x TP positions and FT filters a program."""
    G: tl.constexpr = SHAPE.groups
    C: tl.constexpr = SHAPE.channels // G
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
    KT: tl.constexpr = K0 * K1 * ROWS * COLS * C
    SPLIT: tl.constexpr = TILE.split
    STEPS: tl.constexpr = (KT + BK - 1) // BK
    WALK: tl.constexpr = (STEPS + SPLIT - 1) // SPLIT * BK  # of one program
    DESCRIPTOR: tl.constexpr = TILE.descriptor
    DOT: tl.constexpr = TILE.dot
    OWN: tl.constexpr = not DOT and (G > 1 or TQ * TP > 1)  # each column walks its own window
    SWAP: tl.constexpr = TILE.swap
    PRECISION: tl.constexpr = TILE.precision
    STORE_Z: tl.constexpr = EPILOGUE.store_z
    ACC: tl.constexpr = tl.float64 if p_x.dtype.element_ty == tl.float64 else tl.float32

    # Batch blocks of one tile run side by side, so that its weights come from memory once; then along a row, for x.
    pid = tl.program_id(0)
    n_b = tl.cdiv(B, BB)
    b = (pid % n_b) * BB + tl.arange(0, BB)
    m_b = b < B
    pid = (pid // n_b).to(tl.int32)  # a batch past 2^31 is an int64, and boxes are counted by an int32
    n = tl.arange(0, BN)
    jr, jc = n // (TP * FT), (n // FT) % TP
    if DOT:  # a program stays within one group
        FB: tl.constexpr = (FG + FT - 1) // FT
        f0 = (pid % FB) * FT
        f = f0 + n % FT
        group = (pid // FB) % G
        m_n = f < FG
        f0 += group * FG
        f = group * FG + f
        pid = pid // (FB * G)
    else:  # a block of filters across groups
        FB: tl.constexpr = (F + FT - 1) // FT
        f = (pid % FB) * FT + n % FT
        group = unbounded(f) // FG
        m_n = f < F
        pid = pid // FB
    if SHAPE.wide:  # 2^31 numbers in a sample: 32 bits may not count its positions
        pid = pid.to(tl.int64)
    TILES_W: tl.constexpr = (OW + TP - 1) // TP
    TILES_H: tl.constexpr = (OH + TQ - 1) // TQ
    ow0 = (pid % TILES_W) * TP
    oh0 = (pid // TILES_W) % TILES_H * TQ
    o01 = pid // (TILES_W * TILES_H)
    part = 0
    if SPLIT > 1:
        part = (o01 // (SHAPE.outputs[0] * O1)).to(tl.int32)
        o01 = o01 % (SHAPE.outputs[0] * O1)
    m_n = m_n & (oh0 + jr < OH) & (ow0 + jc < OW)
    position = (o01 * OH + oh0 + jr) * OW + ow0 + jc  # [BN]
    s0 = (o01 // O1) * SHAPE.stride[0] - SHAPE.pad[0]
    s1 = (o01 % O1) * SHAPE.stride[1] - SHAPE.pad[1]
    sh = oh0 * SH - SHAPE.pad[2]
    sw = ow0 * SW - SHAPE.pad[3]

    if not DESCRIPTOR:
        p_w += position.to(tl.int64) * (K0 * K1 * KH * KW * C * F) + f
    p_x += b.to(tl.int64) * x_pitch[0] * SHAPE.channels
    if DOT:
        acc = tl.zeros((BN, BB) if SWAP else (BB, BN), ACC)
    else:
        acc = tl.zeros((BB, BK, BN), ACC)  # summed over k once, after the loop
    for start in range(0, WALK, BK):
        k0 = part * WALK + start
        k = k0 + tl.arange(0, BK)
        t0, t1, row, col, c = walk(k, K0, K1, ROWS, COLS, C)
        dh, dw = row * TILE.step_h, col * TILE.step_w
        i0, i1 = s0 + t0 * SHAPE.dilation[0], s1 + t1 * SHAPE.dilation[1]
        ih, iw = sh + dh, sw + dw
        if OWN:  # what neighbours read as well is in L1 when they do
            k, i0, i1, c = k[:, None], i0[:, None], i1[:, None], c[:, None] + (group * C)[None, :]
            ih, iw = ih[:, None] + (jr * SH)[None, :], iw[:, None] + (jc * SW)[None, :]
        m_k = (k < KT) & (ih >= 0) & (ih < SHAPE.inputs[2]) & (iw >= 0) & (iw < SHAPE.inputs[3])
        if SHAPE.lead:
            m_k = m_k & (i0 >= 0) & (i0 < SHAPE.inputs[0]) & (i1 >= 0) & (i1 < SHAPE.inputs[1])
        if not OWN:
            m_k = m_k & read_by_any(dh, tl.minimum(OH - oh0, TQ), KH, DH, SH, TQ)
            m_k = m_k & read_by_any(dw, tl.minimum(OW - ow0, TP), KW, DW, SW, TP)
        o_k = (i0 * x_pitch[1] + i1 * x_pitch[2] + ih * x_pitch[3] + iw) * SHAPE.channels + c  # [BK], or [BK, BN]

        if OWN:  # the walk goes through a position's weights as they lie
            b_w = tl.load(p_w[None, :] + k * F, mask=m_k & m_n[None, :], other=0.0)  # [BK, BN]
        elif DESCRIPTOR:  # one position: likewise, and past the weights' end come zeros
            b_w = p_w.load([((o01 * OH + oh0) * OW + ow0).to(tl.int32), k0, f0]).reshape(BK, BN)
        else:
            kh, m_h = tap(dh[:, None] - (jr * SH)[None, :], KH, DH)
            kw, m_w = tap(dw[:, None] - (jc * SW)[None, :], KW, DW)
            o_w = ((((t0 * K1 + t1) * KH)[:, None] + kh) * KW + kw) * C + c[:, None]
            b_w = tl.load(p_w[None, :] + o_w * F, mask=m_h & m_w & m_k[:, None] & m_n[None, :], other=0.0)  # [BK, BN]
        if DOT:
            b_x = tl.load(
                p_x[:, None] + (o_k + group * C)[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0
            )  # [BB, BK]
            b_w = b_w.to(b_x.dtype)
            if SWAP:
                acc = tl.dot(tl.trans(b_w), tl.trans(b_x), acc, input_precision=PRECISION, out_dtype=ACC)
            else:
                acc = tl.dot(b_x, b_w, acc, input_precision=PRECISION, out_dtype=ACC)
        elif not OWN:
            b_x = tl.load(p_x[:, None] + o_k[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
            b_w = b_w.to(b_x.dtype)
            acc += b_x[:, :, None].to(ACC) * b_w[None, :, :].to(ACC)
        else:
            m_x = m_b[:, None, None] & (m_k & m_n[None, :])[None, :, :]
            b_x = tl.load(p_x[:, None, None] + o_k[None, :, :], mask=m_x, other=0.0)  # [BB, BK, BN]
            b_w = b_w.to(b_x.dtype)
            acc += b_x.to(ACC) * b_w[None, :, :].to(ACC)

    if not DOT:
        acc = tl.sum(acc, 1)
    elif SWAP:
        acc = tl.trans(acc)
    b_z, b_y = finish(acc, p_bias, position, f, m_n, F, EPILOGUE)
    if SPLIT > 1:
        p_y += part.to(tl.int64) * B * SHAPE.out_numel
    o_y = b.to(tl.int64)[:, None] * SHAPE.out_numel + position[None, :].to(tl.int64) * F + f[None, :]
    m_y = m_b[:, None] & m_n[None, :]
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_y)
    if STORE_Z:
        tl.store(p_z + o_y, b_z.to(p_z.dtype.element_ty), mask=m_y)
