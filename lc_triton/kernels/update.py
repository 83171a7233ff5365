"""What is done with a weight gradient instead of storing it: an optimizer's update, a sum of gradients or of squares.

It is the epilogue of the weight gradient, of `linear_backward`, or of the second launch of a split loop. What is kept
in fewer bits is rounded as lc_triton.optim.rounding and lc_triton.optim.blocks round it, bit for bit.
"""

import triton
import triton.language as tl

from lc_triton.kernels.common import unbounded

# The least largest magnitude of a block that numbers are divided by: the smallest normal float32.
TINY = tl.constexpr(2.0**-126)


@triton.jit
def round_stochastically(b, b_r):
    """The numbers b rounded up or down to a bfloat16 by 16 random bits b_r, in float32. A NaN stays."""
    b = b.to(tl.float32)
    b_bits = b.to(tl.uint32, bitcast=True) + b_r
    return tl.where(b == b, ((b_bits >> 16) << 16).to(tl.float32, bitcast=True), b)


@triton.jit
def random_bits(o, count):
    """32 random bits for each offset o at a step: `count` is its number."""
    x = o.to(tl.uint32) + count.to(tl.uint32) * 0x61C88647
    x ^= x >> 16
    x *= 0x21F0AAAD
    x ^= x >> 15
    x *= 0x735A2D97
    x ^= x >> 15
    return x


@triton.jit
def join_master(b_w, b_c):
    """The masters, in float32, of weights b_w in bfloat16 and their corrections b_c in int8.

    A correction counts units of the master's last place, the 24th bit. A negative one of a weight 0 counts as 0.
    """
    b_bits = b_w.to(tl.float32).to(tl.int32, bitcast=True)
    b_c = b_c.to(tl.int32)
    b_c = tl.where((b_bits & 0x7FFFFFFF) == 0, tl.maximum(b_c, 0), b_c)
    return (b_bits + (b_c << 8)).to(tl.float32, bitcast=True)


@triton.jit
def split_master(b, b_r):
    """The weights, bfloat16 numbers in float32, and the corrections, integers of 8 bits in int32, of masters b in
    float32, which 32 random bits b_r round to 24 bits. A NaN stays.
    """
    b_own = (b_r.to(tl.uint32) * 0x9E3779B1) >> 24
    b_bits = (b.to(tl.int32, bitcast=True) + b_own.to(tl.int32)) >> 8
    b_high = (b_bits + 128) >> 8
    b_w = tl.where(b == b, (b_high << 16).to(tl.float32, bitcast=True), b)
    return b_w, tl.where(b == b, b_bits - (b_high << 8), 0)


