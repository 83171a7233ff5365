"""Penalties between positions, a kernel for each value and each gradient; each reads the weight from memory once.

A weight is (Z, H, W, D, F): a grid of P = Z * H * W positions, D entries of a filter (taps and channels), F filters; n
counts the N = D * F numbers of a position. A pair is two positions next to each other along W, H or Z; its first
position is the one of the smaller index, and SHAPE.scales has the factors of pairs along Z, H and W.

The programs of `smooth_kernel` and of both gradients of pairs own TR rows of positions and walk along TC columns. They
hold a column and those beside it in registers, and load each number once: of a column their own rows, and where a pair
needs them the rows above, below, before and behind. Each program of a value writes one sum, which torch adds, so that
no result depends on the order in which programs run.
"""
# ruff: noqa: RUF005  (Triton's language has no starred items of a tuple)

import triton
import triton.language as tl

from lc_triton.kernels.common import unbounded


@triton.jit
def walk_of(BLOCKS: tl.constexpr, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """Decode the number of a program: its leading position, first row, first column, and its block of numbers.

    Grid: SPAN blocks of numbers, tile columns, tile rows, leading positions, and as many times as all BLOCKS of a
    position need; the last blocks may lie past them. One tile of positions comes soon after another, so that the
    neighbours that both read are still in L2.
    """
    TILES_H: tl.constexpr = (SHAPE.grid[1] + TILE.rows - 1) // TILE.rows
    TILES_W: tl.constexpr = (SHAPE.grid[2] + TILE.cols - 1) // TILE.cols
    TILES: tl.constexpr = SHAPE.grid[0] * TILES_H * TILES_W
    SPAN: tl.constexpr = TILE.span if TILE.span < BLOCKS else BLOCKS
    pid = unbounded(tl.program_id(0))
    block = unbounded(pid // (TILES * SPAN) * SPAN + pid % SPAN)
    tile = unbounded(pid // SPAN % TILES)
    row = unbounded(tile // TILES_W)
    return tile // (TILES_H * TILES_W), row % TILES_H * TILE.rows, tile % TILES_W * TILE.cols, block


@triton.jit
def place_of(z, h, w, SHAPE: tl.constexpr):
    """The position (z, h, w) in row-major order, and whether it is on the grid."""
    m = (z >= 0) & (z < SHAPE.grid[0]) & (h >= 0) & (h < SHAPE.grid[1]) & (w >= 0) & (w < SHAPE.grid[2])
    return ((z * SHAPE.grid[1] + h) * SHAPE.grid[2] + w).to(tl.int64), m


@triton.jit
def load_numbers(p_w, z, h, w, n, m_n, SHAPE: tl.constexpr):
    """The numbers n of position (z, h, w), in the shape of n; zeros where m_n is false or it is off the grid."""
    position, m = place_of(z, h, w, SHAPE)
    return tl.load(p_w + position * (SHAPE.entries * SHAPE.filters) + n, mask=m_n & m, other=0.0)


@triton.jit
def apart(a, b, exists, ACC: tl.constexpr):
    """a - b in the dtype ACC, and 0 where no such pair exists."""
    return tl.where(exists, a.to(ACC) - b.to(ACC), 0.0)


@triton.jit
def smooth_kernel(
    p_w,  # (Z, H, W, N), the weight
    p_sums,  # (programs,), each program's part of the sum
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """The sum of factor * (a - b)^2 over the numbers a, b of all pairs.

    A program computes BN numbers of TR x TC positions: the pairs whose first position it owns. Grid: as of `walk_of`.
    """
    N: tl.constexpr = SHAPE.entries * SHAPE.filters
    BN: tl.constexpr = TILE.block_n
    BLOCKS: tl.constexpr = (N + BN - 1) // BN
    TR: tl.constexpr = TILE.rows
    Z: tl.constexpr = SHAPE.grid[0]
    H: tl.constexpr = SHAPE.grid[1]
    W: tl.constexpr = SHAPE.grid[2]
    ACC: tl.constexpr = tl.float64 if p_w.dtype.element_ty == tl.float64 else tl.float32

    # Tile: positions from (z, h0, w0) on, and a block of their numbers.
    z, h0, w0, block = walk_of(BLOCKS, SHAPE, TILE)

    # Addresses: the numbers of a position [BN]; and the first column is loaded.
    n = block * BN + tl.arange(0, BN)
    m_n = n < N
    column = ()
    for i in tl.static_range(TR):
        column = column + (load_numbers(p_w, z, h0 + i, w0, n, m_n, SHAPE),)  # [BN]

    # Loop: columns.
    acc = tl.zeros((BN,), ACC)
    for w in range(w0, tl.minimum(w0 + TILE.cols, W)):
        right = ()
        for i in tl.static_range(TR):
            right = right + (load_numbers(p_w, z, h0 + i, w + 1, n, m_n, SHAPE),)  # [BN]
        for i in tl.static_range(TR):
            h = h0 + i
            d = apart(column[i], right[i], (h < H) & (w + 1 < W), ACC)
            acc += SHAPE.scales[2] * (d * d)
            if H > 1:
                if i + 1 < TR:
                    below = column[i + 1]
                else:
                    below = load_numbers(p_w, z, h + 1, w, n, m_n, SHAPE)  # [BN]
                d = apart(column[i], below, h + 1 < H, ACC)
                acc += SHAPE.scales[1] * (d * d)
            if Z > 1:
                behind = load_numbers(p_w, z + 1, h, w, n, m_n, SHAPE)  # [BN]
                d = apart(column[i], behind, (h < H) & (z + 1 < Z), ACC)
                acc += SHAPE.scales[0] * (d * d)
        column = right

    # Epilogue: the sum.
    tl.store(p_sums + tl.program_id(0), tl.sum(acc, 0))


@triton.jit
def smooth_grad_kernel(
    p_w,  # (Z, H, W, N), the weight
    p_g,  # one number, the gradient of the penalty
    p_dw,  # (Z, H, W, N)
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """dw[a] = 2 * g * sum over the neighbours b of a of factor * (a - b).

    A program computes BN numbers of TR x TC positions. Grid: as of `walk_of`.
    """
    N: tl.constexpr = SHAPE.entries * SHAPE.filters
    BN: tl.constexpr = TILE.block_n
    BLOCKS: tl.constexpr = (N + BN - 1) // BN
    TR: tl.constexpr = TILE.rows
    Z: tl.constexpr = SHAPE.grid[0]
    H: tl.constexpr = SHAPE.grid[1]
    W: tl.constexpr = SHAPE.grid[2]
    ACC: tl.constexpr = tl.float64 if p_w.dtype.element_ty == tl.float64 else tl.float32

    # Tile: positions from (z, h0, w0) on, and a block of their numbers.
    z, h0, w0, block = walk_of(BLOCKS, SHAPE, TILE)

    # Addresses: the numbers of a position [BN]; and the first column and the one before it are loaded.
    n = block * BN + tl.arange(0, BN)
    m_n = n < N
    g = 2.0 * tl.load(p_g).to(ACC)
    left, column = (), ()
    for i in tl.static_range(TR):
        left = left + (load_numbers(p_w, z, h0 + i, w0 - 1, n, m_n, SHAPE),)  # [BN]
        column = column + (load_numbers(p_w, z, h0 + i, w0, n, m_n, SHAPE),)  # [BN]

    # Loop: columns. All that one needs is loaded before its first store: the compiler moves no load above a store.
    for w in range(w0, tl.minimum(w0 + TILE.cols, W)):
        right, above, below, before, behind = (), column[0], column[0], column, column
        for i in tl.static_range(TR):
            right = right + (load_numbers(p_w, z, h0 + i, w + 1, n, m_n, SHAPE),)  # [BN]
        if H > 1:
            above = load_numbers(p_w, z, h0 - 1, w, n, m_n, SHAPE)  # [BN]
            below = load_numbers(p_w, z, h0 + TR, w, n, m_n, SHAPE)  # [BN]
        if Z > 1:
            before, behind = (), ()
            for i in tl.static_range(TR):
                before = before + (load_numbers(p_w, z - 1, h0 + i, w, n, m_n, SHAPE),)  # [BN]
                behind = behind + (load_numbers(p_w, z + 1, h0 + i, w, n, m_n, SHAPE),)  # [BN]
        for i in tl.static_range(TR):
            h, own = h0 + i, column[i]
            acc = SHAPE.scales[2] * (apart(own, left[i], w > 0, ACC) + apart(own, right[i], w + 1 < W, ACC))
            if H > 1:
                of_h = apart(own, column[i - 1] if i > 0 else above, h > 0, ACC)
                of_h += apart(own, column[i + 1] if i + 1 < TR else below, h + 1 < H, ACC)
                acc += SHAPE.scales[1] * of_h
            if Z > 1:
                of_z = apart(own, before[i], z > 0, ACC) + apart(own, behind[i], z + 1 < Z, ACC)
                acc += SHAPE.scales[0] * of_z

            # Epilogue: dw of a position.
            position, m = place_of(z, h, w, SHAPE)
            tl.store(p_dw + position * N + n, (g * acc).to(p_dw.dtype.element_ty), mask=m_n & m)  # [BN]
        left, column = column, right


@triton.jit
def inverse_norm(squares):
    """1 / sqrt(squares), elementwise; 0 for a filter of zeros, which has no direction."""
    nonzero = squares > 0.0
    return tl.where(nonzero, tl.rsqrt(tl.where(nonzero, squares, 1.0)), 0.0)


@triton.jit
def neighbours_kernel(
    p_w,  # (Z, H, W, D, F), the weight
    p_kept,  # (dimensions + 1, Z, H, W, F), for the gradient: 1 / norm, then the cosines of pairs along W, H and Z,
    # each at the first position of its pair
    p_sums,  # (programs,), each program's part of the sum
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """The sum of factor * (1 - cos(a, b)) / 2 over the filters a, b of all pairs.

    A program computes BN filters of TR x TC positions: the pairs whose first position it owns. It loops over all
    entries of a filter, and also sums the squares of the neighbours past its borders, so that it needs no other program
    for its cosines. Grid: as of `walk_of`.
    """
    D: tl.constexpr = SHAPE.entries
    F: tl.constexpr = SHAPE.filters
    BK: tl.constexpr = TILE.block_k
    BN: tl.constexpr = TILE.block_n
    BLOCKS: tl.constexpr = (F + BN - 1) // BN
    TR: tl.constexpr = TILE.rows
    TC: tl.constexpr = TILE.cols
    Z: tl.constexpr = SHAPE.grid[0]
    H: tl.constexpr = SHAPE.grid[1]
    W: tl.constexpr = SHAPE.grid[2]
    PF: tl.constexpr = Z * H * W * F
    OWN: tl.constexpr = TR * TC
    ACC: tl.constexpr = tl.float64 if p_w.dtype.element_ty == tl.float64 else tl.float32

    # Tile: positions from (z, h0, w0) on, and a block of their numbers.
    z, h0, w0, block = walk_of(BLOCKS, SHAPE, TILE)

    # Addresses: filters f [BN]; and the places in `squares` of the tile's positions, and of those right of it, below it
    # and behind it.
    f = block * BN + tl.arange(0, BN)
    m_f = f < F
    RIGHT: tl.constexpr = OWN
    BELOW: tl.constexpr = RIGHT + TR
    BEHIND: tl.constexpr = BELOW + (TC if H > 1 else 0)
    COUNT: tl.constexpr = BEHIND + (OWN if Z > 1 else 0)
    squares, along_w, along_h, along_z = (), (), (), ()
    for _ in tl.static_range(COUNT):
        squares = squares + (tl.zeros((BK, BN), ACC),)
    for _ in tl.static_range(OWN):
        along_w = along_w + (tl.zeros((BK, BN), ACC),)
        if H > 1:
            along_h = along_h + (tl.zeros((BK, BN), ACC),)
        if Z > 1:
            along_z = along_z + (tl.zeros((BK, BN), ACC),)

    # Loop: the entries of filters.
    for start in tl.range(0, D, BK, num_stages=TILE.stages):
        k = start + tl.arange(0, BK)
        n = k[:, None] * F + f[None, :]
        m_n = (k < D)[:, None] & m_f[None, :]
        b_w = ()
        for j in tl.static_range(OWN):
            b_w = b_w + (load_numbers(p_w, z, h0 + j // TC, w0 + j % TC, n, m_n, SHAPE).to(ACC),)  # [BK, BN]
        for i in tl.static_range(TR):
            b_w = b_w + (load_numbers(p_w, z, h0 + i, w0 + TC, n, m_n, SHAPE).to(ACC),)  # [BK, BN]
        if H > 1:
            for j in tl.static_range(TC):
                b_w = b_w + (load_numbers(p_w, z, h0 + TR, w0 + j, n, m_n, SHAPE).to(ACC),)  # [BK, BN]
        if Z > 1:
            for j in tl.static_range(OWN):
                b_w = b_w + (load_numbers(p_w, z + 1, h0 + j // TC, w0 + j % TC, n, m_n, SHAPE).to(ACC),)  # [BK, BN]
        new_squares, new_w, new_h, new_z = (), (), (), ()
        for j in tl.static_range(COUNT):
            new_squares = new_squares + (squares[j] + b_w[j] * b_w[j],)
        for j in tl.static_range(OWN):
            if j % TC + 1 < TC:
                right = b_w[j + 1]
            else:
                right = b_w[RIGHT + j // TC]
            new_w = new_w + (along_w[j] + b_w[j] * right,)
            if H > 1:
                if j // TC + 1 < TR:
                    below = b_w[j + TC]
                else:
                    below = b_w[BELOW + j % TC]
                new_h = new_h + (along_h[j] + b_w[j] * below,)
            if Z > 1:
                new_z = new_z + (along_z[j] + b_w[j] * b_w[BEHIND + j],)
        squares, along_w, along_h, along_z = new_squares, new_w, new_h, new_z

    # Epilogue: 1 / norm of each filter and the cosines of its pairs, and the sum.
    inverse = ()
    for j in tl.static_range(COUNT):
        inverse = inverse + (inverse_norm(tl.sum(squares[j], 0)),)  # [BN]
    acc = tl.zeros((BN,), ACC)
    for j in tl.static_range(OWN):
        h, w = h0 + j // TC, w0 + j % TC
        position, m = place_of(z, h, w, SHAPE)
        p_out, m = p_kept + position * F + f, m & m_f
        tl.store(p_out, inverse[j], mask=m)  # [BN]
        if j % TC + 1 < TC:
            of_right = inverse[j + 1]
        else:
            of_right = inverse[RIGHT + j // TC]
        cosine = tl.sum(along_w[j], 0) * inverse[j] * of_right
        tl.store(p_out + PF, cosine, mask=m)  # [BN]
        acc += SHAPE.scales[2] * tl.where(m & (w + 1 < W), (1.0 - cosine) / 2, 0.0)
        if H > 1:
            if j // TC + 1 < TR:
                of_below = inverse[j + TC]
            else:
                of_below = inverse[BELOW + j % TC]
            cosine = tl.sum(along_h[j], 0) * inverse[j] * of_below
            tl.store(p_out + 2 * PF, cosine, mask=m)  # [BN]
            acc += SHAPE.scales[1] * tl.where(m & (h + 1 < H), (1.0 - cosine) / 2, 0.0)
        if Z > 1:
            cosine = tl.sum(along_z[j], 0) * inverse[j] * inverse[BEHIND + j]
            tl.store(p_out + 3 * PF, cosine, mask=m)  # [BN]
            acc += SHAPE.scales[0] * tl.where(m & (z + 1 < Z), (1.0 - cosine) / 2, 0.0)
    tl.store(p_sums + tl.program_id(0), tl.sum(acc, 0))


@triton.jit
def load_of_filters(p_saved, z, h, w, f, m_f, KIND: tl.constexpr, SHAPE: tl.constexpr):
    """What `neighbours_kernel` kept of filters f [BN] at position (z, h, w): 1 / norm (KIND 0), or cosines of pairs
    along W, H or Z (KIND 1, 2 or 3). They are zeros where the position is off the grid.
    """
    position, m = place_of(z, h, w, SHAPE)
    PF: tl.constexpr = SHAPE.grid[0] * SHAPE.grid[1] * SHAPE.grid[2] * SHAPE.filters
    return tl.load(p_saved + KIND * PF + position * SHAPE.filters + f, mask=m_f & m, other=0.0)  # [BN]


@triton.jit
def load_direction(p_w, p_saved, z, h, w, n, m_n, f, m_f, SHAPE: tl.constexpr):
    """The directions a / |a| of a position's filters [BK, BN], and 1 / |a| [BN]; zeros where it is off the grid."""
    inverse = load_of_filters(p_saved, z, h, w, f, m_f, 0, SHAPE)
    b_w = load_numbers(p_w, z, h, w, n, m_n, SHAPE)  # [BK, BN]
    return b_w.to(inverse.dtype) * inverse[None, :], inverse


@triton.jit
def neighbours_grad_kernel(
    p_w,  # (Z, H, W, D, F), the weight
    p_saved,  # (dimensions + 1, Z, H, W, F), p_kept of `neighbours_kernel`
    p_g,  # one number, the gradient of the penalty
    p_dw,  # (Z, H, W, D, F)
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """dw[a] = g / (2 * |a|) * sum over the neighbours b of a of factor * (cos(a, b) * a / |a| - b / |b|).

    A program computes BK entries of BN filters of TR x TC positions. Grid: as of `walk_of`.
    """
    D: tl.constexpr = SHAPE.entries
    F: tl.constexpr = SHAPE.filters
    BK: tl.constexpr = TILE.block_k
    BN: tl.constexpr = TILE.block_n
    BLOCKS_F: tl.constexpr = (F + BN - 1) // BN
    BLOCKS: tl.constexpr = (D + BK - 1) // BK * BLOCKS_F
    TR: tl.constexpr = TILE.rows
    Z: tl.constexpr = SHAPE.grid[0]
    H: tl.constexpr = SHAPE.grid[1]
    W: tl.constexpr = SHAPE.grid[2]
    ACC: tl.constexpr = tl.float64 if p_w.dtype.element_ty == tl.float64 else tl.float32

    # Tile: positions from (z, h0, w0) on, and a block of their numbers.
    z, h0, w0, block = walk_of(BLOCKS, SHAPE, TILE)

    # Addresses: the numbers of a position [BK, BN]; and the first column and the one before it are loaded.
    k = block // BLOCKS_F * BK + tl.arange(0, BK)
    f = block % BLOCKS_F * BN + tl.arange(0, BN)
    m_f = f < F
    n = k[:, None] * F + f[None, :]
    m_n = (k < D)[:, None] & m_f[None, :]
    g = tl.load(p_g).to(ACC) * 0.5
    left, column, of_column, cosines_left = (), (), (), ()
    for i in tl.static_range(TR):
        direction, _ = load_direction(p_w, p_saved, z, h0 + i, w0 - 1, n, m_n, f, m_f, SHAPE)
        left = left + (direction,)
        direction, inverse = load_direction(p_w, p_saved, z, h0 + i, w0, n, m_n, f, m_f, SHAPE)
        column, of_column = column + (direction,), of_column + (inverse,)
        cosines_left = cosines_left + (load_of_filters(p_saved, z, h0 + i, w0 - 1, f, m_f, 1, SHAPE),)

    # Loop: columns. All that one needs is loaded before its first store: the compiler moves no load above a store.
    # Neighbours off the grid are zeros, which add nothing.
    for w in range(w0, tl.minimum(w0 + TILE.cols, W)):
        right, of_right, cosines_right = (), (), ()
        for i in tl.static_range(TR):
            direction, inverse = load_direction(p_w, p_saved, z, h0 + i, w + 1, n, m_n, f, m_f, SHAPE)
            right, of_right = right + (direction,), of_right + (inverse,)
            cosines_right = cosines_right + (load_of_filters(p_saved, z, h0 + i, w, f, m_f, 1, SHAPE),)
        above, below, cosines_h = column[0], column[0], ()
        if H > 1:
            above, _ = load_direction(p_w, p_saved, z, h0 - 1, w, n, m_n, f, m_f, SHAPE)
            below, _ = load_direction(p_w, p_saved, z, h0 + TR, w, n, m_n, f, m_f, SHAPE)
            for i in tl.static_range(TR + 1):
                cosines_h = cosines_h + (load_of_filters(p_saved, z, h0 + i - 1, w, f, m_f, 2, SHAPE),)
        of_z, cosines_z = (), ()
        if Z > 1:
            for i in tl.static_range(TR):
                before, _ = load_direction(p_w, p_saved, z - 1, h0 + i, w, n, m_n, f, m_f, SHAPE)
                behind, _ = load_direction(p_w, p_saved, z + 1, h0 + i, w, n, m_n, f, m_f, SHAPE)
                cosine = load_of_filters(p_saved, z - 1, h0 + i, w, f, m_f, 3, SHAPE)
                cosine += load_of_filters(p_saved, z, h0 + i, w, f, m_f, 3, SHAPE)
                of_z, cosines_z = of_z + (before + behind,), cosines_z + (cosine,)
        for i in tl.static_range(TR):
            cosine = SHAPE.scales[2] * (cosines_left[i] + cosines_right[i])  # [BN]
            acc = SHAPE.scales[2] * (left[i] + right[i])  # [BK, BN]
            if H > 1:
                cosine += SHAPE.scales[1] * (cosines_h[i] + cosines_h[i + 1])
                of_above, of_below = column[i - 1] if i > 0 else above, column[i + 1] if i + 1 < TR else below
                acc += SHAPE.scales[1] * (of_above + of_below)
            if Z > 1:
                cosine += SHAPE.scales[0] * cosines_z[i]
                acc += SHAPE.scales[0] * of_z[i]

            # Epilogue: dw of a position.
            position, m = place_of(z, h0 + i, w, SHAPE)
            b_dw = (g * of_column[i])[None, :] * (cosine[None, :] * column[i] - acc)
            tl.store(p_dw + position * (D * F) + n, b_dw.to(p_dw.dtype.element_ty), mask=m_n & m)  # [BK, BN]
        left, cosines_left = column, cosines_right
        column, of_column = right, of_right


@triton.jit
def mean_kernel(
    p_w,  # (P, N), the weight
    p_means,  # (chunks, N), the mean of each chunk of positions
    p_sums,  # (programs,), the sum of squares around the chunk's mean, of each block of numbers
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """The mean of each chunk of TC positions, and the sum of the squared distances to it.

    A program computes BN numbers of one chunk, TR positions a step. Grid: blocks of numbers, chunks.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    N: tl.constexpr = SHAPE.entries * SHAPE.filters
    P: tl.constexpr = SHAPE.grid[0] * SHAPE.grid[1] * SHAPE.grid[2]
    BN: tl.constexpr = TILE.block_n
    BLOCKS: tl.constexpr = (N + BN - 1) // BN
    TR: tl.constexpr = TILE.rows
    ACC: tl.constexpr = tl.float64 if p_w.dtype.element_ty == tl.float64 else tl.float32

    # Tile: positions from `first` on, and a block of their numbers.
    pid = unbounded(tl.program_id(0))
    chunk = pid // BLOCKS
    first = chunk * TILE.cols
    last = tl.minimum(first + TILE.cols, P)

    # Addresses: the numbers of a position [BN].
    n = pid % BLOCKS * BN + tl.arange(0, BN)
    m_n = n < N
    p_w += n

    # Loop: positions. Each step joins the mean and the squares of its positions to those of the steps before.
    mean, acc = tl.zeros((BN,), ACC), tl.zeros((BN,), ACC)
    for start in range(first, last, TR):
        b_w, of_step = (), tl.zeros((BN,), ACC)
        for i in tl.static_range(TR):
            position = tl.cast(start + i, tl.int64)
            b_w = b_w + (tl.load(p_w + position * N, mask=m_n & (start + i < last), other=0.0).to(ACC),)  # [BN]
            of_step += b_w[i]
        size = tl.minimum(last - start, TR).to(ACC)
        of_step = of_step / size
        for i in tl.static_range(TR):
            d = tl.where(start + i < last, b_w[i] - of_step, 0.0)
            acc += d * d
        share = size / (start - first + size)
        moved = of_step - mean
        acc += moved * moved * ((start - first) * share)
        mean += moved * share

    # Epilogue: the mean, and the sum.
    tl.store(p_means + chunk.to(tl.int64) * N + n, mean, mask=m_n)  # [BN]
    tl.store(p_sums + pid, tl.sum(tl.where(m_n, acc, 0.0), 0))


@triton.jit
def mean_grad_kernel(
    p_w,  # (P, N), the weight
    p_mean,  # (N,), the mean of all positions
    p_g,  # one number, the gradient of the penalty
    p_dw,  # (P, N)
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """dw = 2 * g * scales[0] * (w - mean).

    A program computes BN numbers of TR positions. Grid: blocks of numbers, blocks of positions.
    """
    N: tl.constexpr = SHAPE.entries * SHAPE.filters
    P: tl.constexpr = SHAPE.grid[0] * SHAPE.grid[1] * SHAPE.grid[2]
    BN: tl.constexpr = TILE.block_n
    BLOCKS: tl.constexpr = (N + BN - 1) // BN
    TR: tl.constexpr = TILE.rows
    ACC: tl.constexpr = tl.float64 if p_w.dtype.element_ty == tl.float64 else tl.float32

    # Tile: positions from `first` on, and a block of their numbers.
    pid = unbounded(tl.program_id(0))
    first = pid // BLOCKS * TR

    # Addresses: the numbers of a position [BN]; and their mean is loaded.
    n = pid % BLOCKS * BN + tl.arange(0, BN)
    m_n = n < N
    g = 2.0 * tl.load(p_g).to(ACC)
    mean = tl.load(p_mean + n, mask=m_n, other=0.0)  # [BN]

    # Loop: positions.
    for i in tl.static_range(TR):
        o_w = (first + i).to(tl.int64) * N + n
        m_w = m_n & (first + i < P)
        b_w = tl.load(p_w + o_w, mask=m_w, other=0.0)  # [BN]

        # Epilogue: dw of a position.
        b_dw = (b_w.to(ACC) - mean) * (g * SHAPE.scales[0])
        tl.store(p_dw + o_w, b_dw.to(p_dw.dtype.element_ty), mask=m_w)  # [BN]
