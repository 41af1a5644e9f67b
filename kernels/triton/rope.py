"""This kernel rotates keys by RoPE, in float32, rounded once, and stores them and values in the same pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..formats import MAX_DIM, check
from . import FLOATS
from .launch import Launch

_TOKENS = 16  # of a program


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `elementwise.apply_rope`, of x (H, N, D)."""
    out = torch.empty_like(x)
    store_launch(x, None, cos, sin, out, None, 0).run()
    return out


def store_launch(
    keys: Tensor,
    values: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    cache_keys: Tensor,
    cache_values: Tensor | None,
    start: int,
) -> Launch:
    """As `elementwise.rope_store`; values and cache_values both or neither. Raises ValueError."""
    check("keys", keys, (None, None, None), FLOATS)
    heads, tokens, dim = keys.shape
    if dim % 2 or not 2 <= dim <= MAX_DIM:
        raise ValueError(f"keys: head dim {dim}, expected an even number up to {MAX_DIM}")
    check("cos", cos, (tokens, dim), (torch.float32,), keys.device)
    check("sin", sin, (tokens, dim), (torch.float32,), keys.device)
    if not cos.is_contiguous() or not sin.is_contiguous():
        raise ValueError("cos, sin: expected contiguous tables")
    check("cache_keys", cache_keys, (heads, None, dim), FLOATS, keys.device)
    if not 0 <= start <= cache_keys.shape[1] - tokens:
        raise ValueError(f"start: {start} with {tokens} tokens in a cache of {cache_keys.shape[1]}")
    y, z = keys, cache_keys
    if values is not None and cache_values is not None:
        check("values", values, keys.shape, FLOATS, keys.device)
        check("cache_values", cache_values, cache_keys.shape, FLOATS, keys.device)
        y, z = values, cache_values
    return Launch(
        _rope_store,
        (triton.cdiv(tokens, _TOKENS), heads),
        {
            "keys": keys, "values": values, "cos": cos, "sin": sin, "cache_keys": cache_keys,
            "cache_values": cache_values, "tokens": tokens, "start": start,
            "stride_xg": keys.stride(0), "stride_xt": keys.stride(1), "stride_yg": y.stride(0),
            "stride_yt": y.stride(1), "stride_cg": cache_keys.stride(0), "stride_ct": cache_keys.stride(1),
            "stride_dg": z.stride(0), "stride_dt": z.stride(1),
        },
        {"D": dim, "BLOCK_D": max(16, triton.next_power_of_2(dim // 2)), "BLOCK_T": _TOKENS},
        num_warps=4,
        num_stages=1,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tokens", "start"])
def _rope_store(
    keys, values, cos, sin, cache_keys, cache_values, tokens, start, stride_xg, stride_xt, stride_yg, stride_yt,
    stride_cg, stride_ct, stride_dg, stride_dt, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Rotates a block of tokens (axis 0) of one head (axis 1)."""
    head = tl.program_id(1).to(tl.int64)
    token, dims = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
    inside = (token < tokens)[:, None] & (dims < D // 2)[None, :]
    token = token.to(tl.int64)[:, None]
    dims = dims[None, :]
    at = keys + head * stride_xg + token * stride_xt + dims
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + D // 2, mask=inside, other=0.0).to(tl.float32)
    table = token * D + dims
    cos_first = tl.load(cos + table, mask=inside, other=0.0)
    cos_second = tl.load(cos + table + D // 2, mask=inside, other=0.0)
    sin_first = tl.load(sin + table, mask=inside, other=0.0)
    sin_second = tl.load(sin + table + D // 2, mask=inside, other=0.0)
    first, second = first * cos_first - second * sin_first, second * cos_second + first * sin_second
    at = cache_keys + head * stride_cg + (start + token) * stride_ct + dims
    tl.store(at, first.to(cache_keys.dtype.element_ty), mask=inside)
    tl.store(at + D // 2, second.to(cache_keys.dtype.element_ty), mask=inside)
    if values is not None:
        source = values + head * stride_yg + token * stride_yt + dims
        at = cache_values + head * stride_dg + (start + token) * stride_dt + dims
        first = tl.load(source, mask=inside, other=0.0)
        second = tl.load(source + D // 2, mask=inside, other=0.0)
        tl.store(at, first.to(cache_values.dtype.element_ty), mask=inside)
        tl.store(at + D // 2, second.to(cache_values.dtype.element_ty), mask=inside)
