"""This kernel rotates keys by RoPE, in float32, rounded once, and stores them and values in the same pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..formats import MAX_DIM, check
from . import FLOATS
from .launch import Launch, cdiv, power_of_2

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
        (cdiv(tokens, _TOKENS), heads),
        {
            "keys": keys, "values": values, "cos": cos, "sin": sin, "cache_keys": cache_keys,
            "cache_values": cache_values, "tokens": tokens, "start": start,
            "stride_xg": keys.stride(0), "stride_xt": keys.stride(1), "stride_yg": y.stride(0),
            "stride_yt": y.stride(1), "stride_cg": cache_keys.stride(0), "stride_ct": cache_keys.stride(1),
            "stride_dg": z.stride(0), "stride_dt": z.stride(1),
        },
        {"D": dim, "BLOCK_D": max(16, power_of_2(dim // 2)), "BLOCK_T": _TOKENS},
        num_warps=4,
        num_stages=1,
    )  # fmt: skip


def qkv_launch(
    qkv: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    out: Tensor,
    cache_keys: Tensor,
    cache_values: Tensor,
    start: int,
    raw_keys: Tensor | None,
    *,
    rows: tuple[Tensor, Tensor, int] | None = None,
) -> Launch:
    """As `elementwise.rope_qkv`. rows: positions and slots (n,) int32 and the spacing of `elementwise.rope_rows`, with
    the whole of the tables. Raises ValueError."""
    check("qkv", qkv, (None, None, None), FLOATS)
    tokens, all_heads, dim = qkv.shape
    heads, kv_heads = out.shape[0], cache_keys.shape[0]
    if all_heads != heads + 2 * kv_heads:
        raise ValueError(f"qkv: {all_heads} heads, expected {heads} and twice {kv_heads}")
    if dim % 2 or not 2 <= dim <= MAX_DIM:
        raise ValueError(f"qkv: head dim {dim}, expected an even number up to {MAX_DIM}")
    check("out", out, (heads, tokens, dim), (qkv.dtype,), qkv.device)
    for name, table in (("cos", cos), ("sin", sin)):
        check(name, table, (None if rows else tokens, dim), (torch.float32,), qkv.device)
        if not table.is_contiguous():
            raise ValueError(f"{name}: expected a contiguous table")
    for name, cache in (("cache_keys", cache_keys), ("cache_values", cache_values)):
        check(name, cache, (kv_heads, None, dim), (qkv.dtype,), qkv.device)
    if cache_keys.stride() != cache_values.stride():
        raise ValueError(f"cache_values: strides {cache_values.stride()}, expected {cache_keys.stride()}")
    if rows is None and not 0 <= start <= cache_keys.shape[1] - tokens:
        raise ValueError(f"start: {start} with {tokens} tokens in a cache of {cache_keys.shape[1]}")
    for name, places in zip(("positions", "slots"), rows[:2] if rows else (), strict=False):
        check(name, places, (tokens,), (torch.int32,), qkv.device)
    for weight in norms or ():
        check("norms", weight, (dim,), (qkv.dtype,), qkv.device)
    if raw_keys is not None:
        check("raw_keys", raw_keys, (kv_heads, tokens, dim), (qkv.dtype,), qkv.device)
    return Launch(
        _rope_qkv,
        (cdiv(tokens, _TOKENS), all_heads),
        {
            "qkv": qkv, "q_norm": norms[0] if norms else None, "k_norm": norms[1] if norms else None, "cos": cos,
            "sin": sin, "out": out, "keys": cache_keys, "values": cache_values, "raw": raw_keys,
            "positions": rows and rows[0], "slots": rows and rows[1], "stride_row": rows[2] if rows else 0,
            "tokens": tokens, "start": start, "eps": float(eps), "stride_xt": qkv.stride(0), "stride_xh": qkv.stride(1),
            "stride_oh": out.stride(0), "stride_ot": out.stride(1), "stride_cg": cache_keys.stride(0),
            "stride_ct": cache_keys.stride(1), "stride_rg": 0 if raw_keys is None else raw_keys.stride(0),
            "stride_rt": 0 if raw_keys is None else raw_keys.stride(1),
        },
        {
            "HEADS": heads, "KV_HEADS": kv_heads, "D": dim, "BLOCK_D": max(16, power_of_2(dim // 2)),
            "BLOCK_T": _TOKENS,
        },
        num_warps=4,
        num_stages=1,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tokens", "start"], do_not_specialize_on_alignment=["cos", "sin", "positions", "slots"])
def _rope_qkv(
    qkv, q_norm, k_norm, cos, sin, out, keys, values, raw, positions, slots, stride_row, tokens, start, eps,
    stride_xt, stride_xh, stride_oh, stride_ot, stride_cg, stride_ct, stride_rg, stride_rt,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Takes a block of tokens (axis 0) of one head (axis 1): of queries, then of keys, then of values."""
    head = tl.program_id(1).to(tl.int64)
    token, dims = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
    inside = (token < tokens)[:, None] & (dims < D // 2)[None, :]
    wide = token.to(tl.int64)
    slot = (start + wide)[:, None] * stride_ct
    position = wide
    if slots is not None:  # each token is a row with a cache of its own
        slot = tl.load(slots + token, mask=token < tokens, other=0).to(tl.int64)[:, None] * stride_ct
        slot += wide[:, None] * stride_row
        position = tl.load(positions + token, mask=token < tokens, other=0).to(tl.int64)
    token = wide[:, None]
    at = qkv + head * stride_xh + token * stride_xt + dims[None, :]
    first = tl.load(at, mask=inside, other=0.0)
    second = tl.load(at + D // 2, mask=inside, other=0.0)
    if head >= HEADS + KV_HEADS:
        at = values + (head - HEADS - KV_HEADS) * stride_cg + slot + dims[None, :]
        tl.store(at, first, mask=inside)
        tl.store(at + D // 2, second, mask=inside)
    else:
        if q_norm is not None:
            weight = q_norm + dims
            if head >= HEADS:
                weight = k_norm + dims
            real = dims < D // 2
            wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
            squares = tl.sum(wide_first * wide_first + wide_second * wide_second, axis=1)
            factor = (1.0 / tl.sqrt(squares / D + eps))[:, None]
            wide_first *= factor * tl.load(weight, mask=real, other=0.0).to(tl.float32)[None, :]
            wide_second *= factor * tl.load(weight + D // 2, mask=real, other=0.0).to(tl.float32)[None, :]
            first, second = wide_first.to(first.dtype), wide_second.to(second.dtype)
        table = position[:, None] * D + dims[None, :]
        cos_first = tl.load(cos + table, mask=inside, other=0.0)
        cos_second = tl.load(cos + table + D // 2, mask=inside, other=0.0)
        sin_first = tl.load(sin + table, mask=inside, other=0.0)
        sin_second = tl.load(sin + table + D // 2, mask=inside, other=0.0)
        wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
        turned_first = (wide_first * cos_first - wide_second * sin_first).to(first.dtype)
        turned_second = (wide_second * cos_second + wide_first * sin_second).to(first.dtype)
        if head < HEADS:
            at = out + head * stride_oh + token * stride_ot + dims[None, :]
            tl.store(at, turned_first, mask=inside)
            tl.store(at + D // 2, turned_second, mask=inside)
        else:
            at = keys + (head - HEADS) * stride_cg + slot + dims[None, :]
            tl.store(at, turned_first, mask=inside)
            tl.store(at + D // 2, turned_second, mask=inside)
            if raw is not None:
                at = raw + (head - HEADS) * stride_rg + token * stride_rt + dims[None, :]
                tl.store(at, first, mask=inside)
                tl.store(at + D // 2, second, mask=inside)


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
