"""The forward: gather of the windows, product with each position's weights, bias and activation, in one launch."""

import triton
import triton.language as tl

from lc_triton.kernels.common import bias_and_activation, decode_k, region_of, site_is_read, tap, tile_offsets


@triton.jit(do_not_specialize=["B"])
def forward_kernel(
    p_x,  # (B, I0, I1, IH, IW, C), with IW and C dense; C may be padded with zeros
    p_w,  # (P, T, C // G, F), or with TILE.descriptor a tensor descriptor of it as (P, T * C // G, F)
    # With SHAPE.shared, regions take the place of P.
    p_bias,  # (P, F), (F) or None: EPILOGUE.bias
    p_y,  # (B, P, F); of a split loop (SPLIT, B, P, F), the sums of its parts
    p_z,  # (B, P, F), or None
    B,
    x_pitch,  # the strides of x along B, I0, I1 and IH, in sites
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """y = act(z), and z if asked for: z[b, p, f] = sum over t, c of x[b, site(p, t), c] * w[p, t, c, f] + bias[p, f].

    A program computes BB samples, TQ x TP positions and FT filters of each, or one part of their sums over k.
    Grid: blocks of samples, blocks of filters, groups (with `tl.dot`), tile columns and rows, leading positions, parts.
    """
    C: tl.constexpr = SHAPE.group_channels  # of w
    CX: tl.constexpr = SHAPE.channels // SHAPE.groups  # of x: C, or more with padding, whose weights are masked
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
    KP: tl.constexpr = TILE.k_part
    SPLIT: tl.constexpr = TILE.split
    DESCRIPTOR: tl.constexpr = TILE.descriptor
    DOT: tl.constexpr = TILE.dot
    OWN: tl.constexpr = TILE.own_windows  # each column gathers the window of its own position
    SWAP: tl.constexpr = TILE.swap
    PRECISION: tl.constexpr = TILE.precision
    STORE_Z: tl.constexpr = EPILOGUE.store_z
    ACC: tl.constexpr = tl.float64 if p_x.dtype.element_ty == tl.float64 else tl.float32

    # Tile: samples b, columns n of positions and filters. The blocks of samples of one tile run side by side, so that
    # its weights come from memory once. Then come the filters of the same positions, which read the same sites, and the
    # tiles of the same row, which share some.
    pid = tl.program_id(0)
    n_b = tl.cdiv(B, BB)
    b = (pid % n_b) * BB + tl.arange(0, BB)
    m_b = b < B
    pid = (pid // n_b).to(tl.int32)  # B is an int64 from 2^31 on, and a descriptor takes coordinates of 32 bits
    o01, oh0, ow0, part, jr, jc, position, f0, f, _, group, m_n = tile_offsets(pid, False, SHAPE, TILE)

    # Addresses: the site (s0, s1, sh, sw) of the tile's first tap, the weights of each column [BN], the samples [BB].
    s0 = (o01 // O1) * SHAPE.stride[0] - SHAPE.pad[0]
    s1 = (o01 % O1) * SHAPE.stride[1] - SHAPE.pad[1]
    sh = oh0 * SH - SHAPE.pad[2]
    sw = ow0 * SW - SHAPE.pad[3]
    region = position
    if SHAPE.shared:
        region = region_of(o01 // O1, o01 % O1, oh0 + jr, ow0 + jc, SHAPE)
    if not DESCRIPTOR:
        p_w += region.to(tl.int64) * SHAPE.position_weights + f
    p_x += b.to(tl.int64) * x_pitch[0] * SHAPE.channels

    # Loop: the sites of the input footprint and their channels; with OWN, the taps of a window and their channels.
    if DOT:
        acc = tl.zeros((BN, BB) if SWAP else (BB, BN), ACC)
    else:
        acc = tl.zeros((BB, BK, BN), ACC)  # summed over k once, after the loop
    for start in range(0, KP, BK):
        k0 = part * KP + start
        k = k0 + tl.arange(0, BK)
        t0, t1, row, col, c = decode_k(k, K0, K1, ROWS, COLS, CX)
        dh, dw = row * TILE.step_h, col * TILE.step_w
        i0, i1 = s0 + t0 * SHAPE.dilation[0], s1 + t1 * SHAPE.dilation[1]
        ih, iw = sh + dh, sw + dw
        if OWN:  # several columns load a site that their windows share: after the first time, it is in L1
            k, i0, i1, c = k[:, None], i0[:, None], i1[:, None], c[:, None] + (group * C)[None, :]
            ih, iw = ih[:, None] + (jr * SH)[None, :], iw[:, None] + (jc * SW)[None, :]
        m_k = (k < KT) & (ih >= 0) & (ih < SHAPE.inputs[2]) & (iw >= 0) & (iw < SHAPE.inputs[3])
        if SHAPE.lead:
            m_k = m_k & (i0 >= 0) & (i0 < SHAPE.inputs[0]) & (i1 >= 0) & (i1 < SHAPE.inputs[1])
        if not OWN:
            m_k = m_k & site_is_read(dh, tl.minimum(OH - oh0, TQ), KH, DH, SH, TQ)
            m_k = m_k & site_is_read(dw, tl.minimum(OW - ow0, TP), KW, DW, SW, TP)
        o_k = (i0 * x_pitch[1] + i1 * x_pitch[2] + ih * x_pitch[3] + iw) * SHAPE.channels + c  # [BK], or [BK, BN]

        if OWN:  # k counts the weights of a position and filter in their order in memory
            b_w = tl.load(p_w[None, :] + k * F, mask=m_k & m_n[None, :], other=0.0)  # [BK, BN]
        elif DESCRIPTOR:  # so it does for a tile of one position; past the end of an axis, a descriptor reads zeros
            if SHAPE.shared:
                o_box = region_of(o01 // O1, o01 % O1, oh0, ow0, SHAPE).to(tl.int32)
            else:
                o_box = ((o01 * OH + oh0) * OW + ow0).to(tl.int32)
            b_w = p_w.load([o_box, k0, group * FG + f0]).reshape(BK, BN)  # [BK, BN]
        else:  # the weights of the tap that connects site k with position n; zeros where there is none
            kh, m_h = tap(dh[:, None] - (jr * SH)[None, :], KH, DH)
            kw, m_w = tap(dw[:, None] - (jc * SW)[None, :], KW, DW)
            o_w = ((((t0 * K1 + t1) * KH)[:, None] + kh) * KW + kw) * C + c[:, None]  # [BK, BN]
            m_w = m_h & m_w & m_k[:, None] & m_n[None, :]
            if CX > C:
                m_w = m_w & (c < C)[:, None]
            b_w = tl.load(p_w[None, :] + o_w * F, mask=m_w, other=0.0)  # [BK, BN]
        if DOT:
            o_x = o_k + group * C  # [BK]
            b_x = tl.load(p_x[:, None] + o_x[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
            b_w = b_w.to(b_x.dtype)
            if SWAP:
                acc = tl.dot(tl.trans(b_w), tl.trans(b_x), acc, input_precision=PRECISION, out_dtype=ACC)
            else:
                acc = tl.dot(b_x, b_w, acc, input_precision=PRECISION, out_dtype=ACC)
        elif not OWN:  # one position, one group
            b_x = tl.load(p_x[:, None] + o_k[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
            b_w = b_w.to(b_x.dtype)
            acc += b_x[:, :, None].to(ACC) * b_w[None, :, :].to(ACC)
        else:
            m_x = m_b[:, None, None] & (m_k & m_n[None, :])[None, :, :]
            b_x = tl.load(p_x[:, None, None] + o_k[None, :, :], mask=m_x, other=0.0)  # [BB, BK, BN]
            b_w = b_w.to(b_x.dtype)
            acc += b_x.to(ACC) * b_w[None, :, :].to(ACC)

    # Epilogue: bias and activation, then y and z; of a split loop, the part's sum alone.
    if not DOT:
        acc = tl.sum(acc, 1)
    elif SWAP:
        acc = tl.trans(acc)  # [BB, BN]
    b_z, b_y = bias_and_activation(acc, p_bias, position, f, m_n, F, EPILOGUE)
    if SPLIT > 1:
        p_y += part.to(tl.int64) * B * SHAPE.out_numel
    o_y = b.to(tl.int64)[:, None] * SHAPE.out_numel + position[None, :].to(tl.int64) * F + f[None, :]
    m_y = m_b[:, None] & m_n[None, :]
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_y)  # [BB, BN]
    if STORE_Z:
        tl.store(p_z + o_y, b_z.to(p_z.dtype.element_ty), mask=m_y)  # [BB, BN]
