"""What the kernels share: decoding a tile and a step of the k-loop, taps and regions, bias and activations."""

import triton
import triton.language as tl


@triton.jit
def unbounded(x, STEP: tl.constexpr = 16):
    """The integers x, of which the compiler does not know that they are small: x plus an addend that is always 0.

    LLVM narrows the division of integers known to be below 2^16 to 16 bits, and the NVPTX back end of Triton 3.7 takes
    some of a block's 16-bit integers from the wrong half of a register (docs/dev/nvptx-16-bit-index.md). The addend is
    0 because the grid has one dimension. LLVM only knows that it is a multiple of STEP below 2^16 * STEP. What it
    knows of x's alignment stays, as far as STEP has that alignment; a larger bound costs registers.
    """
    return x + tl.program_id(1) * STEP


@triton.jit
def tile_offsets(pid, OF_INPUT: tl.constexpr, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """Decode the number of a tile: where it lies, and what each column n [BN] of its product stands for.

    What is tiled are output positions and filters, or with OF_INPUT input sites and channels. "Place" is a position or
    a site, "channel" a filter or a channel. The number of a tile counts blocks of channels, groups (with `tl.dot`),
    tile columns, tile rows, leading places, and parts of a split loop, the first fastest.

    Returns (lead, h0, w0, part, row, col, place, c0, c, inner, group, m_n):
        lead, h0, w0: the tile's corner; `lead` counts the two leading dimensions as one.
        part: the part of a split loop; 0 without a split.
        row, col: [BN], the place's row and column in the tile.
        place: [BN], the place in row-major order.
        c0: the tile's first channel, with `tl.dot` counted in its group, else from the layer's first one.
        c, inner: [BN], the channel, counted from the layer's first one and in its group.
        group: the channel's group; with `tl.dot` one for all columns, else [BN].
        m_n: [BN], whether the column exists.
    """
    G: tl.constexpr = SHAPE.groups
    CHANNELS: tl.constexpr = SHAPE.channels if OF_INPUT else SHAPE.filters
    CG: tl.constexpr = CHANNELS // G
    H: tl.constexpr = SHAPE.inputs[2] if OF_INPUT else SHAPE.outputs[2]
    W: tl.constexpr = SHAPE.inputs[3] if OF_INPUT else SHAPE.outputs[3]
    LEAD: tl.constexpr = SHAPE.inputs[0] * SHAPE.inputs[1] if OF_INPUT else SHAPE.outputs[0] * SHAPE.outputs[1]
    TQ: tl.constexpr = TILE.rows
    TP: tl.constexpr = TILE.cols
    FT: tl.constexpr = TILE.block_f
    BN: tl.constexpr = TILE.block_n
    DOT: tl.constexpr = TILE.dot
    SPLIT: tl.constexpr = TILE.split
    TILES_H: tl.constexpr = (H + TQ - 1) // TQ
    TILES_W: tl.constexpr = (W + TP - 1) // TP
    n = tl.arange(0, BN)
    row, col = n // (TP * FT), (n // FT) % TP
    if DOT:  # a program stays within one group
        BLOCKS: tl.constexpr = (CG + FT - 1) // FT
        c0 = (pid % BLOCKS) * FT
        inner = c0 + n % FT
        group = (pid // BLOCKS) % G
        m_n = inner < CG
        c = group * CG + inner
        pid = pid // (BLOCKS * G)
    else:  # a block of channels across groups
        BLOCKS: tl.constexpr = (CHANNELS + FT - 1) // FT
        c0 = (pid % BLOCKS) * FT
        c = c0 + n % FT
        group = unbounded(c) // CG
        inner = unbounded(c) % CG
        m_n = c < CHANNELS
        pid = pid // BLOCKS
    if SHAPE.wide:  # a sample has 2^31 places or numbers: 32 bits do not count its places or offsets
        pid = pid.to(tl.int64)
    w0 = (pid % TILES_W) * TP
    h0 = (pid // TILES_W) % TILES_H * TQ
    lead = pid // (TILES_W * TILES_H)
    part = 0
    if SPLIT > 1:
        part = (lead // LEAD).to(tl.int32)
        lead = lead % LEAD
    m_n = m_n & (h0 + row < H) & (w0 + col < W)
    place = (lead * H + h0 + row) * W + w0 + col
    return lead, h0, w0, part, row, col, place, c0, c, inner, group, m_n


@triton.jit
def divide(x, D: tl.constexpr, BOUND: tl.constexpr):
    """The quotient and the remainder of x by D, for 0 <= x < BOUND; for other x any numbers, which callers mask.

    If the product stays below 2^31, x is multiplied by M, which is 2^S / D rounded up, and shifted by S: LLVM cannot
    narrow this to 16 bits as it narrows a division (see `unbounded`). The quotient is exact for x < BOUND because 2^S
    is at least BOUND * D.
    """
    S: tl.constexpr = (BOUND * D - 1).bit_length()
    M: tl.constexpr = (2**S + D - 1) // D
    if D & (D - 1) == 0:  # LLVM makes a shift and a mask of these: nothing is divided
        q = x // D
        r = x % D
    elif BOUND * M < 2**31:
        q = (x * M) >> S
        r = x - q * D
    else:
        x = unbounded(x)
        q = x // D
        r = x % D
    return q, r


@triton.jit
def decode_k(k, K0: tl.constexpr, K1: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, N: tl.constexpr):
    """Decode indices k of a k-loop: leading taps t0 and t1, row and column of the footprint, channel (or filter).

    K0 and K1 are the sizes of the kernel's leading dimensions, ROWS and COLS those of the footprint, N is the channels
    (or filters). The results have the shape of k. Past the last index, they are any numbers.
    """
    # The channel is divided off by Triton's own operators, not by `divide`: Triton then knows that neighbouring k are
    # neighbouring channels, so that its loads stay wide.
    if N & (N - 1) != 0:
        # STEP is so small that LLVM knows k to be below 2^31, and (up to N = 2^14) so large that q may pass 2^16.
        STEP: tl.constexpr = 16 * N if N < 1024 else 16384
        k = unbounded(k, STEP)
    n = k % N
    q = k // N
    row, col = divide(q, COLS, K0 * K1 * ROWS * COLS)
    t0 = row * 0
    t1 = row * 0
    if K0 * K1 > 1:
        t, row = divide(row, ROWS, K0 * K1 * ROWS)
        t0, t1 = divide(t, K1, K0 * K1)
    return t0, t1, row, col, n


@triton.jit
def region_along(o, BLOCK: tl.constexpr, COUNT: tl.constexpr, SIZE: tl.constexpr):
    """The region of each position o < SIZE along a dimension, o // BLOCK % COUNT; a step that changes nothing is left
    out.
    """
    r = o
    if COUNT == 1:
        r = o * 0
    elif COUNT < SIZE:
        if BLOCK > 1:
            r, _ = divide(r, BLOCK, SIZE)
        if BLOCK * COUNT < SIZE:
            _, r = divide(r, COUNT, SIZE)
    return r


@triton.jit
def region_of(o0, o1, oh, ow, SHAPE: tl.constexpr):
    """The region whose filters each position (o0, o1, oh, ow) has, counted in row-major order; past the last position
    any number.
    """
    N1: tl.constexpr = SHAPE.region_counts[1]
    NH: tl.constexpr = SHAPE.region_counts[2]
    NW: tl.constexpr = SHAPE.region_counts[3]
    r0 = region_along(o0, SHAPE.region_blocks[0], SHAPE.region_counts[0], SHAPE.outputs[0])
    r1 = region_along(o1, SHAPE.region_blocks[1], N1, SHAPE.outputs[1])
    rh = region_along(oh, SHAPE.region_blocks[2], NH, SHAPE.outputs[2])
    rw = region_along(ow, SHAPE.region_blocks[3], NW, SHAPE.outputs[3])
    return ((r0 * N1 + r1) * NH + rh) * NW + rw


@triton.jit
def tap(d, K: tl.constexpr, DIL: tl.constexpr):
    """The tap that lies d sites after the first tap of its window, along a dimension, and whether there is one.

    The window has K taps, DIL sites apart.
    """
    t = d
    m = d >= 0
    if DIL > 1:
        t = unbounded(d) // DIL  # truncates below zero, where the mask is already false
        m = m & (d == t * DIL)
    return t, m & (t < K)


@triton.jit
def site_is_read(d, windows, K: tl.constexpr, DIL: tl.constexpr, STEP: tl.constexpr, TILE: tl.constexpr):
    """Whether one of a tile's first `windows` windows, STEP sites apart, reads the site that lies d sites after the
    first site of the tile's first window. TILE is the number of windows of a whole tile.

    A site that no window reads is masked at its load: a NaN there would reach an output through the zeros of the band.
    """
    if TILE == 1:
        _, m = tap(d, K, DIL)
    elif DIL == 1 and STEP <= K:
        m = (d >= 0) & (d < (windows - 1) * STEP + K)
    else:
        m = d < d
        for j in tl.static_range(TILE):
            _, m_j = tap(tl.where(j < windows, d - j * STEP, -1), K, DIL)
            m = m | m_j
    return m


@triton.jit
def window_reads(d, sites, K: tl.constexpr, DIL: tl.constexpr, TILE: tl.constexpr):
    """Whether a window whose first tap lies d sites before a tile of TILE sites reads one of the tile's first `sites`
    sites.

    It is the mask of the input gradient's load of g, as `site_is_read` is that of x.
    """
    if DIL == 1:
        m = (d < K) & (d + sites > 0)
    else:
        m = d < d
        for j in tl.static_range(TILE):
            _, m_j = tap(tl.where(j < sites, d + j, -1), K, DIL)
            m = m | m_j
    return m


@triton.jit
def exp_minus_1(x):
    """exp(x) - 1 for x <= 0, elementwise, without cancellation near zero."""
    u = tl.exp(x)
    if x.dtype == tl.float64:  # Kahan: the rounding of exp cancels against that of log
        safe = tl.where((u == 1.0) | (x < -1.0), 2.0, u)
        near = tl.where(u == 1.0, x, (u - 1.0) * x / tl.log(safe))
        return tl.where(x < -1.0, u - 1.0, near)
    # The Taylor series to x^7 / 7! is off by at most 5e-8 of the value from -0.4 on, and takes no logarithm.
    near = 1.0 + x * 0.14285714
    near = 1.0 + x * 0.16666667 * near
    near = 1.0 + x * 0.2 * near
    near = 1.0 + x * 0.25 * near
    near = 1.0 + x * 0.33333333 * near
    near = x * (1.0 + x * 0.5 * near)
    return tl.where(x < -0.4, u - 1.0, near)


@triton.jit
def tanh(x):
    """The hyperbolic tangent, elementwise, without cancellation near zero and without overflow at the ends."""
    m = exp_minus_1(-2.0 * tl.abs(x))
    t = -m / (2.0 + m)
    return tl.where(x < 0.0, -t, t)


@triton.jit
def activate(z, ACT: tl.constexpr, CONSTANT: tl.constexpr):
    """act(z), elementwise, in z's dtype; the names and constants are those of lc_triton.core.activations."""
    if ACT == "relu":
        z = tl.where(z <= 0.0, 0.0, z)  # maximum would make a NaN 0
    elif ACT == "leaky_relu":
        z = tl.where(z > 0.0, z, z * CONSTANT)
    elif ACT == "relu6":
        z = tl.where(z <= 0.0, 0.0, tl.where(z >= 6.0, 6.0, z))
    elif ACT == "elu":
        z = tl.where(z > 0.0, z, CONSTANT * exp_minus_1(tl.where(z > 0.0, 0.0, z)))
    elif ACT == "selu":
        negative = 1.6732632423543772848170429916717 * exp_minus_1(tl.where(z > 0.0, 0.0, z))
        z = 1.0507009873554804934193349852946 * tl.where(z > 0.0, z, negative)
    elif ACT == "sigmoid":
        z = 1.0 / (1.0 + tl.exp(-z))
    elif ACT == "hardsigmoid":
        z = z + 3.0
        z = tl.where(z <= 0.0, 0.0, tl.where(z >= 6.0, 6.0, z)) / 6.0
    elif ACT == "hard_sigmoid":
        z = 0.2 * z + 0.5
        z = tl.where(z <= 0.0, 0.0, tl.where(z >= 1.0, 1.0, z))
    elif ACT == "tanh":
        z = tanh(z)
    elif ACT == "softplus":
        z = tl.where(z > 20.0, z, softplus(z))
    elif ACT == "softsign":
        z = z / (1.0 + tl.abs(z))
    elif ACT == "exponential":
        z = tl.exp(z)
    elif ACT == "silu":
        z = z / (1.0 + tl.exp(-z))
    elif ACT == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.70710678118654752440))
    elif ACT == "gelu_tanh":
        z = 0.5 * z * (1.0 + tanh(0.79788456080286535588 * (z + 0.044715 * z * z * z)))
    elif ACT == "mish":
        # tanh(softplus(z)) = u (u + 2) / (u (u + 2) + 2) with u = exp(z); past 20 it rounds to 1, in float64 too.
        u = tl.exp(tl.where(z > 20.0, 20.0, z))
        z = tl.where(z > 20.0, z, z * (u * (u + 2.0)) / (u * (u + 2.0) + 2.0))
    elif ACT == "hardswish":
        r = z + 3.0
        z = z * tl.where(r <= 0.0, 0.0, tl.where(r >= 6.0, 6.0, r)) / 6.0
    else:
        tl.static_assert(ACT == "linear", "an activation the kernels do not know")
    return z


@triton.jit
def activation_backward(g, s, ACT: tl.constexpr, CONSTANT: tl.constexpr):
    """dz = g * act'(z), elementwise, from s: z or y = act(z), as lc_triton.core.activations saves it."""
    dz = g
    if ACT == "relu":
        dz = tl.where(s <= 0.0, 0.0, g)  # a product would make a NaN of an infinite g where the derivative is 0
    elif ACT == "leaky_relu":
        dz = tl.where(s <= 0.0, g * CONSTANT, g)
    elif ACT == "relu6":
        dz = tl.where((s <= 0.0) | (s >= 6.0), 0.0, g)
    elif ACT == "elu":
        dz = tl.where(s <= 0.0, g * (s + CONSTANT), g)
    elif ACT == "selu":
        dz = g * tl.where(s <= 0.0, s + 1.7580993408473768599402175208123, 1.0507009873554804934193349852946)
    elif ACT == "sigmoid":
        dz = g * s * (1.0 - s)
    elif ACT == "hardsigmoid":
        dz = tl.where((s <= 0.0) | (s >= 1.0), 0.0, g / 6.0)
    elif ACT == "hard_sigmoid":
        dz = tl.where((s <= 0.0) | (s >= 1.0), 0.0, g * 0.2)
    elif ACT == "tanh":
        dz = g * (1.0 - s * s)
    elif ACT == "softplus":
        dz = tl.where(s > 20.0, g, -g * exp_minus_1(-s))
    elif ACT == "softsign":
        dz = g * (1.0 - tl.abs(s)) * (1.0 - tl.abs(s))
    elif ACT == "exponential":
        dz = g * s
    elif ACT == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp(-s))
        dz = g * sigmoid * (1.0 + s * (1.0 - sigmoid))
    elif ACT == "gelu":
        density = tl.exp(-0.5 * s * s) * 0.39894228040143267794
        dz = g * (0.5 * (1.0 + tl.erf(s * 0.70710678118654752440)) + s * density)
    elif ACT == "gelu_tanh":
        t = tanh(0.79788456080286535588 * (s + 0.044715 * s * s * s))
        dz = g * (0.5 * (1.0 + t) + 0.5 * s * (1.0 - t * t) * 0.79788456080286535588 * (1.0 + 0.134145 * s * s))
    elif ACT == "mish":
        u = tl.exp(tl.where(s > 20.0, 20.0, s))
        t = u * (u + 2.0) / (u * (u + 2.0) + 2.0)
        dz = g * (t + s * (1.0 / (1.0 + tl.exp(-s))) * (1.0 - t * t))
    elif ACT == "hardswish":
        dz = tl.where(s <= -3.0, 0.0, tl.where(s < 3.0, g * (s / 3.0 + 0.5), g))
    else:
        tl.static_assert(ACT == "linear", "an activation the kernels do not know")
    return dz


@triton.jit
def softplus(z):
    """log(1 + exp(z)), elementwise, without cancellation where exp(z) is small and without overflow."""
    u = tl.exp(-tl.abs(z))
    w = 1.0 + u
    if z.dtype == tl.float64:  # Kahan's log1p
        safe = tl.where(w == 1.0, 2.0, w)
        log1p = tl.where(w == 1.0, u, tl.log(safe) * u / (safe - 1.0))
    else:  # the series is off by at most 5.2e-8 of the value below 0.05
        series = u * (1.0 - u * (0.5 - u * (0.33333333 - u * (0.25 - u * 0.2))))
        log1p = tl.where(u < 0.05, series, tl.log(w))
    return tl.where(z > 0.0, z, 0.0) + log1p


@triton.jit
def bias_and_activation(b_z, p_bias, o_place, o_filter, m_n, F: tl.constexpr, EPILOGUE: tl.constexpr):
    """Add the bias to the sums b_z [BB, BN], in their dtype: returns (z, y = act(z)), both [BB, BN].

    o_place is the position or site, [BN] or one for all columns; o_filter [BN] is the filter or channel, of F.
    """
    BIAS: tl.constexpr = EPILOGUE.bias
    ACT: tl.constexpr = EPILOGUE.activation
    CONSTANT: tl.constexpr = EPILOGUE.constant
    if BIAS == "position":
        b_bias = tl.load(p_bias + o_place.to(tl.int64) * F + o_filter, mask=m_n, other=0.0)  # [BN]
        b_z += b_bias.to(b_z.dtype)[None, :]
    elif BIAS == "channel":
        b_bias = tl.load(p_bias + o_filter, mask=m_n, other=0.0)  # [BN]
        b_z += b_bias.to(b_z.dtype)[None, :]
    return b_z, activate(b_z, ACT, CONSTANT)
