"""The passes on weights of 4 bits of few samples, without `tl.dot`: eight numbers a load.

A program owns one position (of the input gradient: one site), BB samples and BN filters (channels) of one group. A
thread loads words of 32 bits, each of eight filters of one entry of a window, and multiplies and adds in its own
registers. A block [GROUPS, ROWS, WORDS] of words has WORDS words of ROWS entries, in GROUPS scales (of the input
gradient: in GROUPS pairs of a tap and a block of filters); a program takes several blocks a step, PASSES.

For few samples, `kernels/four_bits.py` takes more instructions for a weight: with `tl.dot`, tensor cores mostly
multiply rows of no sample; without, it scales each weight.
"""
# ruff: noqa: RUF005  (Triton's language has no starred items of a tuple)

import triton
import triton.language as tl

from lc_triton.kernels.blocks import block_of, place_of, read_at, window_sites
from lc_triton.kernels.common import bias_and_activation

ZEROS: tl.constexpr = tl.constexpr(0x88888888 - 2**32)  # eight zeros: a number is stored plus 8


@triton.jit
def magic_number():
    """The bits of the float 2^23, whose last bit counts 1, as a number that the compiler does not know.

    One instruction can mask some bits and set others, but it takes one constant only: the mask. The other must be in a
    register. `program_id(1)` is 0, as the grid has one dimension; its factor overlaps the constant, so that the
    compiler cannot make two masks of the sum.
    """
    return 0x4B000000 + tl.program_id(1) * 0x01000000


@triton.jit
def number_in(b, magic, J: tl.constexpr):
    """Number J of each word b, exactly, in float32: its four bits minus 8.

    Set into the float 2^23 where they are, the bits count 16^PLACE, which the multiplication takes out. The 23 bits of
    a mantissa hold the first five numbers of a word so; the last three are shifted down first.
    """
    PLACE: tl.constexpr = J % 5
    UNIT: tl.constexpr = 16.0**-PLACE
    if J >= 5:
        b = b >> 20
    b_float = ((b & (15 << (4 * PLACE))) | magic).to(tl.float32, bitcast=True)
    return tl.fma(b_float, tl.full([], UNIT, tl.float32), tl.full([], -8388608.0 * UNIT - 8.0, tl.float32))


@triton.jit
def numbers_in(b, magic):
    """The eight numbers of each word b, as a tuple of blocks of the shape of b."""
    found = ()
    for j in tl.static_range(8):
        found = found + (number_in(b, magic, j),)
    return found


