"""The weight gradient, with the bias gradient of each position in the same launch."""

import triton
import triton.language as tl

from lc_triton.kernels.common import activation_backward, decode_k, site_is_read, tap, tile_offsets


@triton.jit
def load_dz(p_g, p_saved, b, o_n, o_s, m, pitch, SHAPE: tl.constexpr, UPSTREAM: tl.constexpr):
    """A block of dz [BB, BN]: g itself, or its product with the derivative of the activation."""
    b_g = tl.load(p_g + (b.to(tl.int64) * pitch * SHAPE.filters)[:, None] + o_n[None, :], mask=m, other=0.0)  # [BB, BN]
    ACT: tl.constexpr = UPSTREAM.activation  # triton 3.6 compares no field of a tuple
    CONSTANT: tl.constexpr = UPSTREAM.constant
    if ACT != "linear":
        p_s = p_saved + (b.to(tl.int64) * SHAPE.out_numel)[:, None] + o_s[None, :]
        b_s = tl.load(p_s, mask=m, other=0.0)  # [BB, BN]
        ACC: tl.constexpr = tl.float64 if p_g.dtype.element_ty == tl.float64 else tl.float32
        b_g = activation_backward(b_g.to(ACC), b_s.to(ACC), ACT, CONSTANT).to(b_g.dtype)
    return b_g


