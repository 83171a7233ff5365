"""Functions that the translated code calls: PTX's arithmetic, where numpy's differs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = Any  # of one number a thread, or of one for all


class Product(NamedTuple):
    """The properties of a wgmma besides its operands: `accumulator` and `held` (of A) are numbers of registers."""

    shape: str
    kind: str
    transposed: tuple[int, int]
    accumulator: list[int]
    held: list[int]


def bf16_to_float(x: Array) -> Array:
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float_to_bf16(x: Array) -> Array:
    """Rounded to the nearest, ties to even; NaN stays NaN."""
    u = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    is_nan = (u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(is_nan, np.uint16(0x7FFF), rounded.astype(np.uint16))


def f16_to_float(x: Array) -> Array:
    return np.ascontiguousarray(x).view(np.float16).astype(np.float32)


def float_to_f16(x: Array) -> Array:
    return x.astype(np.float16).view(np.uint16)


def halves_of_e4m3(pair: Array) -> Array:
    """Two numbers of float8_e4m3fn in 16 bits as float16 ones in 32."""
    bits = np.ascontiguousarray(pair, dtype=np.uint16)[..., None] >> np.array([0, 8], np.uint16) & np.uint16(0xFF)
    magnitude = bits & np.uint16(0x7F)
    value = (magnitude << np.uint16(7)).view(np.float16) * np.float16(256)  # the exponents' biases are 7 and 15
    half = np.where(magnitude == 0x7F, np.uint16(0x7FFF), value.view(np.uint16))
    half = half | (bits & np.uint16(0x80)) << np.uint16(8)
    return half.astype(np.uint32) @ np.array([1, 1 << 16], np.uint32)


def round_to_tf32(bits: Array, away: bool) -> Array:
    """The bits of a float32 number rounded to 10 bits of mantissa: ties away from zero, or to even."""
    if away:
        return (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)


def float_to_integer(x: Array, kind: Any) -> Array:
    """NaN becomes 0, and a number that is too large becomes the largest integer."""
    info = np.iinfo(kind)
    x = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=info.max, neginf=info.min)
    return np.clip(x, info.min, info.max).astype(kind)


def fma32(a: Array, b: Array, c: Array) -> Array:
    """a * b + c by float64, in which the product is exact: the sum is rounded twice in some 1e-9 of all cases."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum and its error, which is a number too (Knuth)."""
    s = a + b
    other = s - a
    return s, (a - (s - other)) + (b - other)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded product and its error (Dekker)."""
    p = a * b
    halves = []
    for x in (a, b):
        scaled = x * 134217729.0  # 2^27 + 1
        high = scaled - (scaled - x)
        halves.append((high, x - high))
    (a_high, a_low), (b_high, b_low) = halves
    return p, a_low * b_low - (((p - a_high * b_high) - a_low * b_high) - a_high * b_low)


def fma64(a: Array, b: Array, c: Array) -> Array:
    """a * b + c, rounded once: the low parts are added with rounding to odd (Boldo and Melquiond 2008)."""
    high, low = two_product(a, b)
    t, t_low = two_sum(c, low)
    s, s_low = two_sum(high, t)
    odd, error = two_sum(t_low, s_low)
    bits = np.ascontiguousarray(odd).view(np.int64)
    towards_error = np.where((error > 0) == (odd > 0), 1, -1)
    odd = np.where((error != 0) & (bits & 1 == 0), bits + towards_error, bits).view(np.float64)
    once = s + odd
    in_range = np.isfinite(once) & (np.abs(a) < 1e290) & (np.abs(b) < 1e290)  # the halves of others overflow
    return np.where(in_range, once, a * b + c)


def quotient(a: Array, b: Array) -> Array:
    """The quotient of integers, truncated; a division by 0 may give any number."""
    divisor = np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        return a // divisor
    x, y = a.astype(np.int64), divisor.astype(np.int64)
    return (np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))).astype(a.dtype)


def remainder(a: Array, b: Array) -> Array:
    return (a - quotient(a, b) * b).astype(a.dtype)


def high_product(a: Array, b: Array) -> Array:
    """The high half of a product of 64-bit integers."""
    product = a.astype(object) * b.astype(object)
    return np.array([int(p) >> 64 for p in np.broadcast_to(product, np.broadcast(a, b).shape)], dtype=object).astype(
        a.dtype
    )


def shift_left(x: Array, n: Array, bits: int) -> Array:
    inside = n < bits
    return np.where(inside, x << np.where(inside, n, 0).astype(x.dtype), x.dtype.type(0))


def shift_right(x: Array, n: Array, bits: int) -> Array:
    n = np.minimum(n, bits - 1) if x.dtype.kind == "i" else n
    inside = n < bits
    return np.where(inside, x >> np.where(inside, n, 0).astype(x.dtype), x.dtype.type(0))


def extract_bits(x: Array, low: int, count: int) -> Array:
    bits = 8 * x.dtype.itemsize
    count = min(count, bits - low)
    return (x << x.dtype.type(bits - low - count)) >> x.dtype.type(bits - count)


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """prmt: four bytes of the eight of b and a, each by four bits; the highest of them repeats the byte's sign."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    out = np.uint32(0)
    for i in range(4):
        c = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = ((both >> ((c & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
        out = out | (np.where(c & np.uint32(8), sign, byte) << np.uint32(8 * i))
    return out


def logic_of_three(a: Array, b: Array, c: Array, table: int) -> Array:
    """lop3: bit i of the table is the result where a, b and c have the bits of i."""
    out = np.uint32(0) & a
    for i in range(8):
        if table >> i & 1:
            out = out | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
    return out


def funnel_shift(a: Array, b: Array, count: Array, left: bool, wrap: bool) -> Array:
    """The high word of (b, a) shifted left, or its low word shifted right."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    n = ((count & np.uint32(31)) if wrap else np.minimum(count, np.uint32(32))).astype(np.uint64)
    return ((both << n) >> np.uint64(32) if left else both >> n).astype(np.uint32)


def leading_zeros(x: Array, bits: int) -> Array:
    n = np.full(x.shape, bits, np.uint32)
    for i in range(bits):
        n = np.where((x >> x.dtype.type(i)) & x.dtype.type(1), np.uint32(bits - 1 - i), n)
    return n


# The names that the translated code uses.
FUNCTIONS = (
    bf16_to_float,
    float_to_bf16,
    f16_to_float,
    float_to_f16,
    halves_of_e4m3,
    round_to_tf32,
    float_to_integer,
    fma32,
    fma64,
    quotient,
    remainder,
    high_product,
    shift_left,
    shift_right,
    extract_bits,
    permute_bytes,
    logic_of_three,
    funnel_shift,
    leading_zeros,
)
NAMES: dict[str, Any] = {
    "np": np,
    **{f"u{n}": np.dtype(f"u{n}").type for n in (1, 2, 4, 8)},
    **{f"i{n}": np.dtype(f"i{n}").type for n in (1, 2, 4, 8)},
    **{f"f{n}": np.dtype(f"f{n}").type for n in (2, 4, 8)},
    "i16": lambda x: x.view(np.int16),
    "u16": lambda x: x.view(np.uint16),
    "Product": Product,
    **{function.__name__: function for function in FUNCTIONS},
}
