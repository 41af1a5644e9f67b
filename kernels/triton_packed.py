"""Attention straight on packed keys and values (packed.py): codes are read as they are and widened in registers.

The walk over key blocks is that of triton_attention.py. A row is handled as two halves, dimensions i and i + D/2, which
share a byte at 4 bits, so that a product is the sum of two and no byte is read twice. Widened numbers are rounded once,
to the dtype of the queries.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .packed import PACK_GROUP, PackedKV
from .triton_attention import tail_launch
from .triton_launch import FLOATS, Launch, check, widened
from .triton_merge import Plan, new_parts, new_result, run_plan
from .triton_online import finish, masked_block, online_softmax, query_index, scaled, seen, seen_blocks
from .triton_pack import check_packed, half_block, load_codes, packed_arguments
from .triton_rule import Rule, check_heads, shares_for, tiling


def packed_attention(
    q: Tensor,
    packed: PackedKV,
    *,
    scale: float,
    query_positions: Tensor | int | None = None,
    key_start: int = 0,
    window: int | None = None,
    sinks: int = 0,
    soft_cap: float | None = None,
    shares: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`triton_attention.attention` over `unpack_kv(packed)`, for decode and prefill alike.

    shares: into how many the keys are cut; by default as many as fill the GPU.
    """
    rule = Rule(scale, query_positions, key_start, window, sinks, soft_cap)
    return run_plan(packed_plan(q, packed, rule, shares or shares_for(q, packed.key_codes)), q)


