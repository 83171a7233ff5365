"""The passes on weights of 4 bits of few samples, without `tl.dot`: eight numbers a load.

A program owns one position (of the input gradient: one site), BB samples and BN filters (channels) of one group. A
thread loads words, each of eight filters of one entry of a window, and multiplies and adds in its own registers. Side
by side, threads have WORDS words of an entry, ROWS entries and GROUPS scales (of the input gradient: blocks of taps).

`kernels/four_bits.py` takes more instructions for a weight: it brings the numbers to tensor cores, which then multiply
absent samples mostly, or it scales each of them.
"""
# ruff: noqa: RUF005  (Triton's language has no starred items of a tuple)

import triton
import triton.language as tl

from lc_triton.kernels.blocks import block_of, place_of, read_at, window_sites
from lc_triton.kernels.common import bias_and_activation

ZEROS: tl.constexpr = tl.constexpr(0x88888888 - 2**32)  # eight zeros: a number is stored plus 8


@triton.jit
def magic_number():
    """2^23 as the bits of a float, whose last bits then count ones, in a register.

    One instruction masks bits and sets others, but it has room for one constant: the compiler must not know this one.
    The grid has one dimension, so that zero is added; bits that may carry keep the sum from becoming two constants.
    """
    return 0x4B000000 + tl.program_id(1) * 0x01000000


@triton.jit
def number_in(b, magic, J: tl.constexpr):
    """Number J of each word, exactly: bits of a float at 2^23, which holds the first five where they are."""
    PLACE: tl.constexpr = J % 5
    UNIT: tl.constexpr = 16.0**-PLACE
    if J >= 5:
        b = b >> 20
    b_float = ((b & (15 << (4 * PLACE))) | magic).to(tl.float32, bitcast=True)
    return tl.fma(b_float, tl.full([], UNIT, tl.float32), tl.full([], -8388608.0 * UNIT - 8.0, tl.float32))


@triton.jit
def numbers_in(b, magic):
    """The eight numbers of each word."""
    found = ()
    for j in tl.static_range(8):
        found = found + (number_in(b, magic, j),)
    return found


