"""This kernel merges the parts of an attention, over disjoint sets of keys, by log-sum-exp.

The identity is that of the online softmax (arXiv 1805.02867): a part counts with weight exp(lse).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch


def merge_launch(parts: Tensor, lse: Tensor, out: Tensor) -> Launch:
    """Merges parts (P, H, N, D) by lse (P, H, N), float32 without gaps -> out (H, N, D)."""
    count, heads, queries, dim = parts.shape
    return Launch(
        _merge_parts,
        (queries, heads),
        {
            "parts": parts, "lse": lse, "out": out, "count": count, "queries": queries,
            "stride_pp": parts.stride(0), "stride_ph": parts.stride(1), "stride_lp": lse.stride(0),
            "stride_oh": out.stride(0), "stride_on": out.stride(1),
        },
        {"D": dim, "BLOCK_D": max(16, triton.next_power_of_2(dim)), "BLOCK_P": 16},
        num_warps=4,
        num_stages=2,
    )  # fmt: skip


@triton.jit(do_not_specialize=["count", "queries"])
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