@triton.jit(do_not_specialize=["B"])
def weight_grad_kernel(
    p_x,  # (B, I0, I1, IH, IW, C) with rows of sites dense; x_pitch holds the other strides, in sites
    p_g,  # (B, O0, O1, OH, OW, F) likewise, in positions
    p_saved,  # (B, P, F), y or z, where g is the gradient of y
    p_dw,  # (P, T, C // G, F), or with TILE.descriptor a tensor descriptor of it as (P, T * C // G, F)
    p_db,  # (P, F); both of a split batch with SPLIT in front, the sums of its parts
    p_dz,  # (B, P, F), the gradient of z, for the input gradient
    B,
    x_pitch,
    g_pitch,
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    UPSTREAM: tl.constexpr,
):
    """dw = x^T . dz for BK indices k, TQ x TP positions and FT filters a program; the batch is summed inside.

    Only the band of the (BK x BN) product is stored: each (position, tap, channel, filter) lies in exactly one program.
    """
    C: tl.constexpr = SHAPE.group_channels
    F: tl.constexpr = SHAPE.filters
    FG: tl.constexpr = SHAPE.group_filters
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
    BN: tl.constexpr = TILE.block_n
    ROWS: tl.constexpr = TILE.footprint_rows
    COLS: tl.constexpr = TILE.footprint_cols
    KT: tl.constexpr = TILE.k_total
    KB: tl.constexpr = TILE.k_blocks
    SPLIT: tl.constexpr = TILE.split
    DESCRIPTOR: tl.constexpr = TILE.descriptor
    DOT: tl.constexpr = TILE.dot
    OWN: tl.constexpr = TILE.own_windows  # each column gathers the window of its own position
    SWAP: tl.constexpr = TILE.swap
    PRECISION: tl.constexpr = TILE.precision
    WITH_BIAS: tl.constexpr = UPSTREAM.with_bias
    STORE_DZ: tl.constexpr = UPSTREAM.store_dz
    ACC: tl.constexpr = tl.float64 if p_x.dtype.element_ty == tl.float64 else tl.float32

    # Tile. The blocks of k of one tile run side by side: they share its g.
    pid = tl.program_id(0)
    block = pid % KB
    k = block * BK + tl.arange(0, BK)
    pid = pid // KB
    o01, oh0, ow0, part, jr, jc, position, f0, f, _, group, m_n = tile_offsets(
        pid, SHAPE.outputs, SHAPE.filters, SHAPE, TILE
    )
    first, last = 0, B
    if SPLIT > 1:
        steps = tl.cdiv(tl.cdiv(B, BB), SPLIT)
        first = part * steps * BB
        last = tl.minimum(first + steps * BB, B)
        p_dw += part.to(tl.int64) * SHAPE.weight_numel
        if WITH_BIAS:
            p_db += part.to(tl.int64) * SHAPE.out_numel

    # Addresses: the sites and channels that k counts, and g and the saved tensor of each column.
    o0, o1 = o01 // O1, o01 % O1
    t0, t1, row, col, c = decode_k(k, K0, K1, ROWS, COLS, C)
    dh, dw = row * TILE.step_h, col * TILE.step_w
    i0 = o0 * SHAPE.stride[0] - SHAPE.pad[0] + t0 * SHAPE.dilation[0]
    i1 = o1 * SHAPE.stride[1] - SHAPE.pad[1] + t1 * SHAPE.dilation[1]
    ih, iw = oh0 * SH - SHAPE.pad[2] + dh, ow0 * SW - SHAPE.pad[3] + dw
    if OWN:
        k, i0, i1, c = k[:, None], i0[:, None], i1[:, None], c[:, None] + (group * C)[None, :]
        ih, iw = ih[:, None] + (jr * SH)[None, :], iw[:, None] + (jc * SW)[None, :]
    m_k = (k < KT) & (ih >= 0) & (ih < SHAPE.inputs[2]) & (iw >= 0) & (iw < SHAPE.inputs[3])
    if SHAPE.lead:
        m_k = m_k & (i0 >= 0) & (i0 < SHAPE.inputs[0]) & (i1 >= 0) & (i1 < SHAPE.inputs[1])
    if not OWN:
        m_k = m_k & site_is_read(dh, tl.minimum(OH - oh0, TQ), KH, DH, SH, TQ)
        m_k = m_k & site_is_read(dw, tl.minimum(OW - ow0, TP), KW, DW, SW, TP)
    oh, ow = oh0 + jr, ow0 + jc
    o_k = (i0 * x_pitch[1] + i1 * x_pitch[2] + ih * x_pitch[3] + iw) * SHAPE.channels + c  # [BK], or [BK, BN]
    o_n = (o0 * g_pitch[1] + o1 * g_pitch[2] + oh * g_pitch[3] + ow) * F + f  # [BN]
    o_s = position.to(tl.int64) * F + f  # [BN]

    # Loop over the batch, first for the bias gradient, then for the product. One loop for both would take g out of the
    # matmul's pipeline; in the other order the addresses would stay in registers during the product, and a float32 dw
    # spills.
    if WITH_BIAS or STORE_DZ:
        if block == 0:
            b_db = tl.zeros((BN,), ACC)
            for start in range(first, last, BB):
                b = start + tl.arange(0, BB)
                m = (b < B)[:, None] & m_n[None, :]
                b_g = load_dz(p_g, p_saved, b, o_n, o_s, m, g_pitch[0], SHAPE, UPSTREAM)  # [BB, BN]
                if STORE_DZ:
                    o_dz = (b.to(tl.int64) * SHAPE.out_numel)[:, None] + o_s[None, :]
                    tl.store(p_dz + o_dz, b_g, mask=m)  # [BB, BN]
                b_db += tl.sum(b_g.to(ACC), 0)
            if WITH_BIAS:
                tl.store(p_db + o_s, b_db.to(p_db.dtype.element_ty), mask=m_n)  # [BN]

    if DOT:
        acc = tl.zeros((BN, BK) if SWAP else (BK, BN), ACC)
    else:
        acc = tl.zeros((BB, BK, BN), ACC)  # summed over the batch once, after the loop
    for start in range(first, last, BB):
        b = start + tl.arange(0, BB)
        m_b = b < B
        p_xb = p_x + b.to(tl.int64) * x_pitch[0] * SHAPE.channels
        b_g = load_dz(p_g, p_saved, b, o_n, o_s, m_b[:, None] & m_n[None, :], g_pitch[0], SHAPE, UPSTREAM)  # [BB, BN]
        if DOT:
            o_x = o_k + group * C
            b_x = tl.load(p_xb[:, None] + o_x[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
            if SWAP:
                acc = tl.dot(tl.trans(b_g), b_x, acc, input_precision=PRECISION, out_dtype=ACC)
            else:
                acc = tl.dot(tl.trans(b_x), b_g, acc, input_precision=PRECISION, out_dtype=ACC)
        elif not OWN:
            b_x = tl.load(p_xb[:, None] + o_k[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
            acc += b_x[:, :, None].to(ACC) * b_g[:, None, :].to(ACC)
        else:
            m_x = m_b[:, None, None] & (m_k & m_n[None, :])[None, :, :]
            b_x = tl.load(p_xb[:, None, None] + o_k[None, :, :], mask=m_x, other=0.0)  # [BB, BK, BN]
            acc += b_x.to(ACC) * b_g[:, None, :].to(ACC)

    # Epilogue: only the band is stored. Taps on the padding store zeros: m_k stays out of this mask.
    if not DOT:
        acc = tl.sum(acc, 0)
    elif SWAP:
        acc = tl.trans(acc)
    if DESCRIPTOR:  # one position: k counts its weights as they lie, and a descriptor stores nothing past their end
        b_dw = acc.to(p_dw.dtype).reshape(1, BK, BN)
        o_box = ((o01 * OH + oh0) * OW + ow0).to(tl.int32)
        p_dw.store([o_box, block * BK, group * FG + f0], b_dw)  # [1, BK, BN]
    else:
        if OWN:
            o_w, m_dw = k * F, (k < KT) & m_n[None, :]
        else:
            kh, m_h = tap(dh[:, None] - (jr * SH)[None, :], KH, DH)
            kw, m_w = tap(dw[:, None] - (jc * SW)[None, :], KW, DW)
            o_w = (((((t0 * K1 + t1) * KH)[:, None] + kh) * KW + kw) * C + c[:, None]) * F
            m_dw = m_h & m_w & (k < KT)[:, None] & m_n[None, :]
        p_dw += position.to(tl.int64) * SHAPE.position_weights + f
        tl.store(p_dw[None, :] + o_w, acc.to(p_dw.dtype.element_ty), mask=m_dw)  # [BK, BN]
