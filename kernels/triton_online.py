"""Device functions that dense and packed attention share: which key blocks a block of queries sees, online softmax.

Queries of the heads that share a kv head are folded into rows, row = token * group + head: a key block is read once
for all of them, and rows of one block sit at neighbouring positions, so that causal blocks are skipped tightly.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
_FAR = tl.constexpr(1 << 30)


@triton.jit
def query_index(positions, first_position, token, valid, key_start):
    """Key index that each query token sits at: of its own position, or counted on from the first one's."""
    if positions is not None:
        return (tl.load(positions + token, mask=valid, other=0) - key_start).to(tl.int32)
    return token + (first_position - key_start)


@triton.jit
def seen_blocks(
    index, valid, tokens, sink_end, window, share, shares,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The key blocks that this share of these rows visits, as (full_from, full_to, sinks, head_from, head, tail_from,
    masked): every row sees blocks full_from .. full_to - 1 whole; `masked` others need a mask (`masked_block`).

    index (rows,): the key index that a row sits at; keys up to it are seen. valid: which rows exist. Keys below
    sink_end are seen however far the window has moved; the first share visits them.
    """
    begin, full_begin = 0, 0
    end, full_end = tokens, tokens
    if CAUSAL:
        highest = tl.max(tl.where(valid, index, -_FAR), axis=0)
        lowest = tl.min(tl.where(valid, index, _FAR), axis=0)
        end = tl.minimum(tl.maximum(highest + 1, 0), tokens)
        full_end = tl.minimum(tl.maximum(lowest + 1, 0), tokens)
        if WINDOWED:
            begin = tl.minimum(tl.maximum(lowest - window + 1, 0), end)
            full_begin = tl.maximum(highest - window + 1, 0)
    first, last = begin // BLOCK_N, tl.cdiv(end, BLOCK_N)
    length = tl.cdiv(last - first, shares)
    block_from = tl.minimum(first + share * length, last)
    block_to = tl.minimum(block_from + length, last)
    sinks = 0
    if WINDOWED:
        sinks = tl.where(share == 0, tl.minimum(tl.cdiv(tl.minimum(sink_end, end), BLOCK_N), first), 0)
    full_from = tl.minimum(tl.maximum(tl.cdiv(full_begin, BLOCK_N), block_from), block_to)
    full_to = tl.minimum(tl.maximum(full_end // BLOCK_N, full_from), block_to)
    head = full_from - block_from
    return full_from, full_to, sinks, block_from, head, full_to, sinks + head + block_to - full_to


@triton.jit
def masked_block(i, sinks, head_from, head, tail_from):
    """The i-th block that needs a mask: sink blocks, blocks that the window cuts, blocks at the causal edge."""
    after = i - sinks
    return tl.where(i < sinks, i, tl.where(after < head, head_from + after, tail_from + after - head))


@triton.jit
def seen(keys, index, tokens, sink_end, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """(rows, keys) whether a row sees a key."""
    mask = (keys < tokens)[None, :]
    if CAUSAL:
        mask = mask & (keys[None, :] <= index[:, None])
        if WINDOWED:
            mask = mask & ((keys[None, :] > index[:, None] - window) | (keys < sink_end)[None, :])
    return mask


@triton.jit
def scaled(products, scale, soft_cap, CAPPED: tl.constexpr):
    """q . k -> scores in units of log 2, so that exp2 serves."""
    if CAPPED:
        # tanh by exp: the libdevice function has no interpreter. Both ends saturate without overflow.
        x = products * (scale / soft_cap)
        e = tl.exp(-2 * tl.abs(x))
        tanh = (1 - e) / (1 + e)
        return tl.where(x < 0, -tanh, tanh) * (soft_cap * LOG2E)
    return products * (scale * LOG2E)


@triton.jit
def online_softmax(scores, largest, total, MASKED: tl.constexpr):
    """One step of the online softmax (arXiv 1805.02867): (weights, correction of earlier sums, largest, total)."""
    new = tl.maximum(largest, tl.max(scores, axis=1))
    base = new
    if MASKED:  # a row that has seen nothing yet would subtract infinity from infinity
        base = tl.where(new == float("-inf"), 0.0, new)
    weights = tl.exp2(scores - base[:, None])
    correction = tl.exp2(largest - base)
    return weights, correction, new, total * correction + tl.sum(weights, axis=1)


@triton.jit
def finish(largest, total):
    """(factor of the weighted sum, log-sum-exp): 0 and -inf for rows that saw nothing."""
    nothing = total == 0.0
    factor = tl.where(nothing, 0.0, 1.0 / tl.where(nothing, 1.0, total))
    lse = tl.where(nothing, float("-inf"), (largest + tl.log2(tl.where(nothing, 1.0, total))) * LN2)
    return factor, lse