@triton.jit
def accumulators(COUNT: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """COUNT blocks [GROUPS, ROWS, WORDS] of zeros."""
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
    """PASSES blocks of words [GROUPS, ROWS, WORDS]: at p those of entries k [GROUPS, ROWS], then those of the entries
    k + ROWS and so on, LINE words an entry. Entries from LAST on are zeros.
    """
    ROWS: tl.constexpr = k.shape[1]
    found = ()
    for i in tl.static_range(PASSES):
        m = (k + i * ROWS < LAST)[:, :, None]
        found = found + (tl.load(p + i * ROWS * LINE, mask=m, other=ZEROS),)  # [GROUPS, ROWS, WORDS]
    return found


@triton.jit(do_not_specialize=["B"])
def four_bits_vector_forward_kernel(
    p_x,  # (B, I0, I1, IH, IW, C), with IW and C dense
    p_w,  # (P, D, F / 2) bytes, D = T * C // G
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

    A program computes one position, BB samples and BN filters of one group; 8 divides the filters of a group.
    Grid: blocks of samples, blocks of filters, groups, positions.
    """
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

    # Tile: samples from b0 on, filters from f0 on, a position.
    b0, inner, pid = samples_of(B, BB, FG, BN)
    group = (pid % G).to(tl.int32)
    f0 = group * FG + inner
    position, o0, o1, oh, ow = place_of(pid // G, SHAPE.outputs[2], SHAPE.outputs[3], SHAPE.outputs[1], SHAPE)
    q, row = tl.arange(0, GROUPS), tl.arange(0, ROWS)

    # Addresses: words of the first step [GROUPS, ROWS, WORDS], and the scales of their first filters [GROUPS, WORDS]. A
    # word that holds no filter of the group is replaced by the block's first one, and its results are not stored.
    word = tl.where(inner + 8 * tl.arange(0, WORDS) < FG, f0 // 8 + tl.arange(0, WORDS), f0 // 8)
    p_words = (p_w + position.to(tl.int64) * (KT * (F // 2))).to(tl.pointer_type(tl.int32), bitcast=True)
    k = q[:, None] * ENTRIES + row[None, :]  # [GROUPS, ROWS]
    p_words += k[:, :, None] * LINE + word[None, None, :]
    p_scale += position.to(tl.int64) * (SCALES * F) + q[:, None] * F + 8 * word[None, :]

    # Loop: scales, GROUPS of them a step. acc[8 * s + j] are the sums of sample s and filter j of each word. The words
    # of a step are loaded in the step before.
    magic = magic_number()
    acc = accumulators(8 * BB, GROUPS, ROWS, WORDS)
    words = load_words(p_words, k, KT, PASSES, LINE)
    for start in range(0, KT, BK):
        first = start // ENTRIES + q  # [GROUPS]
        following = load_words(p_words + (start + BK) * LINE, start + BK + k, KT, PASSES, LINE)
        sums = accumulators(8 * BB, GROUPS, ROWS, WORDS)
        for i in tl.static_range(PASSES):
            if RUNS:  # the entries of a pass are neighbours in memory: one site is decoded for a tap, not one an entry
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
            # The scales of filter j of each word [GROUPS, WORDS].
            b_scale = tl.load(p_scale + start // ENTRIES * F + j, mask=(first < SCALES)[:, None], other=0.0)
            scales = scales + (b_scale.to(tl.float32)[:, None, :],)
        scaled = ()
        for j in tl.static_range(8 * BB):
            scaled = scaled + (acc[j] + sums[j] * scales[j % 8],)
        acc = scaled
        words = following

    # Epilogue: bias and activation, then y. Joined three times, the last axes count the bits of j from the highest to
    # the lowest, so that the eight filters of a word lie side by side.
    f, m_n = f0 + tl.arange(0, BN), inner + tl.arange(0, BN) < FG
    for s in tl.static_range(BB):
        even = tl.join(tl.join(acc[8 * s], acc[8 * s + 4]), tl.join(acc[8 * s + 2], acc[8 * s + 6]))
        odd = tl.join(tl.join(acc[8 * s + 1], acc[8 * s + 5]), tl.join(acc[8 * s + 3], acc[8 * s + 7]))
        b_z = tl.sum(tl.reshape(tl.join(even, odd), (GROUPS * ROWS, BN)), 0)  # [BN]
        _, b_y = bias_and_activation(b_z[None, :], p_bias, position, f, m_n, F, EPILOGUE)
        o_y = (b0 + s).to(tl.int64) * SHAPE.out_numel + position.to(tl.int64) * F + f[None, :]
        tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_n[None, :] & (b0 + s < B))  # [1, BN]


@triton.jit(do_not_specialize=["B"])
def four_bits_vector_input_grad_kernel(
    p_g,  # (B, O0, O1, OH, OW, F), with OW and F dense
    p_w,  # (P, D, F / 2) bytes, D = T * C // G
    p_scale,  # (P, ceil(D / 32), F)
    p_dx,  # (B, sites, C)
    B,
    g_pitch,  # the strides of g along B, O0, O1 and OH, in positions
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """dx[b, s, c] = sum over f, and p, t with site(p, t) = s, of g[b, p, f] * w[p, t, c, f], w = number * scale.

    A program computes one site, BB samples and BN channels of one group. In a tap, these have one scale for each
    filter, so that g is scaled instead of the weights. A step is GROUPS pairs of a tap and a block of 8 * WORDS
    filters.
    Grid: blocks of samples, blocks of channels, groups, sites.
    """
    C: tl.constexpr = SHAPE.channels  # of all groups
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

    # Tile: samples from b0 on, channels from c0 on, a site in padded coordinates.
    b0, c0, pid = samples_of(B, BB, CG, BN)
    group = (pid % G).to(tl.int32)
    site, i0, i1, ih, iw = place_of(pid // G, SHAPE.inputs[2], SHAPE.inputs[3], SHAPE.inputs[1], SHAPE)
    i0, i1, ih, iw = i0 + SHAPE.pad[0], i1 + SHAPE.pad[1], ih + SHAPE.pad[2], iw + SHAPE.pad[3]
    q, row, word = tl.arange(0, GROUPS), tl.arange(0, ROWS), tl.arange(0, WORDS)

    # Addresses: the words of each channel of a pass [1, ROWS, 1]; g and scales from the group's first filter on.
    p_words = p_w.to(tl.pointer_type(tl.int32), bitcast=True) + (c0 + row)[None, :, None] * LINE + group * (FG // 8)
    p_g += group * FG
    p_scale += group * FG

    # Loop: taps and blocks of filters. acc[i * BB + s] are the sums of sample s and channel i * ROWS + row.
    magic = magic_number()
    acc = accumulators(PASSES * BB, GROUPS, ROWS, WORDS)
    for start in range(0, T * BLOCKS, GROUPS):
        t, o0, o1, oh, ow, block, m = read_at(start + q, i0, i1, ih, iw, BLOCKS, BLOCKS, SHAPE)  # [GROUPS]
        position = (((o0 * SHAPE.outputs[1] + o1) * SHAPE.outputs[2] + oh) * SHAPE.outputs[3] + ow).to(tl.int64)
        w = block[:, None] * WORDS + word[None, :]  # [GROUPS, WORDS]
        m_w = m[:, None] & (8 * w < FG)
        o_w = (position * (T * CG) + t * CG)[:, None] * LINE + w  # [GROUPS, WORDS]
        o_g = (o0 * g_pitch[1] + o1 * g_pitch[2] + oh * g_pitch[3] + ow)[:, None] * F + 8 * w  # [GROUPS, WORDS]
        o_scale = (position * SCALES + (t * CG + c0) // ENTRIES)[:, None] * F + 8 * w  # [GROUPS, WORDS]
        b_g = ()
        for j in tl.static_range(8):
            b_scale = tl.load(p_scale + o_scale + j, mask=m_w, other=0.0).to(tl.float32)  # [GROUPS, WORDS]
            for s in tl.static_range(BB):
                p_s = p_g + (b0 + s).to(tl.int64) * g_pitch[0] * F
                b_s = tl.load(p_s + o_g + j, mask=m_w & (b0 + s < B), other=0.0).to(tl.float32)  # [GROUPS, WORDS]
                b_g = b_g + ((b_s * b_scale)[:, None, :],)
        sums = ()
        for i in tl.static_range(PASSES):
            # The words of channels i * ROWS + row [GROUPS, ROWS, WORDS].
            b_words = tl.load(p_words + o_w[:, None, :] + i * ROWS * LINE, mask=m_w[:, None, :], other=ZEROS)
            numbers = numbers_in(b_words, magic)
            for s in tl.static_range(BB):
                b_sum = acc[i * BB + s]
                for j in tl.static_range(8):
                    b_sum += b_g[j * BB + s] * numbers[j]
                sums = sums + (b_sum,)
        acc = sums

    # Epilogue: dx.
    for i in tl.static_range(PASSES):
        c = group * CG + c0 + i * ROWS + row
        for s in tl.static_range(BB):
            b_dx = tl.sum(tl.sum(acc[i * BB + s], 2), 0)  # [ROWS]
            o_dx = (b0 + s).to(tl.int64) * SHAPE.in_numel + site.to(tl.int64) * C + c
            tl.store(p_dx + o_dx, b_dx.to(p_dx.dtype.element_ty), mask=b0 + s < B)  # [ROWS]
