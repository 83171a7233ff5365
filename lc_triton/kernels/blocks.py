"""What `gather`, `four_bits`, `four_bits_vector` and `low_rank` share: decoding a program, windows, the product.

Their programs own one place, or a few, and no band. A place is an output position, or of the input gradient a site;
columns are filters, or of the input gradient channels.
"""

import triton
import triton.language as tl

from lc_triton.kernels.common import decode_k, unbounded


@triton.jit
def block_of(B, BB: tl.constexpr, COLUMNS: tl.constexpr, BN: tl.constexpr):
    """Decode the number of a program: its samples b [BB], whether they exist, its first column, and the rest, which
    counts groups and places.

    The blocks of samples of one place run side by side, so that its weights come from memory once.
    """
    pid = tl.program_id(0)
    n_b = tl.cdiv(B, BB)
    b = (pid % n_b) * BB + tl.arange(0, BB)
    pid = pid // n_b
    BLOCKS: tl.constexpr = (COLUMNS + BN - 1) // BN
    return b, b < B, (pid % BLOCKS).to(tl.int32) * BN, pid // BLOCKS


@triton.jit
def place_of(pid, H: tl.constexpr, W: tl.constexpr, LEAD: tl.constexpr, SHAPE: tl.constexpr):
    """Place number pid, in 64 bits if SHAPE.wide, and its four coordinates. LEAD, H and W are the sizes of the last
    three dimensions.
    """
    place = pid.to(tl.int64) if SHAPE.wide else pid.to(tl.int32)
    lead = place // (H * W)
    return place, lead // LEAD, lead % LEAD, place // W % H, place % W


@triton.jit
def window_sites(k, group, o0, o1, oh, ow, x_pitch, SHAPE: tl.constexpr):
    """The entries k of the window of position (o0, o1, oh, ow): the offset of each in a sample of x, and whether it
    exists inside the input. Both have the shape of k.
    """
    C: tl.constexpr = SHAPE.group_channels
    K0: tl.constexpr = SHAPE.kernel[0]
    K1: tl.constexpr = SHAPE.kernel[1]
    KH: tl.constexpr = SHAPE.kernel[2]
    KW: tl.constexpr = SHAPE.kernel[3]
    t0, t1, kh, kw, c = decode_k(k, K0, K1, KH, KW, C)
    s0, s1 = o0 * SHAPE.stride[0] - SHAPE.pad[0], o1 * SHAPE.stride[1] - SHAPE.pad[1]
    sh, sw = oh * SHAPE.stride[2] - SHAPE.pad[2], ow * SHAPE.stride[3] - SHAPE.pad[3]
    i0, i1 = s0 + t0 * SHAPE.dilation[0], s1 + t1 * SHAPE.dilation[1]
    ih, iw = sh + kh * SHAPE.dilation[2], sw + kw * SHAPE.dilation[3]
    m = k < K0 * K1 * KH * KW * C
    m = m & (ih >= 0) & (ih < SHAPE.inputs[2]) & (iw >= 0) & (iw < SHAPE.inputs[3])
    if SHAPE.lead:
        m = m & (i0 >= 0) & (i0 < SHAPE.inputs[0]) & (i1 >= 0) & (i1 < SHAPE.inputs[1])
    return (i0 * x_pitch[1] + i1 * x_pitch[2] + ih * x_pitch[3] + iw) * SHAPE.channels + group * C + c, m


@triton.jit
def read_at(k, i0, i1, ih, iw, N: tl.constexpr, LAST: tl.constexpr, SHAPE: tl.constexpr):
    """Decode indices k of the input gradient's loop over taps and filters: the tap, the position (o0, o1, oh, ow) whose
    window reads the site (i0, i1, ih, iw) by it, the filter, and whether both exist. All have the shape of k.

    The site is counted in the padded input. A tap has N filters (or bytes or blocks of them), of which LAST exist.
    """
    K0: tl.constexpr = SHAPE.kernel[0]
    K1: tl.constexpr = SHAPE.kernel[1]
    KH: tl.constexpr = SHAPE.kernel[2]
    KW: tl.constexpr = SHAPE.kernel[3]
    S0: tl.constexpr = SHAPE.stride[0]
    S1: tl.constexpr = SHAPE.stride[1]
    SH: tl.constexpr = SHAPE.stride[2]
    SW: tl.constexpr = SHAPE.stride[3]
    t0, t1, kh, kw, f = decode_k(k, K0, K1, KH, KW, N)
    m = (k < K0 * K1 * KH * KW * N) & (f < LAST)
    d0, d1 = i0 - t0 * SHAPE.dilation[0], i1 - t1 * SHAPE.dilation[1]
    dh, dw = ih - kh * SHAPE.dilation[2], iw - kw * SHAPE.dilation[3]
    m = m & (d0 >= 0) & (d1 >= 0) & (dh >= 0) & (dw >= 0)
    o0, o1, oh, ow = unbounded(d0) // S0, unbounded(d1) // S1, unbounded(dh) // SH, unbounded(dw) // SW
    m = m & (o0 * S0 == d0) & (o1 * S1 == d1) & (oh * SH == dh) & (ow * SW == dw)
    m = m & (o0 < SHAPE.outputs[0]) & (o1 < SHAPE.outputs[1]) & (oh < SHAPE.outputs[2]) & (ow < SHAPE.outputs[3])
    return ((t0 * K1 + t1) * KH + kh) * KW + kw, o0, o1, oh, ow, f, m


@triton.jit
def multiply(acc, b_x, b_w, TILE: tl.constexpr):
    """Add x [BB, BK] . w [BK, BN] to acc [BB, BN]; without `tl.dot`, add the products to acc [BB, BK, BN], which is
    summed over k after the loop.
    """
    if TILE.dot:
        acc = tl.dot(b_x, b_w, acc, input_precision=TILE.precision, out_dtype=acc.dtype)
    else:
        acc += b_x[:, :, None].to(acc.dtype) * b_w[None, :, :].to(acc.dtype)
    return acc


@triton.jit
def multiply_transposed(acc, b_g, b_w, TILE: tl.constexpr):
    """Add g [BB, BK] . w^T, of w [BN, BK], to acc [BB, BN]; without `tl.dot`, add the products to acc [BB, BN, BK],
    which is summed over k after the loop.
    """
    if TILE.dot:
        acc = tl.dot(b_g, tl.trans(b_w), acc, input_precision=TILE.precision, out_dtype=acc.dtype)
    else:
        acc += b_g[:, None, :].to(acc.dtype) * b_w[None, :, :].to(acc.dtype)
    return acc
