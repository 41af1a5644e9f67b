"""Merging attention over disjoint sets of keys by log-sum-exp: the parts of one split-up attention, or two results.

The identity is that of the online softmax (arXiv 1805.02867): a part counts with weight exp(lse).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_launch import FLOATS, Launch, check


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint key sets; out (H, N, D), lse (H, N). See `reference.merge_attention`."""
    check("out_a", out_a, (None, None, None), FLOATS)
    check("out_b", out_b, tuple(out_a.shape), (out_a.dtype,), out_a)
    for name, lse in (("lse_a", lse_a), ("lse_b", lse_b)):
        check(name, lse, tuple(out_a.shape[:2]), (torch.float32,), out_a)
    out, lse = new_result(out_a)
    merge_two_launch(out_a, lse_a, out_b, lse_b, out, lse).run()
    return out, lse


@dataclass(frozen=True, slots=True)
class Plan:
    """Launches in order, and what they leave: the result itself, or (parts, H, N, ...) float32 parts to be merged."""

    launches: tuple[Launch, ...]
    out: Tensor
    lse: Tensor

    def part(self, index: int) -> tuple[Tensor, Tensor]:
        return self.out[index:], self.lse[index:]


def run_plan(plan: Plan, q: Tensor) -> tuple[Tensor, Tensor]:
    """Runs the launches and merges the parts that they leave."""
    for launch in plan.launches:
        launch.run()
    if plan.out.dim() == 3:
        return plan.out, plan.lse
    out, lse = new_result(q)
    merge_parts_launch(plan.out, plan.lse, out, lse).run()
    return out, lse


def new_result(q: Tensor) -> tuple[Tensor, Tensor]:
    """out (H, N, D), a token's heads side by side as the output projection wants them, and lse (H, N)."""
    heads, rows, dim = q.shape
    out = torch.empty((rows, heads, dim), dtype=q.dtype, device=q.device).transpose(0, 1)
    return out, torch.empty((heads, rows), dtype=torch.float32, device=q.device)


def new_parts(q: Tensor, count: int) -> tuple[Tensor, Tensor]:
    out = torch.empty((count, *q.shape), dtype=torch.float32, device=q.device)
    return out, torch.empty((count, *q.shape[:2]), dtype=torch.float32, device=q.device)


def merge_parts_launch(parts_out: Tensor, parts_lse: Tensor, out: Tensor, lse: Tensor) -> Launch:
    """(parts, H, N, ...) -> out (H, N, D), lse (H, N)."""
    parts, heads, rows, dim = parts_out.shape
    return Launch(
        _merge_parts,
        (rows, heads),
        {
            "parts": parts_out, "part_lse": parts_lse, "out": out, "lse": lse, "count": parts,
            "stride_pp": parts_out.stride(0), "stride_ph": parts_out.stride(1), "stride_lp": parts_lse.stride(0),
            "stride_oh": out.stride(0), "stride_on": out.stride(1), "queries": rows,
        },
        {"D": dim, "BLOCK_D": max(16, triton.next_power_of_2(dim)), "BLOCK_P": 16},
        num_warps=4,
        num_stages=2,
    )  # fmt: skip


def merge_two_launch(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, out: Tensor, lse: Tensor) -> Launch:
    heads, rows, dim = out.shape
    strides = {
        f"stride_{name}{axis}": tensor.stride(dimension)
        for name, tensor in (("a", out_a), ("b", out_b), ("o", out))
        for dimension, axis in enumerate("hn")
    }
    return Launch(
        _merge_two,
        (rows, heads),
        {
            "out_a": out_a, "lse_a": lse_a, "out_b": out_b, "lse_b": lse_b, "out": out, "lse": lse, **strides,
            "stride_lah": lse_a.stride(0), "stride_lbh": lse_b.stride(0), "queries": rows,
        },
        {"D": dim, "BLOCK_D": max(16, triton.next_power_of_2(dim))},
        num_warps=1,
        num_stages=1,
    )  # fmt: skip


@triton.jit
def _log_sum(largest, total):
    """total is 0, or at least 1: the largest part weighs 1."""
    return tl.where(total == 0.0, float("-inf"), largest + tl.log(tl.maximum(total, 1.0)))


@triton.jit(do_not_specialize=["count", "queries"])
def _merge_parts(
    parts, part_lse, out, lse, count, stride_pp, stride_ph, stride_lp, stride_oh, stride_on, queries,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One query of one head: its parts weighted by exp(lse)."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    base = part_lse + head * queries + token
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
    tl.store(lse + head * queries + token, _log_sum(finite, total))


@triton.jit(do_not_specialize=["queries"])
def _merge_two(
    out_a, lse_a, out_b, lse_b, out, lse, stride_ah, stride_an, stride_bh, stride_bn, stride_oh, stride_on, stride_lah,
    stride_lbh, queries, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    a, b = tl.load(lse_a + head * stride_lah + token), tl.load(lse_b + head * stride_lbh + token)
    largest = tl.maximum(a, b)
    finite = tl.where(largest == float("-inf"), 0.0, largest)
    weight_a, weight_b = tl.exp(a - finite), tl.exp(b - finite)
    total = weight_a + weight_b
    share = tl.where(total == 0.0, 0.0, 1.0 / tl.where(total == 0.0, 1.0, total))
    values_a = tl.load(out_a + head * stride_ah + token * stride_an + dims, mask=dims < D, other=0.0).to(tl.float32)
    values_b = tl.load(out_b + head * stride_bh + token * stride_bn + dims, mask=dims < D, other=0.0).to(tl.float32)
    merged = (values_a * weight_a + values_b * weight_b) * share
    tl.store(out + head * stride_oh + token * stride_on + dims, merged.to(out.dtype.element_ty), mask=dims < D)
    tl.store(lse + head * queries + token, _log_sum(finite, total))
