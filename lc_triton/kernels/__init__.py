"""The Triton kernels: one for each pass, in band-tile form, and one that adds the parts of a split loop.

Letters, here and in every kernel: B batch, P output positions, T window taps, C input channels, F filters, D window
length, G groups. Names: `p_` pointer, `b_` block of values, `o_` offset, `m_` mask, CAPS constexpr. A program owns a
tile of TQ x TP positions (rows x columns of the last two spatial dimensions; of the leading ones, one position) and
FT filters of each:

    Y (BB x BN)  +=  X (BB x K)  @  W_band (K x BN)       BN = TQ * TP * FT

Here k counts (leading taps, footprint rows, footprint columns, channel) and n counts (row, column, filter). The input
footprint is the run of sites that the tile's windows read. In one dimension, with kernel 3, stride 1 and a tile of
TP = 4 positions:

    sites of x            0   1   2   3   4   5        the input footprint, 6 sites: K = 6 * C
    window of position 0  o---o---o
    window of position 1      o---o---o
    window of position 2          o---o---o
    window of position 3              o---o---o

    W_band                    n: position 0  1  2  3    w[p, t] is the weight of position p and tap t,
    k: site 0                      w00   .    .    .    a block of C x F numbers
       site 1                      w01  w10   .    .
       site 2                      w02  w11  w20   .    "." is no tap: the load is masked, and fetches nothing
       site 3                       .   w12  w21  w30
       site 4                       .    .   w22  w31
       site 5                       .    .    .   w32

The band matrix is never built. The weight's load computes which tap connects k with n and masks where there is none,
so every byte of the weights moves once. A 1 x 1 tile is the plain product of a window and its position's weights.

Where positions share filters (SHAPE.shared), P of the weight counts regions. The passes that read the weight only take
the region of each position for its address. The weight gradient has a kernel of its own, which sums over the positions
of a region as it sums over samples. Where positions read the sites of a table, the kernels are those of `gather`; for
weights of 4 bits, of `four_bits`; and where positions mix a few filters, of `low_rank`. Images of three channels may
first be copied with a fourth one, by `pad_channels`.

Every kernel has four stages. Tile: what its program owns. Addresses: the pointers that do not change in the loop.
Loop: load, multiply, add. Epilogue: bias and activation, and the stores.
"""
