"""Dense and packed attention share this: block sizes and shares of keys on the host, and device functions, which say
what key blocks a block of queries sees and take a step of the online softmax.

Queries of the heads that share a kv head are folded into rows, row = token * group + head: a key block is read once
for all of them, and rows of one block sit at neighbouring positions, so that causal blocks are skipped tightly.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..formats import PackedSource, Source
from .launch import cdiv, power_of_2

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
_FAR = tl.constexpr(1 << 30)
_PROGRAMS = 256  # to occupy a GPU: two for each processor of an A100 or H100
LEAST_SHARE = 256  # keys; less is not worth a partial result


def shares_for(q: Tensor, source: Source | PackedSource) -> int:
    """Says into how many shares a source's keys are cut: as many as it takes to occupy the GPU."""
    kv_heads, tokens, dim = source.shape
    rows = source.count * (q.shape[0] // kv_heads)
    blocks = source.count if apart(source) else cdiv(rows, _block_rows(rows, dim, q.dtype))
    return max(1, min(_PROGRAMS // max(blocks * kv_heads, 1), tokens // LEAST_SHARE))


def apart(source: Source | PackedSource) -> bool:
    """Says whether every query token is a program's of its own, with its own keys or its own place among them."""
    return source.rows is not None and source.rows.places is not None


def tiling(rows: int, dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Chooses blocks, warps and stages of a `Launch`: the largest blocks that spill no registers (tools/aot.py)."""
    block_m, block_d = _block_rows(rows, dim, dtype), max(16, power_of_2(dim))
    if dtype == torch.float32:  # products without tensor cores
        block_n, warps = 16, 8 if block_m > 16 else 4
    elif block_m == 16:  # bound by memory traffic: small tiles, many in flight
        block_n, warps = 64 if dim <= 64 else 32, 4 if dim <= 128 else 8
    else:
        block_n, warps = 64 if dim <= 128 else 32, 8 if block_m == 128 or (block_m == 64 and dim > 64) else 4
    small = {"BLOCK_N": 32} if block_m >= 64 and block_d == 128 and dtype != torch.float32 else {}
    if dtype == torch.float32 and block_d > 128:
        small = {"SLICE": 32}
    return {
        "blocks": {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": block_d},
        "num_warps": warps, "num_stages": 4 if block_m == 16 else 2, "small": small,
        "narrow": {"BLOCK_N": 16, "SLICE": block_d if block_d <= 64 else 64 // dtype.itemsize},
        "stage": 2 * block_n * block_d * dtype.itemsize,
    }  # fmt: skip


def _block_rows(rows: int, dim: int, dtype: torch.dtype) -> int:
    """Chooses a program's query rows: for few what a tensor core takes at once, for many what registers hold."""
    most = (128 if dim <= 128 else 64) if dtype != torch.float32 else (32 if dim <= 128 else 16)
    return min(most, max(16, power_of_2(rows)))


@triton.jit
def rows_of(
    queries, counts, places, last_seen, tokens, GROUP: tl.constexpr, BLOCK_M: tl.constexpr
):  # fmt: skip
    """Returns of a program's query rows (token, whether it exists, index of the key that it sits at), and how many keys
    there are: on axis 0 blocks of rows, or, where `places` tells each token's, tokens (formats.Rows)."""
    row = tl.arange(0, BLOCK_M)
    if places is not None:
        token = tl.program_id(0) + row * 0
        valid = row < GROUP
        index = tl.load(places + tl.program_id(0)) + row * 0
        tokens = tl.load(counts + tl.program_id(0))
    else:
        token = (tl.program_id(0) * BLOCK_M + row) // GROUP
        valid = token < queries
        index = token + last_seen
        if counts is not None:
            tokens = tl.load(counts)
    return token, valid, index, tokens


@triton.jit
def seen_blocks(
    index, valid, tokens, window, share, shares, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Returns the key blocks that this share of these rows visits, as (first, full_from, full_to, masked): every row
    sees blocks full_from .. full_to - 1 whole; `masked` others need a mask (`masked_block`).

    index (rows,): the key index that a row sits at; keys up to it are seen. valid: which rows exist.
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
    first = tl.minimum(first + share * length, last)
    last = tl.minimum(first + length, last)
    full_from = tl.minimum(tl.maximum(tl.cdiv(full_begin, BLOCK_N), first), last)
    full_to = tl.minimum(tl.maximum(full_end // BLOCK_N, full_from), last)
    return first, full_from, full_to, full_from - first + last - full_to


@triton.jit
def masked_block(i, first, full_from, full_to):
    """Returns the i-th block that needs a mask: blocks that the window cuts, then blocks at the causal edge."""
    head = full_from - first
    return tl.where(i < head, first + i, full_to + i - head)


@triton.jit
def seen(keys, index, tokens, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """Says (rows, keys) whether a row sees a key."""
    mask = (keys < tokens)[None, :]
    if CAUSAL:
        mask = mask & (keys[None, :] <= index[:, None])
        if WINDOWED:
            mask = mask & (keys[None, :] > index[:, None] - window)
    return mask


@triton.jit
def online_softmax(scores, largest, total, MASKED: tl.constexpr):
    """Takes a step of the online softmax (arXiv 1805.02867): (weights, correction of earlier sums, largest, total).
    Scores are in units of log 2, so that exp2 serves."""
    new = tl.maximum(largest, tl.max(scores, axis=1))
    base = new
    if MASKED:  # a row that has seen nothing yet would subtract infinity from infinity
        base = tl.where(new == float("-inf"), 0.0, new)
    weights = tl.exp2(scores - base[:, None])
    correction = tl.exp2(largest - base)
    return weights, correction, new, total * correction + tl.sum(weights, axis=1)


@triton.jit
def finish(largest, total):
    """Returns (factor of the weighted sum, log-sum-exp): 0 and -inf for rows that saw nothing."""
    nothing = total == 0.0
    factor = tl.where(nothing, 0.0, 1.0 / tl.where(nothing, 1.0, total))
    lse = tl.where(nothing, float("-inf"), (largest + tl.log2(tl.where(nothing, 1.0, total))) * LN2)
    return factor, lse
