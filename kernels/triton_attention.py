"""Attention over dense keys and values on a GPU, after FlashAttention-2 (arXiv 2307.08691) and Flash-Decoding.

One kernel serves all uses. A program takes a block of query rows (heads of a group folded in, triton_online.py) and a
share of the key blocks that those rows see; blocks that every row sees whole run without a mask. Few rows over many
keys are cut into shares, whose partial results a second kernel merges by log-sum-exp.

Operands are (heads, tokens, D) with D side by side and any other strides, so cache slices go in as they are.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_launch import FLOATS, Launch, check, widened
from .triton_merge import Plan, new_parts, new_result, run_plan
from .triton_online import finish, masked_block, online_softmax, query_index, scaled, seen, seen_blocks
from .triton_rule import Rule, check_heads, shares_for, tiling

_INT32 = (torch.int32,)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    query_positions: Tensor | int | None = None,
    key_start: int = 0,
    window: int | None = None,
    sinks: int = 0,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`reference.attention` for float16, bfloat16 and float32 with D up to 256, query positions in any order.

    Takes `decode_attention` where the queries alone would leave the GPU idle, else `prefill_attention`. Returns out
    (H, N, D) in q's dtype, laid out token by token, and lse (H, N) float32. Raises ValueError naming the argument.
    """
    rule = Rule(scale, query_positions, key_start, window, sinks, soft_cap)
    return run_plan(dense_plan(q, k, v, rule, shares_for(q, k)), q)


def prefill_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    query_positions: Tensor | int | None = None,
    key_start: int = 0,
    window: int | None = None,
    sinks: int = 0,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`attention` in one pass: each block of query rows walks over all its keys."""
    rule = Rule(scale, query_positions, key_start, window, sinks, soft_cap)
    return run_plan(dense_plan(q, k, v, rule, 1), q)


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    query_positions: Tensor | int | None = None,
    key_start: int = 0,
    window: int | None = None,
    sinks: int = 0,
    soft_cap: float | None = None,
    shares: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`attention` with the keys cut into `shares` (by default as many as fill the GPU) that run side by side."""
    rule = Rule(scale, query_positions, key_start, window, sinks, soft_cap)
    return run_plan(dense_plan(q, k, v, rule, shares or shares_for(q, k)), q)


