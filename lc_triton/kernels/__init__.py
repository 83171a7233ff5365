"""The Triton kernels: one body a face, in band-tile form.

Letters, here and in every kernel: B batch, P output positions, T window taps, C input channels, F filters, D window
length, G groups. Names: `p_` pointer, `b_` block of values, `o_` offset, `m_` mask, CAPS constexpr. A program owns a
tile of TQ x TP positions (rows x columns of the last two spatial dimensions; leading ones one at a time) and FT
filters of each:

    Y (BB x BN)  +=  X_run (BB x K)  @  W_band (K x BN)       BN = TQ * TP * FT

where k walks (leading taps, run rows, run columns, channel) under the tile and n is (row, column, filter) in it. The
band matrix is never built: the weight's load computes which tap connects k with n and masks where there is none, and
a masked lane fetches nothing, so every weight byte moves once. A 1 x 1 tile is the plain product.
"""
