"""An optimizer's update of the weights: the epilogue of the weight gradient, or of the second pass of a split loop."""

import triton
import triton.language as tl


@triton.jit
def round_stochastically(b, b_r):
    """b in float32, rounded to a bfloat16 at random by 16 bits b_r, as lc_triton.optim.rounding does."""
    b = b.to(tl.float32)
    b_bits = b.to(tl.uint32, bitcast=True) + b_r
    return tl.where(b == b, ((b_bits >> 16) << 16).to(tl.float32, bitcast=True), b)


@triton.jit
def random_bits(o, count):
    """32 random bits for each offset at a step, as lc_triton.optim.rounding has them."""
    x = o.to(tl.uint32) + count.to(tl.uint32) * 0x61C88647
    x ^= x >> 16
    x *= 0x21F0AAAD
    x ^= x >> 15
    x *= 0x735A2D97
    x ^= x >> 15
    return x


@triton.jit
def update_weights(b_g, p_w, p_m, p_v, p_added, p_scalars, o, m, UPDATE: tl.constexpr):
    """Update the weights at offsets o by their gradients b_g, both of any shape; m masks.

    The rules and the order of their scalars are those of lc_triton.optim.rules. p_m and p_v are the states, p_added a
    gradient that is a part of the sum. AdamW's states may be bfloat16, which are rounded stochastically. UPDATE.penalty
    is where the factors of sign(w) and w are among the scalars; 0 where there is no penalty.

    The rule "square_sum" updates nothing: it stores the sum of the squares of the gradients, a scalar, at p_m.
    """
    RULE: tl.constexpr = UPDATE.rule  # triton 3.6 compares no field of a tuple
    WITH_ADDED: tl.constexpr = UPDATE.with_added
    PENALTY: tl.constexpr = UPDATE.penalty
    NON_NEG: tl.constexpr = UPDATE.non_neg
    ACC: tl.constexpr = b_g.dtype
    if WITH_ADDED:
        b_g += tl.load(p_added + o, mask=m, other=0.0).to(ACC)
    b_g *= tl.load(p_scalars).to(ACC)
    b_w = tl.load(p_w + o, mask=m, other=0.0).to(ACC)
    if PENALTY > 0:
        b_l1 = tl.load(p_scalars + PENALTY).to(ACC)
        b_sign = tl.where(b_w > 0, b_l1, tl.where(b_w < 0, -b_l1, 0.0))
        b_g += (b_sign + b_w * tl.load(p_scalars + PENALTY + 1).to(ACC)) * tl.load(p_scalars).to(ACC)
    if RULE == "adamw":
        b_m = tl.load(p_m + o, mask=m, other=0.0).to(ACC)
        b_v = tl.load(p_v + o, mask=m, other=0.0).to(ACC)
        b_m += (b_g - b_m) * tl.load(p_scalars + 2).to(ACC)
        b_v = b_v * tl.load(p_scalars + 3).to(ACC) + b_g * b_g * tl.load(p_scalars + 4).to(ACC)
        b_m16, b_v16 = b_m, b_v
        if p_m.dtype.element_ty == tl.bfloat16:
            b_r = random_bits(o, tl.load(p_scalars + 8).to(tl.int64))
            b_m16 = round_stochastically(b_m, b_r & 0xFFFF)
            b_v16 = round_stochastically(b_v, b_r >> 16)
        tl.store(p_m + o, b_m16.to(p_m.dtype.element_ty), mask=m)
        tl.store(p_v + o, b_v16.to(p_v.dtype.element_ty), mask=m)
        b_d = tl.sqrt(b_v) / tl.load(p_scalars + 6).to(ACC) + tl.load(p_scalars + 7).to(ACC)
        b_w = b_w * tl.load(p_scalars + 1).to(ACC) - tl.load(p_scalars + 5).to(ACC) * b_m / b_d
    elif RULE == "add":  # p_w is a gradient
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
        b_w = tl.where(b_w < 0, 0.0, b_w)  # a NaN stays
    if RULE != "square_sum":
        tl.store(p_w + o, b_w.to(p_w.dtype.element_ty), mask=m)


@triton.jit
def combine_update_kernel(
    p_parts,  # (SPLIT, N)
    p_w,  # (N), the weight
    p_m,  # (N), its states
    p_v,  # (N)
    p_added,  # (N), a gradient that is a part of the sum
    p_scalars,  # (9), or (11) with a penalty
    N: tl.constexpr,
    SPLIT: tl.constexpr,
    BN: tl.constexpr,
    UPDATE: tl.constexpr,
):
    """Update BN weights a program by the gradient parts[0] + parts[1] + ..."""
    # Tile.
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    m_n = n < N

    # Loop over the parts.
    b_g = tl.load(p_parts + n, mask=m_n, other=0.0)  # [BN]
    for s in tl.static_range(1, SPLIT):
        b_g += tl.load(p_parts + s * N + n, mask=m_n, other=0.0)  # [BN]

    # Epilogue.
    RULE: tl.constexpr = UPDATE.rule
    p_first = p_m + tl.program_id(0) if RULE == "square_sum" else p_m
    update_weights(b_g, p_w, p_first, p_v, p_added, p_scalars, n, m_n, UPDATE)
