"""The passes of a layer whose weights are two of 4 bits a byte, with a scale every 32 entries of a window.

A program owns one position (of the input gradient: one site), BB samples and BN filters (channels) of one group. It
loads bytes, and makes numbers of them in registers. The forward takes 32 entries a step, which have one scale for each
filter. With `tl.dot` it multiplies by the integers, which every dtype holds exactly, and scales the sums of a step;
without, it scales the weights. In the input gradient the scale differs along the sum, so that weights are scaled.
"""

import triton
import triton.language as tl

from lc_triton.kernels.blocks import block_of, multiply_transposed, place_of, read_at, window_sites
from lc_triton.kernels.common import bias_and_activation

ENTRIES: tl.constexpr = tl.constexpr(32)  # of a window that share a scale, as in lc_triton.ops.quantized
ZERO: tl.constexpr = tl.constexpr(0x88)  # two zeros: a number is stored plus 8


@triton.jit
def number(b):
    """The number that the lower four bits of each byte b stand for: the bits minus 8, exactly, in float32.

    The bits are made the last ones of the float 2^23, whose last bit counts 1. As integers, LLVM would subtract 8 in
    packed halves of 16 bits, whose constants ptxas 12.9 loses (launch/ptx_scan.py).
    """
    return ((b & 15).to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0


@triton.jit
def numbers(b, dtype: tl.constexpr):
    """Both numbers of each byte b [.., N], the lower four bits first: [.., 2 * N]."""
    return tl.interleave(number(b).to(dtype), number(b >> 4).to(dtype))


@triton.jit
def number_of(b, f, dtype: tl.constexpr):
    """The number of filter f in the byte b that holds it; f, which broadcasts to b, counts all filters."""
    return number(tl.where(f % 2 == 0, b, b >> 4)).to(dtype)


@triton.jit(do_not_specialize=["B"])
def four_bits_forward_kernel(
    p_x,  # (B, I0, I1, IH, IW, C), with IW and C dense
    p_w,  # (P, D, ceil(F / 2)) bytes, D = T * C // G
    p_scale,  # (P, ceil(D / 32), F)
    p_bias,  # (P, F), (F) or None: EPILOGUE.bias
    p_y,  # (B, P, F)
    B,
    x_pitch,  # the strides of x along B, I0, I1 and IH, in sites
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """y = act(sum over the entries k of a window of x * number[p, k, f] * scale[p, k // 32, f] + bias).

    A program computes one position, BB samples and BN filters of one group.
    Grid: blocks of samples, blocks of filters, groups, positions.
    """
    C: tl.constexpr = SHAPE.group_channels
    F: tl.constexpr = SHAPE.filters
    FG: tl.constexpr = SHAPE.group_filters
    G: tl.constexpr = SHAPE.groups
    KT: tl.constexpr = SHAPE.kernel[0] * SHAPE.kernel[1] * SHAPE.kernel[2] * SHAPE.kernel[3] * C
    BYTES: tl.constexpr = (F + 1) // 2
    BB: tl.constexpr = TILE.block_b
    BK: tl.constexpr = ENTRIES
    BN: tl.constexpr = TILE.block_n
    DOT: tl.constexpr = TILE.dot
    PAIRS: tl.constexpr = G == 1 or FG % 2 == 0  # every block of filters begins with a byte
    ACC: tl.constexpr = tl.float64 if p_x.dtype.element_ty == tl.float64 else tl.float32

    # Tile: samples b, filters f, a position.
    b, m_b, inner, pid = block_of(B, BB, FG, BN)
    group = (pid % G).to(tl.int32)
    f0 = group * FG + inner
    f, m_n = f0 + tl.arange(0, BN), inner + tl.arange(0, BN) < FG
    position, o0, o1, oh, ow = place_of(pid // G, SHAPE.outputs[2], SHAPE.outputs[3], SHAPE.outputs[1], SHAPE)

    # Addresses: the position's bytes, its scales of each filter [BN], samples [BB], the bytes of an entry [BN // 2].
    p_w += position.to(tl.int64) * (KT * BYTES)
    p_scale += position.to(tl.int64) * ((KT + BK - 1) // BK * F) + f
    p_x += b.to(tl.int64) * x_pitch[0] * SHAPE.channels
    o_byte = f0 // 2 + tl.arange(0, BN // 2)

    # Loop: the entries of a window, those of one scale a step.
    if DOT:
        acc = tl.zeros((BB, BN), ACC)
    else:
        acc = tl.zeros((BB, BK, BN), ACC)  # summed over k once, after the loop
    for start in range(0, KT, BK):
        k = start + tl.arange(0, BK)
        m_k = k < KT
        o_x, m_x = window_sites(k, group, o0, o1, oh, ow, x_pitch, SHAPE)  # [BK]
        b_x = tl.load(p_x[:, None] + o_x[None, :], mask=m_b[:, None] & m_x[None, :], other=0.0)  # [BB, BK]
        if PAIRS:
            m_w = m_k[:, None] & (o_byte < BYTES)[None, :]
            b_byte = tl.load(p_w + k[:, None] * BYTES + o_byte[None, :], mask=m_w, other=ZERO)  # [BK, BN // 2]
            b_w = numbers(b_byte, b_x.dtype)  # [BK, BN]
        else:
            m_w = m_k[:, None] & m_n[None, :]
            b_byte = tl.load(p_w + k[:, None] * BYTES + f[None, :] // 2, mask=m_w, other=ZERO)  # [BK, BN]
            b_w = number_of(b_byte, f[None, :], b_x.dtype)  # [BK, BN]
        b_scale = tl.load(p_scale + start // BK * F, mask=m_n, other=0.0).to(ACC)  # [BN]
        if DOT:
            acc += tl.dot(b_x, b_w, input_precision=TILE.precision, out_dtype=ACC) * b_scale[None, :]
        else:
            acc += b_x[:, :, None].to(ACC) * (b_w.to(ACC) * b_scale[None, :])[None, :, :]

    # Epilogue: bias and activation, then y.
    if not DOT:
        acc = tl.sum(acc, 1)
    _, b_y = bias_and_activation(acc, p_bias, position, f, m_n, F, EPILOGUE)
    o_y = b.to(tl.int64)[:, None] * SHAPE.out_numel + position.to(tl.int64) * F + f[None, :]
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_b[:, None] & m_n[None, :])  # [BB, BN]


@triton.jit(do_not_specialize=["B"])
def four_bits_input_grad_kernel(
    p_g,  # (B, O0, O1, OH, OW, F), with OW and F dense
    p_w,  # (P, D, ceil(F / 2)) bytes, D = T * C // G
    p_scale,  # (P, ceil(D / 32), F)
    p_dx,  # (B, sites, C)
    B,
    g_pitch,  # the strides of g along B, O0, O1 and OH, in positions
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """dx[b, s, c] = sum over f, and p, t with site(p, t) = s, of g[b, p, f] * w[p, t, c, f], w = number * scale.

    A program computes one site, BB samples and BN <= 32 channels of one group: for a tap and a filter, these have two
    scales at most. k counts (tap, filter). Grid: blocks of samples, blocks of channels, groups, sites.
    """
    C: tl.constexpr = SHAPE.channels  # of all groups
    CG: tl.constexpr = SHAPE.group_channels
    F: tl.constexpr = SHAPE.filters
    FG: tl.constexpr = SHAPE.group_filters
    G: tl.constexpr = SHAPE.groups
    T: tl.constexpr = SHAPE.kernel[0] * SHAPE.kernel[1] * SHAPE.kernel[2] * SHAPE.kernel[3]
    FE: tl.constexpr = FG + (FG % 2 if G == 1 else 0)  # filters of a tap in k: whole bytes, where there is one group
    PAIRS: tl.constexpr = FE % 2 == 0
    BYTES: tl.constexpr = (F + 1) // 2
    SCALES: tl.constexpr = (T * CG + ENTRIES - 1) // ENTRIES
    O1: tl.constexpr = SHAPE.outputs[1]
    OH: tl.constexpr = SHAPE.outputs[2]
    OW: tl.constexpr = SHAPE.outputs[3]
    BB: tl.constexpr = TILE.block_b
    BK: tl.constexpr = TILE.block_k
    BN: tl.constexpr = TILE.block_n
    DOT: tl.constexpr = TILE.dot
    ACC: tl.constexpr = tl.float64 if p_g.dtype.element_ty == tl.float64 else tl.float32
    tl.static_assert(BN <= ENTRIES)

    # Tile: samples b, channels c, a site.
    b, m_b, c0, pid = block_of(B, BB, CG, BN)
    group = (pid % G).to(tl.int32)
    c = c0 + tl.arange(0, BN)
    m_n = c < CG
    site, i0, i1, ih, iw = place_of(pid // G, SHAPE.inputs[2], SHAPE.inputs[3], SHAPE.inputs[1], SHAPE)

    # Addresses: the site in padded coordinates, and the samples [BB].
    i0, i1, ih, iw = i0 + SHAPE.pad[0], i1 + SHAPE.pad[1], ih + SHAPE.pad[2], iw + SHAPE.pad[3]
    p_g += b.to(tl.int64) * g_pitch[0] * F + group * FG

    # Loop: taps and their filters.
    if DOT:
        acc = tl.zeros((BB, BN), ACC)
    else:
        acc = tl.zeros((BB, BN, BK), ACC)  # summed over k once, after the loop
    for start in range(0, T * FE, BK):
        t, o0, o1, oh, ow, f, m_k = read_at(start + tl.arange(0, BK), i0, i1, ih, iw, FE, FG, SHAPE)
        o_g = (o0 * g_pitch[1] + o1 * g_pitch[2] + oh * g_pitch[3] + ow) * F + f  # [BK]
        b_g = tl.load(p_g[:, None] + o_g[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
        position = (((o0 * O1 + o1) * OH + oh) * OW + ow).to(tl.int64)
        f += group * FG
        if PAIRS:
            j = start // 2 + tl.arange(0, BK // 2)
            u, q0, q1, qh, qw, byte, m_j = read_at(j, i0, i1, ih, iw, FE // 2, (FG + 1) // 2, SHAPE)
            # A byte j holds the filters 2 * j and 2 * j + 1 of k: the same windows, counted in bytes.
            o_j = (((q0 * O1 + q1) * OH + qh) * OW + qw).to(tl.int64) * (T * CG * BYTES)
            o_j += u * (CG * BYTES) + group * FG // 2 + byte  # [BK // 2]
            m_w = m_n[:, None] & m_j[None, :]
            b_byte = tl.load(p_w + c[:, None] * BYTES + o_j[None, :], mask=m_w, other=ZERO)  # [BN, BK // 2]
            b_w = numbers(b_byte, ACC)  # [BN, BK]
        else:
            o_w = position * (T * CG * BYTES) + t * (CG * BYTES) + f // 2  # [BK]
            m_w = m_n[:, None] & m_k[None, :]
            b_byte = tl.load(p_w + c[:, None] * BYTES + o_w[None, :], mask=m_w, other=ZERO)  # [BN, BK]
            b_w = number_of(b_byte, f[None, :], ACC)  # [BN, BK]
        entry = t * CG + c0  # [BK], the entry of the window that is the block's first channel
        first = entry // ENTRIES  # its scale; later channels of the block have the same or the next
        p_k = p_scale + position * (SCALES * F) + first * F + f  # [BK]
        b_first = tl.load(p_k, mask=m_k, other=0.0).to(ACC)  # [BK]
        b_next = tl.load(p_k + F, mask=m_k & (first + 1 < SCALES), other=0.0).to(ACC)  # [BK]
        in_first = (entry % ENTRIES)[None, :] + tl.arange(0, BN)[:, None] < ENTRIES  # [BN, BK]
        b_w = b_w * tl.where(in_first, b_first[None, :], b_next[None, :])
        if DOT:
            b_w = b_w.to(b_g.dtype)
        acc = multiply_transposed(acc, b_g, b_w, TILE)

    # Epilogue: dx.
    if not DOT:
        acc = tl.sum(acc, 2)
    o_dx = b.to(tl.int64)[:, None] * SHAPE.in_numel + site.to(tl.int64) * C + group * CG + c[None, :]
    tl.store(p_dx + o_dx, acc.to(p_dx.dtype.element_ty), mask=m_b[:, None] & m_n[None, :])  # [BB, BN]