def shared_prefix_attention(
    q: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
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
    """B rows over one memory, read once for all of them, merged with each row's own tail (arXiv 2402.05099).

    q (H, N, D): the rows' new queries one row after the other, row b from row_starts[b] to row_starts[b + 1], (B + 1,)
    int32. prefix_k, prefix_v (G, T, D) hold positions 0 .. T - 1. tail_k, tail_v (B, G, S, D) hold positions T on;
    the first tail_lengths[b], (B,) int32, are meaningful and end with the keys of row b's new queries. longest: the
    most queries of a row. query_positions (N,) are needed with a window only. Result as in `attention`.
    """
    rule = Rule(scale, query_positions if window is not None else None, 0, window, sinks, soft_cap)
    shares = shares_for(q, prefix_k)
    plan = dense_plan(q, prefix_k, prefix_v, rule, shares, extra=1)
    tail = tail_launch(q, tail_k, tail_v, row_starts, tail_lengths, longest, prefix_k.shape[1], rule, plan.part(shares))
    return run_plan(Plan((*plan.launches, tail), plan.out, plan.lse), q)


def dense_plan(q: Tensor, k: Tensor, v: Tensor, rule: Rule, shares: int, extra: int = 0) -> Plan:
    """Attention in `shares` shares; `extra` more parts are left for others to fill."""
    check("q", q, (None, None, None), FLOATS)
    out, lse = new_result(q) if shares + extra == 1 else new_parts(q, shares + extra)
    return Plan((dense_launch(q, k, v, rule, shares, out, lse),), out, lse)


def dense_launch(q: Tensor, k: Tensor, v: Tensor, rule: Rule, shares: int, out: Tensor, lse: Tensor) -> Launch:
    """Into out (H, N, D), lse (H, N) for one share, or the first `shares` parts of (parts, H, N, D), (parts, H, N)."""
    check("k", k, (None, None, q.shape[-1]), (q.dtype,), q)
    check("v", v, tuple(k.shape), (q.dtype,), q)
    check_heads(q, k.shape[0], k.shape[2])
    rule.check(q)
    if shares < 1:
        raise ValueError(f"shares: {shares}, expected 1 or more")
    kv_heads, tokens, _ = k.shape
    arguments = {
        "q": q, "k": k, "v": v, "out": out, "lse": lse, "row_starts": None, "tail_lengths": None,
        "queries": q.shape[1], "tokens": tokens, **_strides(q, k, v, out, lse), "stride_kb": 0, "stride_vb": 0,
        **rule.arguments(),
    }  # fmt: skip
    return _attend_launch(q, kv_heads, q.shape[1], shares, 1, arguments, rule.constants())


def tail_launch(
    q: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
    row_starts: Tensor,
    tail_lengths: Tensor,
    longest: int,
    prefix_tokens: int,
    rule: Rule,
    part: tuple[Tensor, Tensor],
) -> Launch:
    """Each row over its own tail, into `part` of a plan (arguments: `shared_prefix_attention`)."""
    check("tail_k", tail_k, (None, None, None, q.shape[-1]), (q.dtype,), q)
    check("tail_v", tail_v, tuple(tail_k.shape), (q.dtype,), q)
    batch, kv_heads, tokens, dim = tail_k.shape
    check_heads(q, kv_heads, dim)
    check("row_starts", row_starts, (batch + 1,), _INT32, q)
    check("tail_lengths", tail_lengths, (batch,), _INT32, q)
    if not 1 <= longest <= max(q.shape[1], 1):  # fewer than there are would leave results unwritten
        raise ValueError(f"longest: {longest}, expected 1 to {q.shape[1]}, the number of queries")
    out, lse = part
    arguments = {
        "q": q, "k": tail_k, "v": tail_v, "out": out, "lse": lse,
        "row_starts": row_starts, "tail_lengths": tail_lengths, "queries": q.shape[1], "tokens": tokens,
        **_strides(q, tail_k[0], tail_v[0], out, lse),
        "stride_kb": tail_k.stride(0), "stride_vb": tail_v.stride(0),
        **rule.arguments(), "positions": None, "key_start": prefix_tokens,
    }  # fmt: skip
    return _attend_launch(q, kv_heads, longest, 1, batch, arguments, rule.constants() | {"CAUSAL": True})


def _strides(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> dict[str, int]:
    parts = out.dim() == 4
    return {
        "stride_qh": q.stride(0), "stride_qn": q.stride(1), "stride_kg": k.stride(0), "stride_kt": k.stride(1),
        "stride_vg": v.stride(0), "stride_vt": v.stride(1), "stride_op": out.stride(0) if parts else 0,
        "stride_oh": out.stride(-3), "stride_on": out.stride(-2), "stride_lp": lse.stride(0) if parts else 0,
        "stride_lh": lse.stride(-2),
    }  # fmt: skip


def _attend_launch(
    q: Tensor,
    kv_heads: int,
    queries: int,
    shares: int,
    batch: int,
    arguments: dict[str, Tensor | int | float | None],
    constants: dict[str, Any],
) -> Launch:
    heads, _, dim = q.shape
    group = heads // kv_heads
    rows = queries * group
    tiles = tiling(rows, dim, q.dtype)
    blocks = tiles.pop("blocks")
    constants |= {"HEADS": kv_heads, "GROUP": group, "D": dim, "WIDEN": widened(_attend, q.dtype)}
    grid = (triton.cdiv(rows, blocks["BLOCK_M"]), kv_heads * batch, shares)
    return Launch(_attend, grid, arguments, constants | blocks, **tiles)


@triton.jit(do_not_specialize=["queries", "tokens", "first_position", "key_start", "window", "sinks"])
def _attend(
    q, k, v, out, lse, positions, first_position, row_starts, tail_lengths, queries, tokens,
    stride_qh, stride_qn, stride_kg, stride_kt, stride_vg, stride_vt, stride_op, stride_oh, stride_on, stride_lp,
    stride_lh, stride_kb, stride_vb, key_start, window, sinks, scale, soft_cap,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """A block of query rows (axis 0) of one kv head, and one row of a batch (axis 1), over a share of keys (axis 2)."""
    batch = tl.program_id(1) // HEADS
    head = tl.program_id(1) % HEADS
    share = tl.program_id(2)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    token = row // GROUP
    if row_starts is not None:  # the queries of one row of a batch, at the end of its tail
        first = tl.load(row_starts + batch)
        count = tl.minimum(tl.load(row_starts + batch + 1), queries) - first
        tokens = tl.minimum(tl.load(tail_lengths + batch), tokens)
        index = tokens - count + token
        valid = token < count
        token += first
    else:
        valid = token < queries
        index = token
        if CAUSAL:
            index = query_index(positions, first_position, token, valid, key_start)
    dims = tl.arange(0, BLOCK_D)
    query_head = head * GROUP + row % GROUP
    inside = valid[:, None] & (dims < D)[None, :]
    at = query_head[:, None] * stride_qh + token[:, None] * stride_qn + dims[None, :]
    queries_block = tl.load(q + at, mask=inside, other=0.0)
    if WIDEN:
        queries_block = queries_block.to(tl.float32)
    k += batch.to(tl.int64) * stride_kb + head.to(tl.int64) * stride_kg
    v += batch.to(tl.int64) * stride_vb + head.to(tl.int64) * stride_vg

    sink_end = tl.maximum(sinks - key_start, 0)
    full_from, full_to, sink_blocks, head_from, head_blocks, tail_from, masked = seen_blocks(
        index, valid, tokens, sink_end, window, share, tl.num_programs(2), CAUSAL, WINDOWED, BLOCK_N
    )
    sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for block in range(full_from, full_to):
        sums, largest, total = _visit(
            queries_block, k, v, block * BLOCK_N, sums, largest, total, stride_kt, stride_vt, index, tokens, sink_end,
            window, scale, soft_cap, D, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, CAPPED, WIDEN, MASKED=False,
        )  # fmt: skip
    for i in range(0, masked):
        block = masked_block(i, sink_blocks, head_from, head_blocks, tail_from)
        sums, largest, total = _visit(
            queries_block, k, v, block * BLOCK_N, sums, largest, total, stride_kt, stride_vt, index, tokens, sink_end,
            window, scale, soft_cap, D, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, CAPPED, WIDEN, MASKED=True,
        )  # fmt: skip

    factor, row_lse = finish(largest, total)
    at = query_head[:, None] * stride_oh + token[:, None] * stride_on + dims[None, :]
    out += share.to(tl.int64) * stride_op
    tl.store(out + at, (sums * factor[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(lse + share.to(tl.int64) * stride_lp + query_head * stride_lh + token, row_lse, mask=valid)


@triton.jit
def _visit(
    queries, k, v, start, sums, largest, total, stride_kt, stride_vt, index, tokens, sink_end, window, scale, soft_cap,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr, WIDEN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One block of keys: scores, online softmax, weighted sum of values."""
    offsets = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    start_wide = tl.cast(start, tl.int64)
    key_at = k + start_wide * stride_kt + offsets[:, None] * stride_kt + dims[None, :]
    value_at = v + start_wide * stride_vt + offsets[:, None] * stride_vt + dims[None, :]
    if MASKED:
        inside = (start + offsets < tokens)[:, None] & (dims < D)[None, :]
        keys, values = tl.load(key_at, mask=inside, other=0.0), tl.load(value_at, mask=inside, other=0.0)
    elif D < BLOCK_D:
        inside = (dims < D)[None, :]
        keys, values = tl.load(key_at, mask=inside, other=0.0), tl.load(value_at, mask=inside, other=0.0)
    else:
        keys, values = tl.load(key_at), tl.load(value_at)
    if WIDEN:
        keys, values = keys.to(tl.float32), values.to(tl.float32)
    scores = scaled(tl.dot(queries, tl.trans(keys), input_precision="ieee"), scale, soft_cap, CAPPED)
    if MASKED:
        mask = seen(start + offsets, index, tokens, sink_end, window, CAUSAL, WINDOWED)
        scores = tl.where(mask, scores, float("-inf"))
    weights, correction, largest, total = online_softmax(scores, largest, total, MASKED)
    sums = tl.dot(weights.to(values.dtype), values, sums * correction[:, None], input_precision="ieee")
    return sums, largest, total
