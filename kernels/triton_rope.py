"""Keys and values on their way into a cache on a GPU: RoPE with the store in one pass, and the inverse of a transform
codec (coefficients times a basis) with RoPE and the store, dense or packed, in one pass.

RoPE is computed in float32 and rounded once, element by element, as in torch_ops.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .packed import PACK_GROUP, PackedKV
from .triton_launch import FLOATS, Launch, check, widened
from .triton_pack import check_packed, count_refused, half_block, pack_tile, packed_arguments, rotate

_BASES = (torch.float16, torch.bfloat16, torch.float32)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x (H, N, D) by cos, sin (N, D) float32; dimension i pairs with i + D/2. arXiv 2104.09864."""
    out = torch.empty_like(x)
    store_launch(x, None, cos, sin, out, None, 0).run()
    return out


def rope_store(
    keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, cache_keys: Tensor, cache_values: Tensor, start: int
) -> None:
    """Rotates keys (G, n, D) by cos, sin (n, D) float32 and writes them and values (G, n, D) into one layer's cache
    (G, capacity, D) from token `start` on, rounded to its dtype. Raises ValueError naming what does not fit.

    `triton_pack.store_packed` does the same for a packed cache.
    """
    store_launch(keys, values, cos, sin, cache_keys, cache_values, start).run()


@dataclass(frozen=True, slots=True)
class Rotations:
    """RoPE of all layers: cos, sin (K, n, D) float32 of K kinds, kinds (L,) int32 the kind of each layer."""

    cos: Tensor
    sin: Tensor
    kinds: Tensor


def inverse_transform(
    codes: Tensor,
    step: float,
    basis: Tensor,
    mean: Tensor,
    layer_scale: Tensor,
    cache: Tensor,
    start: int,
    rotations: Rotations | None = None,
) -> None:
    """Writes (codes * step @ basis + mean) * layer_scale, rotated, into cache (L, G, capacity, D) from `start` on.

    codes (n, A) int8 or int16; basis (A, L * G * D) float16, bfloat16 or float32, whose dtype the product is taken in
    with float32 sums; mean (L * G * D,), layer_scale (L,) float32. rotations: for keys. int16 codes are multiplied as
    two exact parts. Raises ValueError naming what does not fit.
    """
    inverse_launch(codes, step, basis, mean, layer_scale, rotations, start, dense=cache).run()


def inverse_transform_packed(
    codes: Tensor,
    step: float,
    basis: Tensor,
    mean: Tensor,
    layer_scale: Tensor,
    packed: PackedKV,
    start: int,
    rotations: Rotations | None = None,
    *,
    values: bool = False,
) -> None:
    """`inverse_transform` into the keys, or the values, of a packed cache whose heads are all L * G, layer by layer.

    n and start are multiples of 64. Waits for the GPU once, to refuse numbers that float16 cannot hold.
    """
    heads, groups = packed.key_codes.shape[0], codes.shape[0] // PACK_GROUP
    refused = torch.empty((heads, groups), dtype=torch.int32, device=codes.device)
    place = (packed, values, refused)
    inverse_launch(codes, step, basis, mean, layer_scale, rotations, start, packed=place).run()
    if found := int(refused.sum()):
        raise ValueError(f"codes: {found} numbers come out not finite or too large for float16")


def store_launch(
    keys: Tensor,
    values: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    cache_keys: Tensor,
    cache_values: Tensor | None,
    start: int,
) -> Launch:
    check("keys", keys, (None, None, None), FLOATS)
    heads, tokens, dim = keys.shape
    if dim % 2 or not 2 <= dim <= 256:
        raise ValueError(f"keys: head dim {dim}, expected an even number up to 256")
    check("cos", cos, (tokens, dim), (torch.float32,), keys)
    check("sin", sin, (tokens, dim), (torch.float32,), keys)
    if not cos.is_contiguous() or not sin.is_contiguous():
        raise ValueError("cos, sin: expected contiguous tables")
    check("cache_keys", cache_keys, (heads, None, dim), FLOATS, keys)
    _check_room(cache_keys.shape[1], start, tokens)
    if values is not None and cache_values is not None:
        check("values", values, (heads, tokens, dim), FLOATS, keys)
        check("cache_values", cache_values, tuple(cache_keys.shape), FLOATS, keys)
    y, z = (values, cache_values) if values is not None and cache_values is not None else (keys, cache_keys)
    block = 16
    return Launch(
        _rope_store,
        (triton.cdiv(tokens, block), heads),
        {
            "keys": keys, "values": values, "cos": cos, "sin": sin, "cache_keys": cache_keys,
            "cache_values": cache_values, "tokens": tokens, "start": start,
            "stride_xg": keys.stride(0), "stride_xt": keys.stride(1), "stride_yg": y.stride(0),
            "stride_yt": y.stride(1), "stride_cg": cache_keys.stride(0), "stride_ct": cache_keys.stride(1),
            "stride_dg": z.stride(0), "stride_dt": z.stride(1),
        },
        {"D": dim, "BLOCK_D": half_block(dim), "BLOCK_T": block},
        num_warps=4,
        num_stages=1,
    )  # fmt: skip