@triton.jit
def first_of_blocks(b, BLOCK: tl.constexpr):
    """The first of each BLOCK numbers of b [BN], as their minimum [BN // BLOCK]: no later one of them may be less."""
    return tl.min(tl.reshape(b, (b.numel // BLOCK, BLOCK)), 1)


@triton.jit
def amax_offsets(o, FILTERS: tl.constexpr, BLOCK: tl.constexpr):
    """The offsets in p_amax of the two magnitudes of blocks whose first weights are at offsets o.

    A row of FILTERS weights is whole blocks; its last one may have fewer weights.
    """
    if FILTERS % BLOCK == 0:
        block = o.to(tl.uint64) // BLOCK
    else:
        o = unbounded(o)
        row = o // FILTERS
        block = row * ((FILTERS + BLOCK - 1) // BLOCK) + (o - row * FILTERS) // BLOCK
    return block * 2


@triton.jit
def spread(b_amax, b, BLOCK: tl.constexpr):
    """The number of b_amax [BLOCKS] that belongs to each number's block, in the shape of b."""
    return tl.reshape(tl.broadcast_to(b_amax[:, None], (b.numel // BLOCK, BLOCK)), b.shape)


@triton.jit
def dequantize(b_c, b_amax, MOST: tl.constexpr, BLOCK: tl.constexpr):
    """The numbers (code / MOST)^4 * magnitude of codes b_c, in float32. b_amax [BLOCKS] are the blocks' magnitudes.

    MOST is the largest code: 127 of codes with a sign, 255 of codes without.
    """
    b_part = b_c.to(tl.float32) * (1 / MOST)
    b = b_part * b_part
    b = b * b * spread(b_amax, b, BLOCK)
    return tl.where(b_part < 0, -b, b) if MOST == 127 else b


@triton.jit
def quantize(b, b_r, m, MOST: tl.constexpr, BLOCK: tl.constexpr):
    """The codes, in float32, of numbers b where m is true, and the largest magnitude of each block [BLOCKS].

    The code of a number is rounded up or down by 16 random bits b_r, so that the mean of what it stands for is right.
    A NaN makes the magnitude infinite.
    """
    b = b.to(tl.float32)
    b_size = tl.where(m, tl.where(b == b, tl.abs(b), float("inf")), 0.0)
    b_amax = tl.max(tl.reshape(b_size, (b.numel // BLOCK, BLOCK)), 1)
    b_power = b_size * spread(1 / tl.maximum(b_amax, TINY), b, BLOCK) * (MOST * MOST * MOST * MOST)
    b_low = tl.floor(tl.sqrt(tl.sqrt(b_power)))
    b_below = b_low * b_low
    b_below = b_below * b_below
    b_above = (b_low + 1) * (b_low + 1)
    b_above = b_above * b_above
    b_up = (b_r.to(tl.float32) + 0.5) * 2.0**-16 * (b_above - b_below) < b_power - b_below
    b_c = tl.where(b_up, b_low + 1, b_low)
    b_c = tl.where(b_c < MOST, b_c, MOST)  # a NaN gets the code MOST
    if MOST == 127:
        b_c = tl.where(b < 0, -b_c, b_c)
    else:
        b_c = tl.where(b > 0, tl.maximum(b_c, 1), b_c)  # no mean of squares becomes 0: steps are divided by its root
    return b_c, b_amax


@triton.jit
def update_weights(
    b_g, p_w, p_m, p_v, p_amax, p_correction, p_added, p_scalars, o, m, o_b, m_b, UPDATE: tl.constexpr, b_own=None
):
    """Update the weights at offsets o, where m is true, by their gradients b_g; the arithmetic is in b_g's dtype.

    The rules and the order of their scalars are those of lc_triton.optim.rules. Two rules are no optimizer's: "add"
    adds b_g to the gradient at p_w, and "square_sum" stores the sum of squares of b_g, one number, at p_m.

    b_g, o, m: of one shape, any, which all that is loaded and stored at o has. With states in 8 bits, the last axis is
        whole blocks of filters.
    p_w: the weights. p_m, p_v: their states. p_added: a gradient to add to b_g. All but p_w may be None.
    p_amax: of AdamW's states in 8 bits, the largest magnitudes of both in each block; or None. Other states are of
        b_g's dtype, or bfloat16 numbers that are rounded stochastically.
    p_correction: of bfloat16 weights, from the weights to their masters, which AdamW updates; or None.
    p_scalars: the factors; the first is the gradient's, and UPDATE.penalty is the place of a penalty's factors of
        sign(w) and w, or 0.
    o_b, m_b: with p_amax, the offsets of each block's first weight [BLOCKS], and whether the block exists.
    b_own: the weights, if the caller has loaded them.
    """
    RULE: tl.constexpr = UPDATE.rule  # Triton 3.6 cannot compare a field of a tuple: it takes a name
    WITH_ADDED: tl.constexpr = UPDATE.with_added
    PENALTY: tl.constexpr = UPDATE.penalty
    NON_NEG: tl.constexpr = UPDATE.non_neg
    ACC: tl.constexpr = b_g.dtype
    if WITH_ADDED:
        b_g += tl.load(p_added + o, mask=m, other=0.0).to(ACC)
    b_g *= tl.load(p_scalars).to(ACC)
    if b_own is None:
        b_own = tl.load(p_w + o, mask=m, other=0.0)
    b_w = b_own.to(ACC)
    if PENALTY > 0:  # its w is the weight that the layer computes with, not the master
        b_l1 = tl.load(p_scalars + PENALTY).to(ACC)
        b_sign = tl.where(b_w > 0, b_l1, tl.where(b_w < 0, -b_l1, 0.0))
        b_g += (b_sign + b_w * tl.load(p_scalars + PENALTY + 1).to(ACC)) * tl.load(p_scalars).to(ACC)
    if p_correction is not None:
        b_w = join_master(b_own, tl.load(p_correction + o, mask=m, other=0)).to(ACC)
    if RULE == "adamw":
        if p_amax is not None:
            p_block = p_amax + amax_offsets(o_b, UPDATE.filters, UPDATE.block)  # [BLOCKS]
            b_amax, b_amax_v = tl.load(p_block, mask=m_b, other=0.0), tl.load(p_block + 1, mask=m_b, other=0.0)
            b_m = dequantize(tl.load(p_m + o, mask=m, other=0), b_amax, 127, UPDATE.block).to(ACC)
            b_v = dequantize(tl.load(p_v + o, mask=m, other=0), b_amax_v, 255, UPDATE.block).to(ACC)
        else:
            b_m = tl.load(p_m + o, mask=m, other=0.0).to(ACC)
            b_v = tl.load(p_v + o, mask=m, other=0.0).to(ACC)
        b_m += (b_g - b_m) * tl.load(p_scalars + 2).to(ACC)
        b_v = b_v * tl.load(p_scalars + 3).to(ACC) + b_g * b_g * tl.load(p_scalars + 4).to(ACC)
        b_m16, b_v16, b_r = b_m, b_v, o
        if p_m.dtype.element_ty == tl.bfloat16 or p_amax is not None or p_correction is not None:
            b_r = random_bits(o, tl.load(p_scalars + 8).to(tl.int64))
        if p_amax is not None:
            b_m16, b_amax = quantize(b_m, b_r & 0xFFFF, m, 127, UPDATE.block)
            b_v16, b_amax_v = quantize(b_v, b_r >> 16, m, 255, UPDATE.block)
            tl.store(p_block, b_amax, mask=m_b)
            tl.store(p_block + 1, b_amax_v, mask=m_b)
        if p_m.dtype.element_ty == tl.bfloat16:
            b_m16 = round_stochastically(b_m, b_r & 0xFFFF)
            b_v16 = round_stochastically(b_v, b_r >> 16)
        tl.store(p_m + o, b_m16.to(p_m.dtype.element_ty), mask=m)
        tl.store(p_v + o, b_v16.to(p_v.dtype.element_ty), mask=m)
        b_d = tl.sqrt(b_v) / tl.load(p_scalars + 6).to(ACC) + tl.load(p_scalars + 7).to(ACC)
        b_w = b_w * tl.load(p_scalars + 1).to(ACC) - tl.load(p_scalars + 5).to(ACC) * b_m / b_d
    elif RULE == "add":
        b_w += b_g
    elif RULE == "square_sum":
        b_g = tl.where(m, b_g, 0.0)
        tl.store(p_m, tl.sum(b_g * b_g))
    else:
        tl.static_assert(RULE == "sgd" or RULE == "momentum" or RULE == "nesterov", "a rule the kernels do not know")
        b_g += b_w * tl.load(p_scalars + 1).to(ACC)
        if RULE != "sgd":
            b_m = tl.load(p_m + o, mask=m, other=0.0).to(ACC)
            b_m = b_m * tl.load(p_scalars + 2).to(ACC) + b_g * tl.load(p_scalars + 3).to(ACC)
            tl.store(p_m + o, b_m.to(p_m.dtype.element_ty), mask=m)
            if RULE == "nesterov":
                b_g += b_m * tl.load(p_scalars + 4).to(ACC)
            else:
                b_g = b_m
        b_w -= b_g * tl.load(p_scalars + 5).to(ACC)
    if NON_NEG:
        b_w = tl.where(b_w < 0, 0.0, b_w)  # maximum would make a NaN 0
    if RULE == "adamw" and p_correction is not None:
        b_w, b_c = split_master(b_w.to(tl.float32), b_r)
        tl.store(p_correction + o, b_c.to(tl.int8), mask=m)
    if RULE != "square_sum":
        tl.store(p_w + o, b_w.to(p_w.dtype.element_ty), mask=m)


@triton.jit
def filters_of(n, N: tl.constexpr, FILTERS: tl.constexpr, BLOCK: tl.constexpr):
    """The offsets of N weights, and whether they exist, where n counts the rows of FILTERS weights as whole blocks."""
    if FILTERS % BLOCK == 0:
        return n, n < N
    ROW: tl.constexpr = (FILTERS + BLOCK - 1) // BLOCK * BLOCK
    n = unbounded(n)
    row, f = n // ROW, n % ROW
    n = row * FILTERS + f
    return n, (f < FILTERS) & (n < N)


@triton.jit
def combine_update_kernel(
    p_parts,  # (SPLIT, N), the sums of the weight gradient's parts
    p_w,  # (N), the weight
    # The pointers from here to p_scalars are those of `update_weights`; None where UPDATE needs none.
    p_m,  # (N), the first state; for "square_sum" one number for each program
    p_v,  # (N), the second state
    p_amax,  # (N // F, blocks, 2) of states in 8 bits, the largest magnitudes of both in each block of filters
    p_correction,  # (N), of a weight in bfloat16, to its master
    p_added,  # (N), a gradient that is a part of the sum
    p_scalars,  # the rule's factors, then the penalty's
    N: tl.constexpr,
    SPLIT: tl.constexpr,
    BN: tl.constexpr,
    UPDATE: tl.constexpr,
):
    """The update of a weight by the gradient parts[0] + parts[1] + ..., added in order.

    A program updates BN weights. Where states have 8 bits and a row of F filters is no whole blocks, programs count the
    row as whole blocks. Grid: blocks of weights.
    """
    F: tl.constexpr = UPDATE.filters
    BLOCK: tl.constexpr = UPDATE.block

    # Tile: weights n.
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    m_n = n < N

    # Addresses: weights n [BN], and with states in 8 bits the first weight n_b of each block [BN // BLOCK].
    n_b, m_b = n, m_n
    if BLOCK > 0:
        n_b = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN // BLOCK) * BLOCK
        n, m_n = filters_of(n, N, F, BLOCK)
        n_b, m_b = filters_of(n_b, N, F, BLOCK)

    # Loop: the parts, in order, so that the sum is the same from run to run.
    b_g = tl.load(p_parts + n, mask=m_n, other=0.0)  # [BN]
    for s in tl.static_range(1, SPLIT):
        b_g += tl.load(p_parts + s * N + n, mask=m_n, other=0.0)  # [BN]

    # Epilogue: the update.
    RULE: tl.constexpr = UPDATE.rule
    p_first = p_m + tl.program_id(0) if RULE == "square_sum" else p_m
    update_weights(b_g, p_w, p_first, p_v, p_amax, p_correction, p_added, p_scalars, n, m_n, n_b, m_b, UPDATE)
