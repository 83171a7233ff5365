"""The Triton kernels: the three passes as band tiles, and kernels for layers that a band tile does not serve.

    forward, input_grad, weight_grad   the three passes, as below
    combine                            the second launch of a split loop: it adds the parts
    update                             the weight gradient's epilogue, or second launch, that updates the weight
    shared_weight_grad                 the weight gradient of filters that positions share
    linear_backward                    the input gradient and the update of the weight, where a window is one site
    pad_channels                       a copy of x with more channels, from which the forward gathers
    gather                             the three passes where positions read the sites of a table
    four_bits, four_bits_vector        forward and input gradient of weights of 4 bits; the second for few samples
    low_rank                           the forward of positions that mix a few filters
    position_penalty                   penalties between the filters of positions, and their gradients
    common, blocks, weight_block       functions that these kernels share

Letters, in the shapes of arguments: B batch, P output positions, T window taps, C input channels, F filters, G groups,
D window length, T * C // G; I0, I1, IH, IW the sizes of the input and O0, O1, OH, OW those of the output (leading ones
are 1 in one and two dimensions). In the code of most kernels, C is the channels of one group; where it is all channels,
CG is those of a group. Of a block, BB is its samples, BK its indices of the loop, BN its columns.

Names: `p_` pointer, `b_` block of values, `o_` offset, `m_` mask, CAPS constexpr. A pitch is a stride counted in sites
or positions. The brackets at the end of a line give the shape of the block that it loads, stores or computes.

A program of the three passes owns a tile of TQ x TP positions (rows x columns of the last two spatial dimensions; one
position of the leading ones) and FT filters of each. In the forward:

    Y (BB x BN)  +=  X (BB x K)  @  W_band (K x BN)       BN = TQ * TP * FT

Here k counts (leading taps, footprint rows, footprint columns, channel) and n counts (row, column, filter). The input
footprint is the block of sites that the tile's windows read. In one dimension, with kernel 3, stride 1 and a tile of
TP = 4 positions:

    sites of x            0   1   2   3   4   5        the input footprint, 6 sites: K = 6 * C
    window of position 0  o---o---o
    window of position 1      o---o---o
    window of position 2          o---o---o
    window of position 3              o---o---o

    W_band                    n: position 0  1  2  3    w[p, t] is the weight of position p and tap t,
    k: site 0                      w00   .    .    .    a block of C x FT numbers
       site 1                      w01  w10   .    .
       site 2                      w02  w11  w20   .    "." is no tap: the load is masked, and fetches nothing
       site 3                       .   w12  w21  w30
       site 4                       .    .   w22  w31
       site 5                       .    .    .   w32

The band matrix is never built. The weight's load computes which tap connects k with n and masks where there is none, so
a block of samples loads each weight once. A 1 x 1 tile is the plain product of a window and its position's weights. In
the input gradient, sites and positions change roles. The weight gradient computes the band, and stores nothing else.

Without `tl.dot`, a tile of several positions, or of groups, has no band: each column reads the window of its own
position (OWN in the code), because a band would only multiply zeros.

Where positions share filters (SHAPE.shared), P of the weight counts regions. The passes that read the weight only take
the region of each position for its address.

Every grid has one dimension, so that `tl.program_id(1)` is a zero that the compiler does not know. A docstring lists
what the grid counts; the first of the list changes fastest from program to program. B is not specialised, so that one
kernel serves all batches: Triton would compile one for B = 1, one for multiples of 16 and one for the rest.

Every kernel has these stages, in this order. Tile: what its program owns. Addresses: the pointers and offsets that do
not change in the loop. Loop: load, multiply, add. Epilogue: bias and activation, and the stores; it stands in the loop
where each step has a result of its own. A kernel that sums nothing has no loop.
"""