def inverse_launch(
    codes: Tensor,
    step: float,
    basis: Tensor,
    mean: Tensor,
    layer_scale: Tensor,
    rotations: Rotations | None,
    start: int,
    *,
    dense: Tensor | None = None,
    packed: tuple[PackedKV, bool, Tensor] | None = None,
) -> Launch:
    """dense: a cache (L, G, capacity, D); packed: a packed cache, whether its values are meant, counts of refusals."""
    check("codes", codes, (None, None), (torch.int8, torch.int16))
    check("layer_scale", layer_scale, (None,), (torch.float32,), codes)
    tokens, kept = codes.shape
    layers = layer_scale.shape[0]
    arguments: dict[str, Tensor | int | float | None]
    if packed is not None:
        cache, values, refused = packed
        check_packed(cache, codes)
        heads, capacity, dim = cache.key_codes.shape[0], cache.key_codes.shape[1], cache.key_scale.shape[2]
        if layers == 0 or heads % layers:
            raise ValueError(f"layer_scale: {layers} layers for a packed cache of {heads} heads in all")
        if tokens % PACK_GROUP or start % PACK_GROUP:
            raise ValueError(f"codes: {tokens} tokens from {start} on, expected multiples of {PACK_GROUP}")
        arguments = {"out": None, "stride_ol": 0, "stride_og": 0, "stride_ot": 0, **packed_arguments(cache)}
        arguments["refused"] = refused
    else:
        assert dense is not None
        check("cache", dense, (layers, None, None, None), FLOATS, codes)
        heads, capacity, dim, values = layers * dense.shape[1], dense.shape[2], dense.shape[3], False
        names = ("key_codes", "key_scale", "key_low", "value_codes", "value_scale", "value_low", "refused")
        strides = ("stride_cg", "stride_ct", "stride_kg", "stride_kt", "stride_vg")
        arguments = {
            "out": dense, "stride_ol": dense.stride(0), "stride_og": dense.stride(1), "stride_ot": dense.stride(2),
            **dict.fromkeys(names), **dict.fromkeys(strides, 0),
        }  # fmt: skip
    check("basis", basis, (kept, heads * dim), _BASES, codes)
    check("mean", mean, (heads * dim,), (torch.float32,), codes)
    _check_room(capacity, start, tokens)
    if dim % 2 or not 2 <= dim <= 256:
        raise ValueError(f"cache: head dim {dim}, expected an even number up to 256")
    if rotations is not None:
        check("kinds", rotations.kinds, (layers,), (torch.int32,), codes)
        for name, table in (("cos", rotations.cos), ("sin", rotations.sin)):
            check(name, table, (None, tokens, dim), (torch.float32,), codes)
            if table.shape != rotations.cos.shape or not table.is_contiguous():
                raise ValueError(f"{name}: expected contiguous tables of one shape")
    wide = basis.dtype == torch.float32
    block = PACK_GROUP if packed is not None or not wide else 16
    return Launch(
        _inverse,
        (triton.cdiv(tokens, block), heads),
        {
            "codes": codes, "basis": basis, "mean": mean, "layer_scale": layer_scale,
            "cos": rotations.cos if rotations else None, "sin": rotations.sin if rotations else None,
            "kinds": rotations.kinds if rotations else None, **arguments, "tokens": tokens, "kept": kept,
            "start": start, "step": float(step), "stride_at": codes.stride(0), "stride_ba": basis.stride(0),
        },
        {
            "HEADS": heads // max(layers, 1), "D": dim, "BLOCK_D": half_block(dim), "BLOCK_T": block,
            "BLOCK_A": 16 if wide else 32, "BITS": packed[0].bits if packed else 0, "VALUES": values,
            "WIDE_CODES": codes.dtype == torch.int16, "WIDEN": widened(_inverse, basis.dtype),
        },
        num_warps=8 if dim > 128 or (wide and packed) else 4,
        num_stages=3,
    )  # fmt: skip


