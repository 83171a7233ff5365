"""The passes of a layer whose positions read the sites of a table: no window is copied.

The site of tap t of position p is a load, `table[p, t]`, where the other kernels compute it; -1 is no site, and neither
x nor the weight is loaded for it. The input gradient takes the taps that read its site from the inverse table, in their
order, so that no sum depends on the order in which programs run. There are no groups.
"""

import triton
import triton.language as tl

from lc_triton.kernels.blocks import block_of, multiply, multiply_transposed
from lc_triton.kernels.common import bias_and_activation, unbounded


@triton.jit
def split_index(k, N: tl.constexpr):
    """Decode indices k of a k-loop: the tap (or reader of a site) k // N, and its channel (or filter) k % N."""
    if N & (N - 1) != 0:
        STEP: tl.constexpr = 16 * N if N < 1024 else 16384  # as in `common.decode_k`
        k = unbounded(k, STEP)
    return k // N, k % N


@triton.jit
def load_entries(p, t, m, N: tl.constexpr):
    """The entries t [BK] of a table, in 64 bits; -1 where m is false. In t, each number stands N times in a row."""
    RUN: tl.constexpr = min(N & -N, t.shape[0])
    found = tl.load(p + t, mask=m, other=-1)  # [BK]
    # Triton cannot know that entries repeat. Told so, it knows that their channels are neighbours in memory.
    return tl.max_constancy(found, RUN).to(tl.int64)