def packed_shared_prefix_attention(
    q: Tensor,
    prefix: PackedKV,
    tail_k: Tensor,
    tail_v: Tensor,
    row_starts: Tensor,
    tail_lengths: Tensor,
    *,
    longest: int,
    scale: float,
    query_positions: Tensor | int | None = None,
    window: int | None = None,
    sinks: int = 0,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`triton_attention.shared_prefix_attention` over a packed memory; the rows' own tails are dense."""
    rule = Rule(scale, query_positions if window is not None else None, 0, window, sinks, soft_cap)
    shares = shares_for(q, prefix.key_codes)
    plan = packed_plan(q, prefix, rule, shares, extra=1)
    part = plan.part(shares)
    tail = tail_launch(q, tail_k, tail_v, row_starts, tail_lengths, longest, prefix.key_codes.shape[1], rule, part)
    return run_plan(Plan((*plan.launches, tail), plan.out, plan.lse), q)


def packed_plan(q: Tensor, packed: PackedKV, rule: Rule, shares: int, extra: int = 0) -> Plan:
    """Attention in `shares` shares; `extra` more parts are left for others to fill."""
    check("q", q, (None, None, None), FLOATS)
    out, lse = new_result(q) if shares + extra == 1 else new_parts(q, shares + extra)
    return Plan((packed_launch(q, packed, rule, shares, out, lse),), out, lse)


def packed_launch(q: Tensor, packed: PackedKV, rule: Rule, shares: int, out: Tensor, lse: Tensor) -> Launch:
    """Into out (H, N, D), lse (H, N) for one share, or the first `shares` parts of (parts, H, N, D), (parts, H, N)."""
    check_packed(packed, q)
    kv_heads, tokens, _ = packed.key_codes.shape
    dim = packed.key_scale.shape[2]
    check_heads(q, kv_heads, dim)
    rule.check(q)
    if shares < 1:
        raise ValueError(f"shares: {shares}, expected 1 or more")
    parts, group = out.dim() == 4, q.shape[0] // kv_heads
    rows = q.shape[1] * group
    tiles = tiling(rows, dim, q.dtype)
    if dim <= 128:
        tiles["num_stages"] = max(3, tiles["num_stages"])  # two make registers spill on sm_80
    blocks = tiles.pop("blocks") | {"BLOCK_D": half_block(dim)}
    return Launch(
        _attend_packed,
        (triton.cdiv(rows, blocks["BLOCK_M"]), kv_heads, shares),
        {
            "q": q, **packed_arguments(packed), "out": out, "lse": lse,
            "queries": q.shape[1], "tokens": tokens, "stride_qh": q.stride(0), "stride_qn": q.stride(1),
            "stride_op": out.stride(0) if parts else 0, "stride_oh": out.stride(-3), "stride_on": out.stride(-2),
            "stride_lp": lse.stride(0) if parts else 0, "stride_lh": lse.stride(-2), **rule.arguments(),
        },
        rule.constants()
        | {"WIDEN": widened(_attend_packed, q.dtype)}
        | {"GROUP": group, "D": dim, "BITS": packed.bits, "PACK": PACK_GROUP}
        | blocks,
        **tiles,
    )  # fmt: skip


@triton.jit(do_not_specialize=["queries", "tokens", "first_position", "key_start", "window", "sinks"])
def _attend_packed(
    q, key_codes, key_scale, key_low, value_codes, value_scale, value_low, out, lse, positions, first_position, queries,
    tokens,
    stride_cg, stride_ct, stride_kg, stride_kt, stride_vg, stride_qh, stride_qn, stride_op, stride_oh, stride_on,
    stride_lp, stride_lh, key_start, window, sinks, scale, soft_cap,
    GROUP: tl.constexpr, D: tl.constexpr, BITS: tl.constexpr, PACK: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A block of query rows (axis 0) of one kv head (axis 1) over a share of keys (axis 2)."""
    head, share = tl.program_id(1), tl.program_id(2)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    token = row // GROUP
    valid = token < queries
    index = token
    if CAUSAL:
        index = query_index(positions, first_position, token, valid, key_start)
    dims = tl.arange(0, BLOCK_D)
    query_head = head * GROUP + row % GROUP
    inside = valid[:, None] & (dims < D // 2)[None, :]
    at = q + query_head[:, None] * stride_qh + token[:, None] * stride_qn + dims[None, :]
    first, second = tl.load(at, mask=inside, other=0.0), tl.load(at + D // 2, mask=inside, other=0.0)
    if WIDEN:
        first, second = first.to(tl.float32), second.to(tl.float32)
    wide_head = head.to(tl.int64)
    key_codes += wide_head * stride_cg
    value_codes += wide_head * stride_cg
    key_scale += wide_head * stride_kg
    key_low += wide_head * stride_kg
    value_scale += wide_head * stride_vg
    value_low += wide_head * stride_vg

    sink_end = tl.maximum(sinks - key_start, 0)
    full_from, full_to, sink_blocks, head_from, head_blocks, tail_from, masked = seen_blocks(
        index, valid, tokens, sink_end, window, share, tl.num_programs(2), CAUSAL, WINDOWED, BLOCK_N
    )
    sums_first = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    sums_second = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for block in range(full_from, full_to):
        sums_first, sums_second, largest, total = _visit_packed(
            first, second, key_codes, key_scale, key_low, value_codes, value_scale, value_low, block * BLOCK_N,
            sums_first, sums_second, largest, total, stride_ct, stride_kt, index, tokens, sink_end, window, scale,
            soft_cap, D, BITS, PACK, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, CAPPED, MASKED=False,
        )  # fmt: skip
    for i in range(0, masked):
        block = masked_block(i, sink_blocks, head_from, head_blocks, tail_from)
        sums_first, sums_second, largest, total = _visit_packed(
            first, second, key_codes, key_scale, key_low, value_codes, value_scale, value_low, block * BLOCK_N,
            sums_first, sums_second, largest, total, stride_ct, stride_kt, index, tokens, sink_end, window, scale,
            soft_cap, D, BITS, PACK, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, CAPPED, MASKED=True,
        )  # fmt: skip

    factor, row_lse = finish(largest, total)
    at = query_head[:, None] * stride_oh + token[:, None] * stride_on + dims[None, :]
    out += share.to(tl.int64) * stride_op
    tl.store(out + at, (sums_first * factor[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + D // 2, (sums_second * factor[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(lse + share.to(tl.int64) * stride_lp + query_head * stride_lh + token, row_lse, mask=valid)


@triton.jit
def _visit_packed(
    first, second, key_codes, key_scale, key_low, value_codes, value_scale, value_low, start,
    sums_first, sums_second, largest, total, stride_ct, stride_kt, index, tokens, sink_end, window, scale, soft_cap,
    D: tl.constexpr, BITS: tl.constexpr, PACK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One block of packed keys, part of one group of PACK tokens; packed caches end with a whole group."""
    offsets, dims = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    real = dims < D // 2
    inside = real[None, :] & (offsets >= 0)[:, None]
    skip = tl.cast(start, tl.int64) * stride_ct
    keys_first, keys_second = load_codes(key_codes + skip, offsets, dims, stride_ct, inside, D, BITS)
    grid = tl.cast(start // PACK, tl.int64) * stride_kt + dims
    keys_first = _widen_keys(keys_first, key_scale + grid, key_low + grid, real, first.dtype)
    keys_second = _widen_keys(keys_second, key_scale + grid + D // 2, key_low + grid + D // 2, real, first.dtype)
    products = tl.dot(first, tl.trans(keys_first), input_precision="ieee")
    products = tl.dot(second, tl.trans(keys_second), products, input_precision="ieee")
    scores = scaled(products, scale, soft_cap, CAPPED)
    if MASKED:
        mask = seen(start + offsets, index, tokens, sink_end, window, CAUSAL, WINDOWED)
        scores = tl.where(mask, scores, float("-inf"))
    weights, correction, largest, total = online_softmax(scores, largest, total, MASKED)
    weights = weights.to(first.dtype)

    values_first, values_second = load_codes(value_codes + skip, offsets, dims, stride_ct, inside, D, BITS)
    step = tl.load(value_scale + start + offsets).to(tl.float32)[:, None]
    low = tl.load(value_low + start + offsets).to(tl.float32)[:, None]
    values_first, values_second = (
        (values_first * step + low).to(first.dtype),
        (values_second * step + low).to(first.dtype),
    )
    sums_first = tl.dot(weights, values_first, sums_first * correction[:, None], input_precision="ieee")
    sums_second = tl.dot(weights, values_second, sums_second * correction[:, None], input_precision="ieee")
    return sums_first, sums_second, largest, total


@triton.jit
def _widen_keys(codes, scale, low, real, dtype: tl.constexpr):
    """code * scale + low by channel; scale and low are pointers to one group's."""
    step = tl.load(scale, mask=real, other=0.0).to(tl.float32)
    least = tl.load(low, mask=real, other=0.0).to(tl.float32)
    return (codes * step[None, :] + least[None, :]).to(dtype)