def _check_room(capacity: int, start: int, tokens: int) -> None:
    if not 0 <= start <= capacity - tokens:
        raise ValueError(f"start: {start} with {tokens} tokens, expected 0 to {capacity - tokens}")


@triton.jit(do_not_specialize=["tokens", "start"])
def _rope_store(
    keys, values, cos, sin, cache_keys, cache_values, tokens, start, stride_xg, stride_xt, stride_yg, stride_yt,
    stride_cg, stride_ct, stride_dg, stride_dt, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    token, dims = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
    inside = (token < tokens)[:, None] & (dims < D // 2)[None, :]
    token = token.to(tl.int64)[:, None]
    dims = dims[None, :]
    at = keys + head * stride_xg + token * stride_xt + dims
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + D // 2, mask=inside, other=0.0).to(tl.float32)
    first, second = rotate(first, second, cos, sin, token * D + dims, inside, D)
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


@triton.jit
def _product(codes, basis, sums, WIDE_CODES: tl.constexpr):
    """sums + codes @ basis, exact in the codes: an int16 does not fit a half's mantissa, its two bytes do."""
    if WIDE_CODES:
        upper = ((codes >> 8) * 256).to(basis.dtype)
        sums = tl.dot(upper, basis, sums, input_precision="ieee")
        return tl.dot((codes & 255).to(basis.dtype), basis, sums, input_precision="ieee")
    return tl.dot(codes.to(basis.dtype), basis, sums, input_precision="ieee")


@triton.jit(do_not_specialize=["tokens", "start"])
def _inverse(
    codes, basis, mean, layer_scale, cos, sin, kinds, out, stride_ol, stride_og, stride_ot,
    key_codes, key_scale, key_low, value_codes, value_scale, value_low,
    stride_cg, stride_ct, stride_kg, stride_kt, stride_vg, refused, tokens, kept, start, step, stride_at, stride_ba,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_A: tl.constexpr,
    BITS: tl.constexpr, VALUES: tl.constexpr, WIDE_CODES: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A block of tokens (axis 0) of one head of one layer (axis 1)."""
    head = tl.program_id(1)
    layer = head // HEADS
    token, dims = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
    real, there = dims < D // 2, token < tokens
    inside = there[:, None] & real[None, :]
    column = head * D + dims
    component = tl.arange(0, BLOCK_A)
    first = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    second = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    code_at = codes + token.to(tl.int64)[:, None] * stride_at + component[None, :]
    basis_at = basis + component.to(tl.int64)[:, None] * stride_ba + column[None, :]
    for done in range(0, kept, BLOCK_A):
        left = component < kept - done
        part = tl.load(code_at, mask=there[:, None] & left[None, :], other=0)
        inside_basis = left[:, None] & real[None, :]
        basis_first = tl.load(basis_at, mask=inside_basis, other=0.0)
        basis_second = tl.load(basis_at + D // 2, mask=inside_basis, other=0.0)
        if WIDEN:
            basis_first, basis_second = basis_first.to(tl.float32), basis_second.to(tl.float32)
        first = _product(part, basis_first, first, WIDE_CODES)
        second = _product(part, basis_second, second, WIDE_CODES)
        code_at += BLOCK_A
        basis_at += BLOCK_A * stride_ba
    spread = tl.load(layer_scale + layer)
    first = (first * step + tl.load(mean + column, mask=real, other=0.0)[None, :]) * spread
    second = (second * step + tl.load(mean + column + D // 2, mask=real, other=0.0)[None, :]) * spread
    if cos is not None:
        row = tl.load(kinds + layer).to(tl.int64) * tokens + token
        first, second = rotate(first, second, cos, sin, row[:, None] * D + dims[None, :], inside, D)
    if BITS == 0:
        at = layer.to(tl.int64) * stride_ol + (head % HEADS).to(tl.int64) * stride_og
        at += (start + token).to(tl.int64)[:, None] * stride_ot + dims[None, :]
        tl.store(out + at, first.to(out.dtype.element_ty), mask=inside)
        tl.store(out + at + D // 2, second.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(refused + head * tl.num_programs(0) + tl.program_id(0), count_refused(first, second, inside))
        pack_tile(
            first, second, first, second, start + tl.program_id(0) * BLOCK_T, head.to(tl.int64), dims, inside,
            key_codes, key_scale, key_low, value_codes, value_scale, value_low,
            stride_cg, stride_ct, stride_kg, stride_kt, stride_vg, D, BLOCK_T, BITS, KEYS=not VALUES, VALUES=VALUES,
        )  # fmt: skip