@triton.jit
def accumulators(COUNT: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """COUNT blocks of zeros."""
    found = ()
    for _ in tl.static_range(COUNT):
        found = found + (tl.zeros((GROUPS, ROWS, WORDS), tl.float32),)
    return found


@triton.jit
def samples_of(B, BB: tl.constexpr, COLUMNS: tl.constexpr, BN: tl.constexpr):
    """A program's first sample, its first column, and the rest of its number."""
    _, _, inner, pid = block_of(B, BB, COLUMNS, BN)
    return (tl.program_id(0) % tl.cdiv(B, BB)) * BB, inner, pid


@triton.jit
def load_words(p, k, LAST: tl.constexpr, PASSES: tl.constexpr, LINE: tl.constexpr):
    """The words at p of the entries k [GROUPS, ROWS] < LAST, then of as many behind each group's: PASSES blocks."""
    ROWS: tl.constexpr = k.shape[1]
    found = ()
    for i in tl.static_range(PASSES):
        m = (k + i * ROWS < LAST)[:, :, None]
        found = found + (tl.load(p + i * ROWS * LINE, mask=m, other=ZEROS),)
    return found


@triton.jit(do_not_specialize=["B"])
def four_bits_vector_forward_kernel(
    p_x,  # (B, I0, I1, IH, IW, C) with rows of sites dense; x_pitch holds the other strides, in sites
    p_w,  # (P, D, F / 2) bytes, D = T * C // G
    p_scale,  # (P, ceil(D / 32), F)
    p_bias,  # (P, F) or (F)
    p_y,  # (B, P, F)
    B,
    x_pitch,
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """y = act(x . w + bias); a step of the k-loop has GROUPS scales."""
    C: tl.constexpr = SHAPE.group_channels
    F: tl.constexpr = SHAPE.filters
    FG: tl.constexpr = SHAPE.group_filters
    G: tl.constexpr = SHAPE.groups
    KT: tl.constexpr = SHAPE.kernel[0] * SHAPE.kernel[1] * SHAPE.kernel[2] * SHAPE.kernel[3] * C
    ENTRIES: tl.constexpr = 32  # of a window that share a scale, as in lc_triton.ops.quantized
    SCALES: tl.constexpr = (KT + ENTRIES - 1) // ENTRIES
    LINE: tl.constexpr = F // 8  # words of an entry
    BN: tl.constexpr = TILE.block_n
    BK: tl.constexpr = TILE.block_k
    WORDS: tl.constexpr = BN // 8
    ROWS: tl.constexpr = TILE.rows
    BB: tl.constexpr = TILE.block_b
    PASSES: tl.constexpr = ENTRIES // ROWS
    GROUPS: tl.constexpr = BK // ENTRIES
    RUNS: tl.constexpr = C % ROWS == 0 and (C % ENTRIES == 0 or ENTRIES % C == 0)  # a pass lies within one tap

    # Tile.
    b0, inner, pid = samples_of(B, BB, FG, BN)
    group = (pid % G).to(tl.int32)
    f0 = group * FG + inner
    position, o0, o1, oh, ow = place_of(pid // G, SHAPE.outputs[2], SHAPE.outputs[3], SHAPE.outputs[1], SHAPE)
    q, row = tl.arange(0, GROUPS), tl.arange(0, ROWS)

    # Addresses. Where a word has no filters of the group, the first one is read again.
    word = tl.where(inner + 8 * tl.arange(0, WORDS) < FG, f0 // 8 + tl.arange(0, WORDS), f0 // 8)
    p_words = (p_w + position.to(tl.int64) * (KT * (F // 2))).to(tl.pointer_type(tl.int32), bitcast=True)
    k = q[:, None] * ENTRIES + row[None, :]  # [GROUPS, ROWS]
    p_words += k[:, :, None] * LINE + word[None, None, :]
    p_scale += position.to(tl.int64) * (SCALES * F) + q[:, None] * F + 8 * word[None, :]

    # Loop over scales, eight accumulators a word and sample. The words of a step are loaded in the one before.
    magic = magic_number()
    acc = accumulators(8 * BB, GROUPS, ROWS, WORDS)
    words = load_words(p_words, k, KT, PASSES, LINE)
    for start in range(0, KT, BK):
        first = start // ENTRIES + q  # [GROUPS]
        following = load_words(p_words + (start + BK) * LINE, start + BK + k, KT, PASSES, LINE)
        sums = accumulators(8 * BB, GROUPS, ROWS, WORDS)
        for i in tl.static_range(PASSES):
            if RUNS:
                if i * ROWS % C == 0:
                    o_q, m_q = window_sites(first * ENTRIES + i * ROWS, group, o0, o1, oh, ow, x_pitch, SHAPE)
                o_x, m_x = o_q[:, None] + (i * ROWS % C + row)[None, :], m_q[:, None]
            else:
                o_x, m_x = window_sites(start + k + i * ROWS, group, o0, o1, oh, ow, x_pitch, SHAPE)
            numbers = numbers_in(words[i], magic)
            added = ()
            for s in tl.static_range(BB):
                p_s = p_x + (b0 + s).to(tl.int64) * x_pitch[0] * SHAPE.channels
                b_x = tl.load(p_s + o_x, mask=m_x & (b0 + s < B), other=0.0).to(tl.float32)  # [GROUPS, ROWS]
                for j in tl.static_range(8):
                    added = added + (sums[8 * s + j] + b_x[:, :, None] * numbers[j],)
            sums = added
        scales = ()
        for j in tl.static_range(8):
            b_scale = tl.load(p_scale + start // ENTRIES * F + j, mask=(first < SCALES)[:, None], other=0.0)
            scales = scales + (b_scale.to(tl.float32)[:, None, :],)
        scaled = ()
        for j in tl.static_range(8 * BB):
            scaled = scaled + (acc[j] + sums[j] * scales[j % 8],)
        acc = scaled
        words = following

    # Epilogue. Joined, eight filters of a word lie side by side.
    f, m_n = f0 + tl.arange(0, BN), inner + tl.arange(0, BN) < FG
    for s in tl.static_range(BB):
        even = tl.join(tl.join(acc[8 * s], acc[8 * s + 4]), tl.join(acc[8 * s + 2], acc[8 * s + 6]))
        odd = tl.join(tl.join(acc[8 * s + 1], acc[8 * s + 5]), tl.join(acc[8 * s + 3], acc[8 * s + 7]))
        b_z = tl.sum(tl.reshape(tl.join(even, odd), (GROUPS * ROWS, BN)), 0)
        _, b_y = bias_and_activation(b_z[None, :], p_bias, position, f, m_n, F, EPILOGUE)
        o_y = (b0 + s).to(tl.int64) * SHAPE.out_numel + position.to(tl.int64) * F + f[None, :]
        tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_n[None, :] & (b0 + s < B))  # [1, BN]


@triton.jit(do_not_specialize=["B"])
def four_bits_vector_input_grad_kernel(
    p_g,  # (B, O0, O1, OH, OW, F) with rows of positions dense; g_pitch holds the other strides, in positions
    p_w,  # (P, D, F / 2) bytes, D = T * C // G
    p_scale,  # (P, ceil(D / 32), F)
    p_dx,  # (B, sites, C)
    B,
    g_pitch,
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """dx = g . w^T; a step is GROUPS pairs of a tap and a block of filters, whose BN channels have one scale each."""
    C: tl.constexpr = SHAPE.channels
    CG: tl.constexpr = SHAPE.group_channels
    F: tl.constexpr = SHAPE.filters
    FG: tl.constexpr = SHAPE.group_filters
    G: tl.constexpr = SHAPE.groups
    T: tl.constexpr = SHAPE.kernel[0] * SHAPE.kernel[1] * SHAPE.kernel[2] * SHAPE.kernel[3]
    ENTRIES: tl.constexpr = 32
    SCALES: tl.constexpr = (T * CG + ENTRIES - 1) // ENTRIES
    LINE: tl.constexpr = F // 8
    BN: tl.constexpr = TILE.block_n
    BK: tl.constexpr = TILE.block_k
    WORDS: tl.constexpr = TILE.words
    ROWS: tl.constexpr = TILE.rows
    BB: tl.constexpr = TILE.block_b
    PASSES: tl.constexpr = BN // ROWS
    GROUPS: tl.constexpr = BK // (8 * WORDS)
    BLOCKS: tl.constexpr = (FG + 8 * WORDS - 1) // (8 * WORDS)
    tl.static_assert(CG % BN == 0 and ENTRIES % BN == 0)

    # Tile.
    b0, c0, pid = samples_of(B, BB, CG, BN)
    group = (pid % G).to(tl.int32)
    site, i0, i1, ih, iw = place_of(pid // G, SHAPE.inputs[2], SHAPE.inputs[3], SHAPE.inputs[1], SHAPE)
    i0, i1, ih, iw = i0 + SHAPE.pad[0], i1 + SHAPE.pad[1], ih + SHAPE.pad[2], iw + SHAPE.pad[3]
    q, row, word = tl.arange(0, GROUPS), tl.arange(0, ROWS), tl.arange(0, WORDS)

    # Addresses.
    p_words = p_w.to(tl.pointer_type(tl.int32), bitcast=True) + (c0 + row)[None, :, None] * LINE + group * (FG // 8)
    p_g += group * FG
    p_scale += group * FG

    # Loop over taps and blocks of filters, an accumulator a word and sample.
    magic = magic_number()
    acc = accumulators(PASSES * BB, GROUPS, ROWS, WORDS)
    for start in range(0, T * BLOCKS, GROUPS):
        t, o0, o1, oh, ow, block, m = read_at(start + q, i0, i1, ih, iw, BLOCKS, BLOCKS, SHAPE)  # [GROUPS]
        position = (((o0 * SHAPE.outputs[1] + o1) * SHAPE.outputs[2] + oh) * SHAPE.outputs[3] + ow).to(tl.int64)
        w = block[:, None] * WORDS + word[None, :]  # [GROUPS, WORDS]
        m_w = m[:, None] & (8 * w < FG)
        o_w = (position * (T * CG) + t * CG)[:, None] * LINE + w
        o_g = (o0 * g_pitch[1] + o1 * g_pitch[2] + oh * g_pitch[3] + ow)[:, None] * F + 8 * w
        o_scale = (position * SCALES + (t * CG + c0) // ENTRIES)[:, None] * F + 8 * w
        b_g = ()
        for j in tl.static_range(8):
            b_scale = tl.load(p_scale + o_scale + j, mask=m_w, other=0.0).to(tl.float32)  # [GROUPS, WORDS]
            for s in tl.static_range(BB):
                p_s = p_g + (b0 + s).to(tl.int64) * g_pitch[0] * F
                b_s = tl.load(p_s + o_g + j, mask=m_w & (b0 + s < B), other=0.0).to(tl.float32)
                b_g = b_g + ((b_s * b_scale)[:, None, :],)
        sums = ()
        for i in tl.static_range(PASSES):
            b_words = tl.load(p_words + o_w[:, None, :] + i * ROWS * LINE, mask=m_w[:, None, :], other=ZEROS)
            numbers = numbers_in(b_words, magic)
            for s in tl.static_range(BB):
                b_sum = acc[i * BB + s]
                for j in tl.static_range(8):
                    b_sum += b_g[j * BB + s] * numbers[j]
                sums = sums + (b_sum,)
        acc = sums

    # Epilogue.
    for i in tl.static_range(PASSES):
        c = group * CG + c0 + i * ROWS + row
        for s in tl.static_range(BB):
            b_dx = tl.sum(tl.sum(acc[i * BB + s], 2), 0)  # [ROWS]
            o_dx = (b0 + s).to(tl.int64) * SHAPE.in_numel + site.to(tl.int64) * C + c
            tl.store(p_dx + o_dx, b_dx.to(p_dx.dtype.element_ty), mask=b0 + s < B)  # [ROWS]