@triton.jit(do_not_specialize=["B", "x_pitch"])
def gather_forward_kernel(
    p_x,  # (B, S, C), with S and C dense; S sites
    p_table,  # (P, T), the site of each tap, or -1
    p_w,  # (P, T, C, F)
    p_bias,  # (P, F), (F) or None: EPILOGUE.bias
    p_y,  # (B, P, F)
    p_z,  # (B, P, F), or None
    B,
    x_pitch,  # the stride of x along B, in sites
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """y = act(z), and z if asked for: z[b, p, f] = sum over t, c of x[b, table[p, t], c] * w[p, t, c, f] + bias[p, f].

    A program computes one position, BB samples and BN filters; k counts (tap, channel).
    Grid: blocks of samples, blocks of filters, positions.
    """
    C: tl.constexpr = SHAPE.channels
    F: tl.constexpr = SHAPE.filters
    T: tl.constexpr = SHAPE.taps
    KT: tl.constexpr = T * C
    BB: tl.constexpr = TILE.block_b
    BK: tl.constexpr = TILE.block_k
    BN: tl.constexpr = TILE.block_n
    DOT: tl.constexpr = TILE.dot
    ACC: tl.constexpr = tl.float64 if p_x.dtype.element_ty == tl.float64 else tl.float32

    # Tile: samples b, filters f, a position.
    b, m_b, f0, position = block_of(B, BB, F, BN)
    f = f0 + tl.arange(0, BN)
    m_n = f < F
    position = position.to(tl.int64)

    # Addresses: the position's row of the table, its weights, the samples [BB].
    p_table += position * T
    p_w += position * (KT * F)
    p_x += b.to(tl.int64) * x_pitch * C

    # Loop: taps and their channels.
    if DOT:
        acc = tl.zeros((BB, BN), ACC)
    else:
        acc = tl.zeros((BB, BK, BN), ACC)  # summed over k once, after the loop
    for start in range(0, KT, BK):
        k = start + tl.arange(0, BK)
        t, c = split_index(k, C)
        site = load_entries(p_table, t, k < KT, C)  # [BK]
        m_k = site >= 0
        o_x = site * C + c  # [BK]
        b_x = tl.load(p_x[:, None] + o_x[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
        b_w = tl.load(p_w + k[:, None] * F + f[None, :], mask=m_k[:, None] & m_n[None, :], other=0.0)  # [BK, BN]
        acc = multiply(acc, b_x, b_w.to(b_x.dtype), TILE)

    # Epilogue: bias and activation, then y and z.
    if not DOT:
        acc = tl.sum(acc, 1)
    b_z, b_y = bias_and_activation(acc, p_bias, position, f, m_n, F, EPILOGUE)
    o_y = b.to(tl.int64)[:, None] * (SHAPE.positions * F) + position * F + f[None, :]
    m_y = m_b[:, None] & m_n[None, :]
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_y)  # [BB, BN]
    if EPILOGUE.store_z:
        tl.store(p_z + o_y, b_z.to(p_z.dtype.element_ty), mask=m_y)  # [BB, BN]


@triton.jit(do_not_specialize=["B", "g_pitch"])
def gather_input_grad_kernel(
    p_g,  # (B, P, F), with P and F dense
    p_first,  # (S + 1,), where the readers of each site begin in p_taps
    p_taps,  # (readers,), p * T + t of each tap that reads a site, site after site
    p_w,  # (P, T, C, F)
    p_dx,  # (B, S, C)
    B,
    g_pitch,  # the stride of g along B, in positions
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """dx[b, s, c] = sum over f, and p, t with table[p, t] = s, of g[b, p, f] * w[p, t, c, f].

    A program computes one site, BB samples and BN channels; k counts (reader of the site, filter).
    Grid: blocks of samples, blocks of channels, sites.
    """
    C: tl.constexpr = SHAPE.channels
    F: tl.constexpr = SHAPE.filters
    T: tl.constexpr = SHAPE.taps
    BB: tl.constexpr = TILE.block_b
    BK: tl.constexpr = TILE.block_k
    BN: tl.constexpr = TILE.block_n
    DOT: tl.constexpr = TILE.dot
    ACC: tl.constexpr = tl.float64 if p_g.dtype.element_ty == tl.float64 else tl.float32

    # Tile: samples b, channels c, a site.
    b, m_b, c0, site = block_of(B, BB, C, BN)
    c = c0 + tl.arange(0, BN)
    m_n = c < C
    site = site.to(tl.int64)

    # Addresses: the site's readers, the samples [BB].
    first = tl.load(p_first + site)
    readers = tl.load(p_first + site + 1) - first
    if SHAPE.wide:  # some site has 2^31 pairs of a reader and a filter
        readers = readers.to(tl.int64)
    else:
        readers = readers.to(tl.int32)
    p_taps += first
    p_g += b.to(tl.int64) * g_pitch * F

    # Loop: readers and their filters.
    if DOT:
        acc = tl.zeros((BB, BN), ACC)
    else:
        acc = tl.zeros((BB, BN, BK), ACC)  # summed over k once, after the loop
    for start in range(0, readers * F, BK):
        k = start + tl.arange(0, BK)
        r, f = split_index(k, F)
        tap = load_entries(p_taps, r, k < readers * F, F)  # [BK]
        m_k = tap >= 0
        o_g = tap // T * F + f  # [BK]
        o_w = tap * (C * F) + f  # [BK]
        b_g = tl.load(p_g[:, None] + o_g[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
        m_w = m_n[:, None] & m_k[None, :]
        b_w = tl.load(p_w + c[:, None] * F + o_w[None, :], mask=m_w, other=0.0)  # [BN, BK]
        acc = multiply_transposed(acc, b_g, b_w.to(b_g.dtype), TILE)

    # Epilogue: dx.
    if not DOT:
        acc = tl.sum(acc, 2)
    o_dx = b.to(tl.int64)[:, None] * (SHAPE.sites * C) + site * C + c[None, :]
    tl.store(p_dx + o_dx, acc.to(p_dx.dtype.element_ty), mask=m_b[:, None] & m_n[None, :])  # [BB, BN]


@triton.jit(do_not_specialize=["B", "x_pitch", "g_pitch"])
def gather_weight_grad_kernel(
    p_x,  # (B, S, C), with S and C dense
    p_table,  # (P, T), the site of each tap, or -1
    p_g,  # (B, P, F), with P and F dense
    p_dw,  # (P, T, C, F)
    B,
    x_pitch,  # the stride of x along B, in sites
    g_pitch,  # the stride of g along B, in positions
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """dw[p, t, c, f] = sum over b of x[b, table[p, t], c] * g[b, p, f], and 0 where table[p, t] is -1.

    A program computes one position, BK of its pairs (tap, channel) and BN filters, for all samples.
    Grid: blocks of k, blocks of filters, positions.
    """
    C: tl.constexpr = SHAPE.channels
    F: tl.constexpr = SHAPE.filters
    T: tl.constexpr = SHAPE.taps
    KT: tl.constexpr = T * C
    BB: tl.constexpr = TILE.block_b
    BK: tl.constexpr = TILE.block_k
    BN: tl.constexpr = TILE.block_n
    ACC: tl.constexpr = tl.float64 if p_x.dtype.element_ty == tl.float64 else tl.float32

    # Tile: indices k, filters f, a position. The blocks of k of the same filters run side by side: they share g.
    pid = tl.program_id(0)
    CHUNKS: tl.constexpr = (KT + BK - 1) // BK
    k = (pid % CHUNKS).to(tl.int32) * BK + tl.arange(0, BK)
    pid = pid // CHUNKS
    BLOCKS: tl.constexpr = (F + BN - 1) // BN
    f = (pid % BLOCKS).to(tl.int32) * BN + tl.arange(0, BN)
    m_n = f < F
    position = (pid // BLOCKS).to(tl.int64)

    # Addresses: the site and channel of each k [BK], and the filters of g [BN].
    t, c = split_index(k, C)
    site = load_entries(p_table + position * T, t, k < KT, C)  # [BK]
    m_k = site >= 0
    o_x = site * C + c  # [BK]
    p_g += position * F + f

    # Loop: samples.
    acc = tl.zeros((BK, BN), ACC)
    for start in range(0, B, BB):
        b = start + tl.arange(0, BB)
        m_b = b < B
        row = b.to(tl.int64)
        p_b = p_x + row * x_pitch * C
        b_x = tl.load(p_b[:, None] + o_x[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
        o_g = (row * g_pitch * F)[:, None]
        b_g = tl.load(p_g[None, :] + o_g, mask=m_b[:, None] & m_n[None, :], other=0.0)  # [BB, BN]
        if TILE.dot:
            acc = tl.dot(tl.trans(b_x), b_g, acc, input_precision=TILE.precision, out_dtype=ACC)
        else:
            acc += tl.sum(b_x[:, :, None].to(ACC) * b_g[:, None, :].to(ACC), 0)

    # Epilogue: dw. A tap that reads no site has the gradient 0; its sum, of zeros times g, is NaN if g is not finite.
    acc = tl.where(m_k[:, None], acc, 0.0)
    p_dw += position * (KT * F)
    m_dw = (k < KT)[:, None] & m_n[None, :]
    tl.store(p_dw + k[:, None] * F + f[None, :], acc.to(p_dw.dtype.element_ty), mask=m_dw)  # [BK, BN]
