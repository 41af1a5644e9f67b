"""This file attends to several sources of keys on a GPU, after FlashAttention-2 (arXiv 2307.08691) and Flash-Decoding:
a shared memory and the rows' own tails, in one merge (arXiv 2402.05099).

Each source is read once for all query tokens that attend to it, into parts that one kernel merges by log-sum-exp.
Nothing here waits for the GPU. The kernel of this file serves dense keys, that of packed.py packed ones. A program
takes a block of query rows (tiles.py) and a share of the key blocks that those rows see; blocks that every row sees
whole run without a mask. Few rows over many keys are cut into shares.

Operands are (heads, tokens, D) with D side by side and any other strides, so cache slices go in as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..formats import MAX_DIM, PACK_GROUP, PackedSource, Rows, Source, check, check_packed
from . import FLOATS
from .launch import Launch, cdiv, power_of_2
from .pack import half_block, packed_arguments
from .packed import attend_packed
from .tiles import LOG2E, apart, finish, masked_block, online_softmax, rows_of, seen, seen_blocks, shares_for, tiling


def attention(q: Tensor, sources: Sequence[Source | PackedSource], scale: float) -> Tensor:
    """As `attention.attend`, laid out token by token; a token without a source gives zeros. Raises ValueError."""
    launches, out = attention_launches(q, sources, scale)
    for launch in launches:
        launch.run()
    return out


def attention_launches(
    q: Tensor, sources: Sequence[Source | PackedSource], scale: float
) -> tuple[list[Launch], Tensor]:
    """Returns the launches of `attention` in order, and its result, which the last of them writes.

    Sources of one share whose tokens do not overlap fill the same part.
    """
    check("q", q, (None, None, None), FLOATS)
    heads, queries, dim = q.shape
    out = q.new_empty((queries, heads, dim)).transpose(0, 1)
    spans = []
    for source in sources:
        if not 0 <= source.first <= source.first + source.count <= queries:
            last = source.first + source.count - 1
            raise ValueError(f"source: query tokens {source.first} .. {last} of {queries}")
        if source.shape[0] == 0 or heads % source.shape[0]:
            raise ValueError(f"q: {heads} heads do not divide into the keys' {source.shape[0]}")
        spans.append((slice(source.first, source.first + source.count), shares_for(q, source)))
    if spans == [(slice(0, queries), 1)]:
        return [_launch(q, sources[0], scale, 1, out[None], None)], out
    places: list[int] = []
    filled: list[list[slice]] = []  # for each part the spans that fill it
    for span, shares in spans:
        at = next((i for i, others in enumerate(filled) if shares == 1 and _apart(span, others)), len(filled))
        if at == len(filled):
            filled.extend([] for _ in range(shares))
        for part in filled[at : at + shares]:
            part.append(span)
        places.append(at)
    parts = q.new_empty((max(len(filled), 1), *q.shape), dtype=torch.float32)
    lse = parts.new_empty(parts.shape[:3])
    if any(sum(span.stop - span.start for span in part) < queries for part in filled or [[]]):
        lse.fill_(float("-inf"))  # tokens that a part says nothing about
    launches = [
        _launch(q[:, span], source, scale, shares, parts[at:, :, span], lse[at:, :, span])
        for source, (span, shares), at in zip(sources, spans, places, strict=True)
    ]
    return [*launches, _merge_launch(parts, lse, out)], out


def _apart(span: slice, others: Sequence[slice]) -> bool:
    return all(span.stop <= other.start or other.stop <= span.start for other in others)


def _launch(
    q: Tensor, source: Source | PackedSource, scale: float, shares: int, out: Tensor, lse: Tensor | None
) -> Launch:
    """Attends from q (H, N, D) to a source in `shares` shares, into the first `shares` parts of out (parts, H, N, D)
    and lse (parts, H, N) float32, which a sole part does without."""
    heads, queries, dim = q.shape
    kv_heads, tokens, _ = source.shape
    if not 1 <= dim <= MAX_DIM:
        raise ValueError(f"q: head dim {dim}, expected 1 to {MAX_DIM}")
    if heads * q.stride(0) + queries * q.stride(1) >= 1 << 31:
        raise ValueError(f"q: strides {q.stride()} reach beyond what 32 bits count")
    rows, alone = source.rows, apart(source)
    if source.window is not None and (source.window < 1 or (source.last_seen is None and not alone)):
        raise ValueError(f"window: {source.window}, expected 1 or more, and last_seen or places with it")
    folded = (1 if alone else queries) * (heads // kv_heads)
    tiles = tiling(folded, dim, q.dtype)
    blocks = tiles.pop("blocks")
    if rows is not None:
        _check_rows(rows, queries, folded, blocks["BLOCK_M"], q.device)
    if isinstance(source, PackedSource):
        check_packed(source.packed, q.device)
        check("q", q, (None, None, source.shape[2]), FLOATS)
        blocks["BLOCK_D"] = half_block(dim)
        if dim > 128:
            tiles["small"] = {"SLICE": 64} if blocks["BLOCK_M"] == 16 and source.packed.bits == 4 else {}
        tiles["narrow"]["SLICE"] = min(blocks["BLOCK_D"], max(16, tiles["narrow"]["SLICE"] // 2))
        if dim <= 128:
            # Two make registers spill on sm_80, of few numbers four on sm_86 and sm_89.
            tiles["num_stages"] = 3 if dim <= 64 else max(3, tiles["num_stages"])
        kernel, arguments = attend_packed, packed_arguments(source.packed)
        constants = {"BITS": source.packed.bits, "PACK": PACK_GROUP}
    else:
        k, v = source.keys, source.values
        check("keys", k, (None, None, dim), (q.dtype,), q.device)
        check("values", v, k.shape, (q.dtype,), q.device)
        kernel, constants = _attend, {}
        arguments = {
            "k": k, "v": v, "stride_kg": k.stride(0), "stride_kt": k.stride(1), "stride_vg": v.stride(0),
            "stride_vt": v.stride(1), "stride_row": rows.spacing if rows else 0,
        }  # fmt: skip
    return Launch(
        kernel,
        (queries if alone else cdiv(folded, blocks["BLOCK_M"]), kv_heads, shares),
        {
            "q": q, **arguments, "out": out, "lse": lse, "queries": queries, "tokens": tokens,
            "counts": rows.counts if rows else None, "places": rows.places if rows else None,
            "last_seen": source.last_seen or 0,
            "window": min(source.window or 0, 1 << 29),  # far enough, and differences of positions fit 32 bits
            "scale": scale, "stride_qh": q.stride(0), "stride_qn": q.stride(1), "stride_op": out.stride(0),
            "stride_oh": out.stride(1), "stride_on": out.stride(2),
            "stride_lp": lse.stride(0) if lse is not None else 0, "stride_lh": lse.stride(1) if lse is not None else 0,
        },
        {
            "GROUP": heads // kv_heads, "D": dim, "CAUSAL": source.last_seen is not None or alone,
            "WINDOWED": source.window is not None, **constants, **blocks, "SLICE": blocks["BLOCK_D"],
        },
        **tiles,
    )  # fmt: skip


def _check_rows(rows: Rows, queries: int, folded: int, block: int, device: torch.device) -> None:
    if folded > block and rows.places is not None:
        raise ValueError(f"q: {folded} heads a kv head, expected at most {block}")
    check("counts", rows.counts, (1 if rows.places is None else queries,), (torch.int32,), device)
    if rows.places is not None:
        check("places", rows.places, (queries,), (torch.int32,), device)


def _merge_launch(parts: Tensor, lse: Tensor, out: Tensor) -> Launch:
    """Merges parts (P, H, N, D) over disjoint keys by lse (P, H, N), float32 without gaps -> out (H, N, D): a part has
    weight exp(lse), which is the identity of the online softmax (arXiv 1805.02867)."""
    count, heads, queries, dim = parts.shape
    return Launch(
        _merge_parts,
        (queries, heads),
        {
            "parts": parts, "lse": lse, "out": out, "count": count, "queries": queries,
            "stride_pp": parts.stride(0), "stride_ph": parts.stride(1), "stride_lp": lse.stride(0),
            "stride_oh": out.stride(0), "stride_on": out.stride(1),
        },
        {"D": dim, "BLOCK_D": max(16, power_of_2(dim)), "BLOCK_P": 16},
        num_warps=4,
        num_stages=2,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["queries", "tokens", "last_seen", "window", "stride_lp", "stride_lh"],
    do_not_specialize_on_alignment=["lse", "counts", "places"],
)
def _attend(
    q, k, v, out, lse, counts, places, last_seen, queries, tokens, stride_row,
    stride_qh, stride_qn, stride_kg, stride_kt, stride_vg, stride_vt, stride_op, stride_oh, stride_on, stride_lp,
    stride_lh, window, scale,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """Attends from a block of query rows (axis 0) of one kv head (axis 1) to a share of keys (axis 2). Where SLICE is
    less than BLOCK_D, products of queries and keys are taken as many dimensions at a time, and queries read again."""
    head, share = tl.program_id(1), tl.program_id(2)
    token, valid, index, tokens = rows_of(queries, counts, places, last_seen, tokens, GROUP, BLOCK_M)
    row = tl.arange(0, BLOCK_M)
    if places is None:
        row += tl.program_id(0) * BLOCK_M
    else:
        k += tl.program_id(0).to(tl.int64) * stride_row
        v += tl.program_id(0).to(tl.int64) * stride_row
    dims = tl.arange(0, BLOCK_D)
    query_head = head * GROUP + row % GROUP
    inside = valid[:, None] & (dims < D)[None, :]
    query_at = query_head[:, None] * stride_qh + token[:, None] * stride_qn
    queries_block = None
    if SLICE == BLOCK_D:
        at = query_at + dims[None, :]
        queries_block = tl.load(q + at, mask=inside, other=0.0)
    k += head.to(tl.int64) * stride_kg
    v += head.to(tl.int64) * stride_vg

    first, full_from, full_to, masked = seen_blocks(
        index, valid, tokens, window, share, tl.num_programs(2), CAUSAL, WINDOWED, BLOCK_N
    )
    sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for block in range(full_from, full_to):
        sums, largest, total = _visit(
            queries_block, q, query_at, valid, k, v, block * BLOCK_N, sums, largest, total, stride_kt, stride_vt,
            index, tokens, window, scale, D, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, SLICE, MASKED=False,
        )  # fmt: skip
    for i in range(0, masked):
        block = masked_block(i, first, full_from, full_to)
        sums, largest, total = _visit(
            queries_block, q, query_at, valid, k, v, block * BLOCK_N, sums, largest, total, stride_kt, stride_vt,
            index, tokens, window, scale, D, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, SLICE, MASKED=True,
        )  # fmt: skip

    factor, row_lse = finish(largest, total)
    at = query_head[:, None] * stride_oh + token[:, None] * stride_on + dims[None, :]
    out += share.to(tl.int64) * stride_op
    tl.store(out + at, (sums * factor[:, None]).to(out.dtype.element_ty), mask=inside)
    if lse is not None:
        tl.store(lse + share.to(tl.int64) * stride_lp + query_head * stride_lh + token, row_lse, mask=valid)


@triton.jit
def _visit(
    queries, q, query_at, valid, k, v, start, sums, largest, total, stride_kt, stride_vt, index, tokens, window, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    SLICE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Visits a block of keys: scores, online softmax, weighted sum of values."""
    offsets = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    start_wide = tl.cast(start, tl.int64)
    key_at = k + start_wide * stride_kt + offsets[:, None] * stride_kt
    if SLICE == BLOCK_D:
        key_at += dims[None, :]
    value_at = v + start_wide * stride_vt + offsets[:, None] * stride_vt + dims[None, :]
    if SLICE == BLOCK_D:
        keys = _rows(key_at, start + offsets, tokens, dims, D, BLOCK_D, MASKED)
        values = _rows(value_at, start + offsets, tokens, dims, D, BLOCK_D, MASKED)
        products = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    else:
        products = tl.zeros((valid.shape[0], BLOCK_N), tl.float32)
        for first in range(0, D, SLICE):
            part = first + tl.arange(0, SLICE)
            inside = valid[:, None] & (part < D)[None, :]
            rows = tl.load(q + (query_at + part[None, :]), mask=inside, other=0.0)
            keys = _rows(key_at + part[None, :], start + offsets, tokens, part, D, BLOCK_D, MASKED)
            products = tl.dot(rows, tl.trans(keys), products, input_precision="ieee")
        values = _rows(value_at, start + offsets, tokens, dims, D, BLOCK_D, MASKED)
    scores = products * (scale * LOG2E)
    if MASKED:
        scores = tl.where(seen(start + offsets, index, tokens, window, CAUSAL, WINDOWED), scores, float("-inf"))
    weights, correction, largest, total = online_softmax(scores, largest, total, MASKED)
    sums = tl.dot(weights.to(values.dtype), values, sums * correction[:, None], input_precision="ieee")
    return sums, largest, total


