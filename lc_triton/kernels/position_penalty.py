"""Penalties between positions, each value and each gradient in one launch, for which memory is read once.

A weight is (Z, H, W, D, F): a grid of positions, D = taps * channels, F filters; n counts the N = D * F numbers of a
position. A program of the pairs' kernels owns TR rows of positions and walks along TC columns. It holds a column and
those beside it in registers: of each column it loads its own rows, the rows above and below them, and nothing twice.
Each program of a value writes one sum, so that no result depends on the order in which programs arrive.
"""
# ruff: noqa: RUF005  (Triton's language has no starred items of a tuple)

import triton
import triton.language as tl

from lc_triton.kernels.common import unbounded


@triton.jit
def walk_of(BLOCKS: tl.constexpr, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """Decode the number of a program: its leading position, first row, first column, and its block of numbers.

    The programs of SPAN blocks of numbers run side by side, for one tile of positions after the other: the neighbours
    that tiles share are still in L2.
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
    """The position in row-major order, and whether it is on the grid."""
    m = (z >= 0) & (z < SHAPE.grid[0]) & (h >= 0) & (h < SHAPE.grid[1]) & (w >= 0) & (w < SHAPE.grid[2])
    return ((z * SHAPE.grid[1] + h) * SHAPE.grid[2] + w).to(tl.int64), m


@triton.jit
def load_numbers(p_w, z, h, w, n, m_n, SHAPE: tl.constexpr):
    """The numbers n of a position, in the shape of n; zeros where it is not on the grid."""
    position, m = place_of(z, h, w, SHAPE)
    return tl.load(p_w + position * (SHAPE.entries * SHAPE.filters) + n, mask=m_n & m, other=0.0)


@triton.jit
def apart(a, b, exists, ACC: tl.constexpr):
    """The difference of a pair, zero where there is no such pair."""
    return tl.where(exists, a.to(ACC) - b.to(ACC), 0.0)


@triton.jit
def smooth_kernel(
    p_w,  # (Z, H, W, N)
    p_sums,  # (programs,)
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """The sum of (a - b)^2 over the pairs whose first position is the program's, each times a factor."""
    N: tl.constexpr = SHAPE.entries * SHAPE.filters
    BN: tl.constexpr = TILE.block_n
    BLOCKS: tl.constexpr = (N + BN - 1) // BN
    TR: tl.constexpr = TILE.rows
    Z: tl.constexpr = SHAPE.grid[0]
    H: tl.constexpr = SHAPE.grid[1]
    W: tl.constexpr = SHAPE.grid[2]
    ACC: tl.constexpr = tl.float64 if p_w.dtype.element_ty == tl.float64 else tl.float32

    # Tile.
    z, h0, w0, block = walk_of(BLOCKS, SHAPE, TILE)

    # Addresses: the numbers of each position, and the first column.
    n = block * BN + tl.arange(0, BN)
    m_n = n < N
    column = ()
    for i in tl.static_range(TR):
        column = column + (load_numbers(p_w, z, h0 + i, w0, n, m_n, SHAPE),)  # [BN]

    # Loop over columns.
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

    # Epilogue.
    tl.store(p_sums + tl.program_id(0), tl.sum(acc, 0))


@triton.jit
def smooth_grad_kernel(
    p_w,  # (Z, H, W, N)
    p_g,  # one number
    p_dw,  # (Z, H, W, N)
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """dw = 2 g times the differences from all neighbours, each with the factor of its direction."""
    N: tl.constexpr = SHAPE.entries * SHAPE.filters
    BN: tl.constexpr = TILE.block_n
    BLOCKS: tl.constexpr = (N + BN - 1) // BN
    TR: tl.constexpr = TILE.rows
    Z: tl.constexpr = SHAPE.grid[0]
    H: tl.constexpr = SHAPE.grid[1]
    W: tl.constexpr = SHAPE.grid[2]
    ACC: tl.constexpr = tl.float64 if p_w.dtype.element_ty == tl.float64 else tl.float32

    # Tile.
    z, h0, w0, block = walk_of(BLOCKS, SHAPE, TILE)

    # Addresses: the numbers of each position, the first column and the one before it.
    n = block * BN + tl.arange(0, BN)
    m_n = n < N
    g = 2.0 * tl.load(p_g).to(ACC)
    left, column = (), ()
    for i in tl.static_range(TR):
        left = left + (load_numbers(p_w, z, h0 + i, w0 - 1, n, m_n, SHAPE),)  # [BN]
        column = column + (load_numbers(p_w, z, h0 + i, w0, n, m_n, SHAPE),)  # [BN]

    # Loop over columns. All that one needs is loaded before anything is stored.
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

            # Epilogue of a position.
            position, m = place_of(z, h, w, SHAPE)
            tl.store(p_dw + position * N + n, (g * acc).to(p_dw.dtype.element_ty), mask=m_n & m)  # [BN]
        left, column = column, right


@triton.jit
def inverse_norm(squares):
    """1 / norm, and 0 for a filter of zeros, which has no direction."""
    nonzero = squares > 0.0
    return tl.where(nonzero, tl.rsqrt(tl.where(nonzero, squares, 1.0)), 0.0)


@triton.jit
def neighbours_kernel(
    p_w,  # (Z, H, W, D, F)
    p_kept,  # (dimensions + 1, Z, H, W, F): 1 / norm, then the cosines of pairs along W, H, Z, at their first position
    p_sums,  # (programs,)
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """The sum of (1 - cos(a, b)) / 2 over the pairs whose first position is the program's, times their factors.

    A program owns TR x TC positions and BN filters, and loops over all entries of a filter. It sums the squares of the
    neighbours past its borders too, so that its cosines are whole.
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

    # Tile.
    z, h0, w0, block = walk_of(BLOCKS, SHAPE, TILE)

    # Addresses. Positions of the tile, then those right of it, below it and behind it.
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

    # Loop over the entries of filters.
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

    # Epilogue.
    inverse = ()
    for j in tl.static_range(COUNT):
        inverse = inverse + (inverse_norm(tl.sum(squares[j], 0)),)
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
    """1 / norm (KIND 0) or cosines of pairs (1, 2, 3: along W, H, Z) of a position; zeros where it is off the grid."""
    position, m = place_of(z, h, w, SHAPE)
    PF: tl.constexpr = SHAPE.grid[0] * SHAPE.grid[1] * SHAPE.grid[2] * SHAPE.filters
    return tl.load(p_saved + KIND * PF + position * SHAPE.filters + f, mask=m_f & m, other=0.0)  # [BN]


@triton.jit
def load_direction(p_w, p_saved, z, h, w, n, m_n, f, m_f, SHAPE: tl.constexpr):
    """The directions `a / |a|` of a position's filters, in the shape of n, and 1 / |a|; zeros off the grid."""
    inverse = load_of_filters(p_saved, z, h, w, f, m_f, 0, SHAPE)
    b_w = load_numbers(p_w, z, h, w, n, m_n, SHAPE)  # [BK, BN]
    return b_w.to(inverse.dtype) * inverse[None, :], inverse


@triton.jit
def neighbours_grad_kernel(
    p_w,  # (Z, H, W, D, F)
    p_saved,  # (dimensions + 1, Z, H, W, F), what `neighbours_kernel` kept
    p_g,  # one number
    p_dw,  # (Z, H, W, D, F)
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """dw = g / 2 / |a| times the sum of `cos a / |a| - b / |b|` over all neighbours b, each times a factor."""
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

    # Tile.
    z, h0, w0, block = walk_of(BLOCKS, SHAPE, TILE)

    # Addresses: the numbers of each position, the first column and the one before it.
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

    # Loop over columns. All that one needs is loaded before anything is stored. Neighbours off the grid are zeros.
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

            # Epilogue of a position.
            position, m = place_of(z, h0 + i, w, SHAPE)
            b_dw = (g * of_column[i])[None, :] * (cosine[None, :] * column[i] - acc)
            tl.store(p_dw + position * (D * F) + n, b_dw.to(p_dw.dtype.element_ty), mask=m_n & m)  # [BK, BN]
        left, cosines_left = column, cosines_right
        column, of_column = right, of_right


@triton.jit
def mean_kernel(
    p_w,  # (P, N)
    p_means,  # (chunks, N): the mean filter of each chunk of positions
    p_sums,  # (programs,): the squares around it
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """The mean filter of a chunk of TC positions, TR at a time, and the sum of the squares around it.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    N: tl.constexpr = SHAPE.entries * SHAPE.filters
    P: tl.constexpr = SHAPE.grid[0] * SHAPE.grid[1] * SHAPE.grid[2]
    BN: tl.constexpr = TILE.block_n
    BLOCKS: tl.constexpr = (N + BN - 1) // BN
    TR: tl.constexpr = TILE.rows
    ACC: tl.constexpr = tl.float64 if p_w.dtype.element_ty == tl.float64 else tl.float32

    # Tile.
    pid = unbounded(tl.program_id(0))
    chunk = pid // BLOCKS
    first = chunk * TILE.cols
    last = tl.minimum(first + TILE.cols, P)

    # Addresses.
    n = pid % BLOCKS * BN + tl.arange(0, BN)
    m_n = n < N
    p_w += n

    # Loop over positions.
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

    # Epilogue.
    tl.store(p_means + chunk.to(tl.int64) * N + n, mean, mask=m_n)  # [BN]
    tl.store(p_sums + pid, tl.sum(tl.where(m_n, acc, 0.0), 0))


@triton.jit
def mean_grad_kernel(
    p_w,  # (P, N)
    p_mean,  # (N,)
    p_g,  # one number
    p_dw,  # (P, N)
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """dw = 2 g times the distance to the mean filter, of TR positions."""
    N: tl.constexpr = SHAPE.entries * SHAPE.filters
    P: tl.constexpr = SHAPE.grid[0] * SHAPE.grid[1] * SHAPE.grid[2]
    BN: tl.constexpr = TILE.block_n
    BLOCKS: tl.constexpr = (N + BN - 1) // BN
    TR: tl.constexpr = TILE.rows
    ACC: tl.constexpr = tl.float64 if p_w.dtype.element_ty == tl.float64 else tl.float32

    # Tile.
    pid = unbounded(tl.program_id(0))
    first = pid // BLOCKS * TR

    # Addresses.
    n = pid % BLOCKS * BN + tl.arange(0, BN)
    m_n = n < N
    g = 2.0 * tl.load(p_g).to(ACC)
    mean = tl.load(p_mean + n, mask=m_n, other=0.0)  # [BN]

    # Loop over positions.
    for i in tl.static_range(TR):
        o_w = (first + i).to(tl.int64) * N + n
        m_w = m_n & (first + i < P)
        b_w = tl.load(p_w + o_w, mask=m_w, other=0.0)  # [BN]

        # Epilogue of a position.
        b_dw = (b_w.to(ACC) - mean) * (g * SHAPE.scales[0])
        tl.store(p_dw + o_w, b_dw.to(p_dw.dtype.element_ty), mask=m_w)  # [BN]
