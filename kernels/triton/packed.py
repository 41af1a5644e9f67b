"""This kernel attends straight to packed keys and values: codes are read as they are and widened in registers.

The walk over key blocks is that of attention.py. A row is handled as two halves, dimensions i and i + D/2, which share
a byte at 4 bits, so that a product is the sum of two and no byte is read twice. Widened numbers are rounded once, to
the dtype of the queries.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .pack import load_codes
from .tiles import LOG2E, finish, masked_block, online_softmax, rows_of, seen, seen_blocks


@triton.jit(
    do_not_specialize=["queries", "tokens", "last_seen", "window", "stride_lp", "stride_lh"],
    do_not_specialize_on_alignment=["lse", "counts", "places"],
)
def attend_packed(
    q, key_codes, key_scale, key_low, value_codes, value_scale, value_low, out, lse, counts, places, last_seen, queries,
    tokens,
    stride_cg, stride_ct, stride_kg, stride_kt, stride_vg, stride_qh, stride_qn, stride_op, stride_oh, stride_on,
    stride_lp, stride_lh, window, scale,
    GROUP: tl.constexpr, D: tl.constexpr, BITS: tl.constexpr, PACK: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    SLICE: tl.constexpr,
):  # fmt: skip
    """As `attention._attend`; SLICE and BLOCK_D count dimensions of a half."""
    head, share = tl.program_id(1), tl.program_id(2)
    token, valid, index, tokens = rows_of(queries, counts, places, last_seen, tokens, GROUP, BLOCK_M)
    row = tl.arange(0, BLOCK_M)
    if places is None:
        row += tl.program_id(0) * BLOCK_M
    dims = tl.arange(0, BLOCK_D)
    query_head = head * GROUP + row % GROUP
    inside = valid[:, None] & (dims < D // 2)[None, :]
    query_rows = q + query_head[:, None] * stride_qh + token[:, None] * stride_qn
    q_first, q_second = None, None
    if SLICE == BLOCK_D:
        at = query_rows + dims[None, :]
        q_first, q_second = tl.load(at, mask=inside, other=0.0), tl.load(at + D // 2, mask=inside, other=0.0)
    wide_head = head.to(tl.int64)
    key_codes += wide_head * stride_cg
    value_codes += wide_head * stride_cg
    key_scale += wide_head * stride_kg
    key_low += wide_head * stride_kg
    value_scale += wide_head * stride_vg
    value_low += wide_head * stride_vg

    first, full_from, full_to, masked = seen_blocks(
        index, valid, tokens, window, share, tl.num_programs(2), CAUSAL, WINDOWED, BLOCK_N
    )
    sums_first = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    sums_second = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for block in range(full_from, full_to):
        sums_first, sums_second, largest, total = _visit_packed(
            q_first, q_second, query_rows, valid, key_codes, key_scale, key_low, value_codes, value_scale, value_low,
            block * BLOCK_N, sums_first, sums_second, largest, total, stride_ct, stride_kt, index, tokens, window,
            scale, D, BITS, PACK, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, SLICE, MASKED=False,
        )  # fmt: skip
    for i in range(0, masked):
        block = masked_block(i, first, full_from, full_to)
        sums_first, sums_second, largest, total = _visit_packed(
            q_first, q_second, query_rows, valid, key_codes, key_scale, key_low, value_codes, value_scale, value_low,
            block * BLOCK_N, sums_first, sums_second, largest, total, stride_ct, stride_kt, index, tokens, window,
            scale, D, BITS, PACK, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, SLICE, MASKED=True,
        )  # fmt: skip

    factor, row_lse = finish(largest, total)
    at = query_head[:, None] * stride_oh + token[:, None] * stride_on + dims[None, :]
    out += share.to(tl.int64) * stride_op
    tl.store(out + at, (sums_first * factor[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + D // 2, (sums_second * factor[:, None]).to(out.dtype.element_ty), mask=inside)
    if lse is not None:
        tl.store(lse + share.to(tl.int64) * stride_lp + query_head * stride_lh + token, row_lse, mask=valid)


@triton.jit
def _visit_packed(
    q_first, q_second, query_rows, valid, key_codes, key_scale, key_low, value_codes, value_scale, value_low,
    start, sums_first, sums_second, largest, total, stride_ct, stride_kt, index, tokens, window, scale,
    D: tl.constexpr, BITS: tl.constexpr, PACK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, SLICE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Visits a block of packed keys, part of one group of PACK tokens; packed caches end with a whole group."""
    offsets, dims = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    real = dims < D // 2
    inside = real[None, :] & (offsets >= 0)[:, None]
    skip = tl.cast(start, tl.int64) * stride_ct
    dtype: tl.constexpr = query_rows.dtype.element_ty
    if SLICE == BLOCK_D:
        keys_first, keys_second = _keys(
            key_codes + skip, key_scale, key_low, start, offsets, dims, stride_ct, stride_kt, inside, real, D,
            BITS, PACK, dtype,
        )  # fmt: skip
        products = tl.dot(q_first, tl.trans(keys_first), input_precision="ieee")
        products = tl.dot(q_second, tl.trans(keys_second), products, input_precision="ieee")
    else:
        products = tl.zeros((valid.shape[0], BLOCK_N), tl.float32)
        for first in range(0, D // 2, SLICE):
            part = first + tl.arange(0, SLICE)
            here = part < D // 2
            keys_first, keys_second = _keys(
                key_codes + skip, key_scale, key_low, start, offsets, part, stride_ct, stride_kt,
                here[None, :] & (offsets >= 0)[:, None], here, D, BITS, PACK, dtype,
            )  # fmt: skip
            at, mask = query_rows + part[None, :], valid[:, None] & here[None, :]
            rows_first, rows_second = tl.load(at, mask=mask, other=0.0), tl.load(at + D // 2, mask=mask, other=0.0)
            products = tl.dot(rows_first, tl.trans(keys_first), products, input_precision="ieee")
            products = tl.dot(rows_second, tl.trans(keys_second), products, input_precision="ieee")
    scores = products * (scale * LOG2E)
    if MASKED:
        scores = tl.where(seen(start + offsets, index, tokens, window, CAUSAL, WINDOWED), scores, float("-inf"))
    weights, correction, largest, total = online_softmax(scores, largest, total, MASKED)
    weights = weights.to(dtype)

    values_first, values_second = load_codes(value_codes + skip, offsets, dims, stride_ct, inside, D, BITS)
    step = tl.load(value_scale + start + offsets).to(tl.float32)[:, None]
    low = tl.load(value_low + start + offsets).to(tl.float32)[:, None]
    values_first = (values_first * step + low).to(dtype)
    values_second = (values_second * step + low).to(dtype)
    sums_first = tl.dot(weights, values_first, sums_first * correction[:, None], input_precision="ieee")
    sums_second = tl.dot(weights, values_second, sums_second * correction[:, None], input_precision="ieee")
    return sums_first, sums_second, largest, total


@triton.jit
def _keys(
    codes, scale, low, start, offsets, dims, stride_ct, stride_kt, inside, real, D: tl.constexpr, BITS: tl.constexpr,
    PACK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Reads dimensions `dims` and `dims` + D/2 of a block of keys from `start` on, whose codes begin at `codes`."""
    first, second = load_codes(codes, offsets, dims, stride_ct, inside, D, BITS)
    at = tl.cast(start // PACK, tl.int64) * stride_kt + dims
    first = _widen_keys(first, scale + at, low + at, real, dtype)
    second = _widen_keys(second, scale + at + D // 2, low + at + D // 2, real, dtype)
    return first, second


@triton.jit
def _widen_keys(codes, scale, low, real, dtype: tl.constexpr):
    """Computes code * scale + low by channel; scale and low are pointers to one group's."""
    step = tl.load(scale, mask=real, other=0.0).to(tl.float32)
    least = tl.load(low, mask=real, other=0.0).to(tl.float32)
    return (codes * step[None, :] + least[None, :]).to(dtype)