@triton.jit
def _rows(at, keys, tokens, dims, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Reads dimensions `dims` of the keys, or values, with indices `keys`."""
    if MASKED:
        return tl.load(at, mask=(keys < tokens)[:, None] & (dims < D)[None, :], other=0.0)
    elif D < BLOCK_D:
        return tl.load(at, mask=(dims < D)[None, :], other=0.0)
    else:
        return tl.load(at)


@triton.jit(do_not_specialize=["count", "queries", "stride_lp"])
def _merge_parts(
    parts, lse, out, count, queries, stride_pp, stride_ph, stride_lp, stride_oh, stride_on,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Merges one query (axis 0) of one head (axis 1)."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    base = lse + head * queries + token
    largest = float("-inf")
    for start in range(0, count, BLOCK_P):
        index = start + tl.arange(0, BLOCK_P)
        part = tl.load(base + index.to(tl.int64) * stride_lp, mask=index < count, other=float("-inf"))
        largest = tl.maximum(largest, tl.max(part, axis=0))
    finite = tl.where(largest == float("-inf"), 0.0, largest)
    sums = tl.zeros((BLOCK_D,), tl.float32)
    total = 0.0
    for start in range(0, count, BLOCK_P):
        index = start + tl.arange(0, BLOCK_P)
        part = tl.load(base + index.to(tl.int64) * stride_lp, mask=index < count, other=float("-inf"))
        weights = tl.exp(part - finite)
        at = index[:, None].to(tl.int64) * stride_pp + head * stride_ph + token * D + dims[None, :]
        # A part that saw nothing may never have been written: what lies there is no number to multiply by zero.
        values = tl.load(parts + at, mask=(weights > 0.0)[:, None] & (dims < D)[None, :], other=0.0)
        sums += tl.sum(values * weights[:, None], axis=0)
        total += tl.sum(weights, axis=0)
    merged = sums / tl.where(total == 0.0, 1.0, total)
    tl.store(out + head * stride_oh + token * stride_on + dims, merged.to(out.dtype.element_ty), mask=dims < D)
