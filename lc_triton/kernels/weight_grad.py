"""The weight gradient, with the bias gradient of each position in the same launch.

It has three loops: blocks of k past one block of samples (STREAM), or samples past one block of k, as a product of
blocks or, where each column has a window of its own (OWN), index by index.
"""

import triton
import triton.language as tl

from lc_triton.kernels.common import tile_offsets
from lc_triton.kernels.update import first_of_blocks, update_weights
from lc_triton.kernels.weight_block import decode_block, decode_index, load_dz, store_block, store_dz, sum_bias


@triton.jit(do_not_specialize=["B"])
def weight_grad_kernel(
    p_x,  # (B, I0, I1, IH, IW, C), with IW and C dense
    p_g,  # (B, O0, O1, OH, OW, F), with OW and F dense
    p_saved,  # (B, P, F), y or z of the activation, where g is the gradient of y; None where it is that of z
    p_dw,  # (P, T, C // G, F), or with TILE.descriptor a tensor descriptor of it as (P, T * C // G, F)
    # With UPDATE, p_dw is the weight. Of a split batch, p_dw and p_db are sums of parts, with SPLIT in front.
    p_db,  # (P, F), or None
    p_dz,  # (B, P, F), the gradient of z, for the input gradient; or None
    # The pointers from here to p_scalars are those of `update_weights`; None where UPDATE needs none.
    p_m,  # (P, T, C // G, F), the first state; for "square_sum" one number for each block of each program
    p_v,  # (P, T, C // G, F), the second state
    p_amax,  # (P, T, C // G, blocks, 2) of states in 8 bits, the largest magnitudes of both in each block of filters
    p_correction,  # (P, T, C // G, F), of a weight in bfloat16, to its master
    p_added,  # (P, T, C // G, F), a gradient that is a part of the sum
    p_scalars,  # the rule's factors, then the penalty's
    B,
    x_pitch,  # the strides of x along B, I0, I1 and IH, in sites
    g_pitch,  # the strides of g along B, O0, O1 and OH, in positions
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    UPSTREAM: tl.constexpr,
    UPDATE: tl.constexpr,
):
    """dw[p, t, c, f] = sum over b of x[b, site(p, t), c] * dz[b, p, f]; db[p, f] = sum over b of dz[b, p, f].

    dz is g, or g times the activation's derivative. A program computes TQ x TP positions, FT filters of each and one
    block of k, or STREAM of them, for all samples or one part of them. Each (position, tap, channel, filter) lies in
    exactly one program (of each part), which stores it, or with UPDATE updates the weight by it.
    Grid: chunks of k, blocks of filters, groups (with `tl.dot`), tile columns and rows, leading positions, parts.
    """
    C: tl.constexpr = SHAPE.group_channels
    F: tl.constexpr = SHAPE.filters
    O1: tl.constexpr = SHAPE.outputs[1]
    OH: tl.constexpr = SHAPE.outputs[2]
    OW: tl.constexpr = SHAPE.outputs[3]
    BB: tl.constexpr = TILE.block_b
    BK: tl.constexpr = TILE.block_k
    BN: tl.constexpr = TILE.block_n
    KB: tl.constexpr = TILE.k_blocks
    STREAM: tl.constexpr = TILE.stream
    CHUNKS: tl.constexpr = TILE.chunks
    SPLIT: tl.constexpr = TILE.split
    DOT: tl.constexpr = TILE.dot
    OWN: tl.constexpr = TILE.own_windows  # each column gathers the window of its own position
    SWAP: tl.constexpr = TILE.swap
    PRECISION: tl.constexpr = TILE.precision
    WITH_BIAS: tl.constexpr = UPSTREAM.with_bias
    RULE: tl.constexpr = UPDATE.rule
    ACC: tl.constexpr = tl.float64 if p_x.dtype.element_ty == tl.float64 else tl.float32

    # Tile: a chunk of k, columns n of positions and filters, samples first to last - 1. The chunks of one tile run side
    # by side: they share its g.
    pid = tl.program_id(0)
    chunk = pid % CHUNKS
    pid = pid // CHUNKS
    o01, oh0, ow0, part, jr, jc, position, f0, f, _, group, m_n = tile_offsets(pid, False, SHAPE, TILE)
    first, last = 0, B
    if SPLIT > 1:
        steps = tl.cdiv(tl.cdiv(B, BB), SPLIT)
        first = part * steps * BB
        last = tl.minimum(first + steps * BB, B)
        p_dw += part.to(tl.int64) * SHAPE.weight_numel
        if WITH_BIAS:
            p_db += part.to(tl.int64) * SHAPE.out_numel

    # Addresses: each column in a sample of g, and in one of the saved tensor, db and dz.
    o0, o1 = o01 // O1, o01 % O1
    oh, ow = oh0 + jr, ow0 + jc
    box = (o01 * OH + oh0) * OW + ow0
    o_n = (o0 * g_pitch[1] + o1 * g_pitch[2] + oh * g_pitch[3] + ow) * F + f  # [BN]
    o_s = position.to(tl.int64) * F + f  # [BN]

    if STREAM > 1:
        # Loop: blocks of k. All samples are one block: g is loaded once, and x streams past it.
        b = tl.arange(0, BB)
        m_b = b < B
        m = m_b[:, None] & m_n[None, :]
        p_xb = p_x + b.to(tl.int64) * x_pitch[0] * SHAPE.channels + group * C
        b_g = load_dz(p_g, p_saved, b, o_n, o_s, m, g_pitch[0], SHAPE, UPSTREAM)  # [BB, BN]
        if chunk == 0:
            store_dz(p_dz, b_g, b, o_s, m, SHAPE, UPSTREAM)
            if WITH_BIAS:
                tl.store(p_db + o_s, tl.sum(b_g.to(ACC), 0).to(p_db.dtype.element_ty), mask=m_n)  # [BN]
        for block in range(chunk * STREAM, tl.minimum(chunk * STREAM + STREAM, KB)):
            k, t, dh, dw, c, o_k, m_k = decode_block(block, o01, oh0, ow0, x_pitch, SHAPE, TILE)
            b_x = tl.load(p_xb[:, None] + o_k[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
            if SWAP:
                acc = tl.trans(tl.dot(tl.trans(b_g), b_x, input_precision=PRECISION, out_dtype=ACC))
            else:
                acc = tl.dot(tl.trans(b_x), b_g, input_precision=PRECISION, out_dtype=ACC)

            # Epilogue: the band of a block [BK, BN] is stored, or updates the weight.
            store_block(
                acc,
                p_dw,
                p_m + tl.program_id(0) * STREAM + block - chunk * STREAM if RULE == "square_sum" else p_m,
                p_v,
                p_amax,
                p_correction,
                p_added,
                p_scalars,
                block,
                k,
                t,
                dh,
                dw,
                c,
                jr,
                jc,
                position,
                box,
                f0,
                f,
                group,
                m_n,
                SHAPE,
                TILE,
                UPDATE,
            )
    elif OWN:
        # Loop: samples, with the indices of a block of k unrolled: each has a sum of its own. Where a window is one
        # block, the same loop sums the bias gradient.
        TAKEN: tl.constexpr = min(BK, TILE.k_total)
        if KB > 1 and chunk == 0:
            sum_bias(p_g, p_saved, p_db, p_dz, first, last, B, o_n, o_s, m_n, g_pitch, ACC, SHAPE, TILE, UPSTREAM)
        b_db = tl.zeros((BB, BN), ACC)
        acc = ()
        for _ in tl.static_range(TAKEN):
            acc += (tl.zeros((BB, BN), ACC),)
        for start in range(first, last, BB):
            b = start + tl.arange(0, BB)
            m = (b < B)[:, None] & m_n[None, :]
            p_xb = (p_x + b.to(tl.int64) * x_pitch[0] * SHAPE.channels)[:, None]
            b_g = load_dz(p_g, p_saved, b, o_n, o_s, m, g_pitch[0], SHAPE, UPSTREAM)  # [BB, BN]
            if KB == 1:
                store_dz(p_dz, b_g, b, o_s, m, SHAPE, UPSTREAM)
                b_db += b_g.to(ACC)
            sums = ()
            for i in tl.static_range(TAKEN):
                o_k, m_k = decode_index(chunk * BK + i, o01, oh, ow, group * C, x_pitch, SHAPE, TILE)
                b_x = tl.load(p_xb + o_k[None, :], mask=m & m_k[None, :], other=0.0)  # [BB, BN]
                sums += (acc[i] + b_x.to(ACC) * b_g.to(ACC),)
            acc = sums

        # Epilogue: each sum over the samples of a block is stored, or updates the weight.
        if WITH_BIAS and KB == 1:
            tl.store(p_db + o_s, tl.sum(b_db, 0).to(p_db.dtype.element_ty), mask=m_n)  # [BN]
        if RULE == "none":
            p_dw += position.to(tl.int64) * SHAPE.position_weights + f
            for i in tl.static_range(TAKEN):
                k = chunk * BK + i
                b_dw = tl.sum(acc[i], 0).to(p_dw.dtype.element_ty)
                tl.store(p_dw + k * F, b_dw, mask=m_n & (k < TILE.k_total))  # [BN]
        else:
            BLOCK: tl.constexpr = UPDATE.block
            o_w = position.to(tl.int64) * SHAPE.position_weights + f
            o_b, m_b = o_w, m_n
            if BLOCK > 0:
                o_b, m_b = first_of_blocks(o_w, BLOCK), first_of_blocks(tl.where(m_n, 0, 1), BLOCK) == 0
            for i in tl.static_range(TAKEN):
                k = chunk * BK + i
                is_k = k < TILE.k_total
                b_g, m_w, m_wb = tl.sum(acc[i], 0), m_n & is_k, m_b & is_k  # [BN], [BN], [BLOCKS]
                o_k, o_kb = o_w + k * F, o_b + k * F
                p_first = p_m + tl.program_id(0) * TAKEN + i if RULE == "square_sum" else p_m
                update_weights(
                    b_g, p_dw, p_first, p_v, p_amax, p_correction, p_added, p_scalars, o_k, m_w, o_kb, m_wb, UPDATE
                )
    else:
        # Loop: samples, first for the bias gradient, then for the product. One loop for both would take g out of the
        # product's pipeline. In the other order, the addresses of the bias gradient's loop would stay in registers
        # during the product, and kernels of a float32 dw would spill.
        k, t, dh, dw, c, o_k, m_k = decode_block(chunk, o01, oh0, ow0, x_pitch, SHAPE, TILE)
        if chunk == 0:
            sum_bias(p_g, p_saved, p_db, p_dz, first, last, B, o_n, o_s, m_n, g_pitch, ACC, SHAPE, TILE, UPSTREAM)
        if DOT:
            acc = tl.zeros((BN, BK) if SWAP else (BK, BN), ACC)
        else:
            acc = tl.zeros((BB, BK, BN), ACC)  # summed over the batch once, after the loop
        for start in range(first, last, BB):
            b = start + tl.arange(0, BB)
            m_b = b < B
            p_xb = p_x + b.to(tl.int64) * x_pitch[0] * SHAPE.channels
            m = m_b[:, None] & m_n[None, :]
            b_g = load_dz(p_g, p_saved, b, o_n, o_s, m, g_pitch[0], SHAPE, UPSTREAM)  # [BB, BN]
            if DOT:
                o_x = o_k + group * C
                b_x = tl.load(p_xb[:, None] + o_x[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
                if SWAP:
                    acc = tl.dot(tl.trans(b_g), b_x, acc, input_precision=PRECISION, out_dtype=ACC)
                else:
                    acc = tl.dot(tl.trans(b_x), b_g, acc, input_precision=PRECISION, out_dtype=ACC)
            else:
                b_x = tl.load(p_xb[:, None] + o_k[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)  # [BB, BK]
                acc += b_x[:, :, None].to(ACC) * b_g[:, None, :].to(ACC)

        # Epilogue: the band is stored, or updates the weight.
        if not DOT:
            acc = tl.sum(acc, 0)
        elif SWAP:
            acc = tl.trans(acc)  # [BK, BN]
        store_block(
            acc,
            p_dw,
            p_m + tl.program_id(0) if RULE == "square_sum" else p_m,
            p_v,
            p_amax,
            p_correction,
            p_added,
            p_scalars,
            chunk,
            k,
            t,
            dh,
            dw,
            c,
            jr,
            jc,
            position,
            box,
            f0,
            f,
            group,
            m_n,
            SHAPE,
            TILE,
            UPDATE,
        )
