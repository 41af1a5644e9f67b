"""Packing keys and values into the format of packed.py on a GPU, and back; with RoPE on the way in where asked.

A program takes one group of 64 tokens of one kv head. Its tiles are the two halves of a row, dimensions i and i + D/2:
they are what RoPE turns into each other, and what share a byte at 4 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .packed import PACK_GROUP, PackedKV, empty_packed
from .triton_launch import FLOATS, Launch, check

_LARGEST = tl.constexpr(65504.0)  # of float16
_BIASED_ZERO = tl.constexpr(0x4B000000)  # 2 ** 23 as float32: the mantissa below it holds an integer
_TWO_23 = tl.constexpr(8388608.0)
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2 ** 23: adding it rounds to the nearest integer, ties to even


def pack_kv(keys: Tensor, values: Tensor, bits: int) -> PackedKV:
    """keys, values (G, T, D), T a multiple of 64 -> the codes, scales and lows of `reference.pack_kv`.

    Waits for the GPU once. Raises ValueError naming what does not fit, is not finite or lies beyond float16.
    """
    check("keys", keys, (None, None, None), FLOATS)
    if keys.shape[1] % PACK_GROUP:
        raise ValueError(f"keys: {keys.shape[1]} tokens, expected a multiple of {PACK_GROUP}")
    packed = empty_packed(keys.shape[0], keys.shape[1], keys.shape[2], bits, keys.device)
    store_packed(keys, values, packed, 0)
    return packed


def store_packed(
    keys: Tensor, values: Tensor, packed: PackedKV, start: int, rotation: tuple[Tensor, Tensor] | None = None
) -> None:
    """Packs keys, values (G, n, D) into `packed` from token `start` on, both whole groups of 64.

    rotation: cos, sin (n, D) float32 by which RoPE turns the keys first. Waits for the GPU once. Raises ValueError
    naming what does not fit, is not finite or lies beyond float16; what was packed is then undefined from `start` on.
    """
    refused = torch.empty((2, *keys.shape[:1], keys.shape[1] // PACK_GROUP), dtype=torch.int32, device=keys.device)
    pack_launch(keys, values, packed, start, rotation, refused).run()
    for name, found in zip(("keys", "values"), refused.flatten(1).sum(1).tolist(), strict=True):
        if found:
            raise ValueError(f"{name}: {found} numbers are not finite or too large for float16")


def unpack_kv(packed: PackedKV, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Keys and values (G, T, D) in `dtype`: code * scale + low, computed in float32."""
    check_packed(packed)
    if dtype not in FLOATS:
        raise ValueError(f"dtype: {dtype}, expected one of {FLOATS}")
    shape = (packed.key_codes.shape[0], packed.key_codes.shape[1], packed.key_scale.shape[2])
    keys = torch.empty(shape, dtype=dtype, device=packed.key_codes.device)
    values = torch.empty_like(keys)
    unpack_launch(packed, keys, values).run()
    return keys, values


def check_packed(packed: PackedKV, like: Tensor | None = None) -> None:
    """Raises ValueError naming the part that is not as packed.py says."""
    if packed.bits not in (8, 4):
        raise ValueError(f"bits: {packed.bits}, expected 8 or 4")
    codes, half = packed.key_codes, (torch.float16,)
    check("key_codes", codes, (None, None, None), (torch.uint8,), like)
    heads, tokens, width = codes.shape
    dim = width * 8 // packed.bits
    if tokens % PACK_GROUP or dim % 2 or not 2 <= dim <= 256:
        raise ValueError(f"key_codes: {tokens} tokens of {dim} dimensions, expected whole groups of {PACK_GROUP}")
    check("value_codes", packed.value_codes, (heads, tokens, width), (torch.uint8,), codes)
    for name, part in (("key_scale", packed.key_scale), ("key_low", packed.key_low)):
        check(name, part, (heads, tokens // PACK_GROUP, dim), half, codes)
    for name, part in (("value_scale", packed.value_scale), ("value_low", packed.value_low)):
        check(name, part, (heads, tokens), half, codes)
    pairs = (
        ("key_low", packed.key_low, packed.key_scale),
        ("value_low", packed.value_low, packed.value_scale),
        ("value_codes", packed.value_codes, codes),
    )
    for name, part, other in pairs:
        if part.stride() != other.stride():
            raise ValueError(f"{name}: strides {part.stride()}, expected {other.stride()}")


def packed_arguments(packed: PackedKV) -> dict[str, Tensor | int | float | None]:
    """The kernels' arguments for a packed cache; keys and values lie alike (`check_packed`)."""
    return {
        "key_codes": packed.key_codes, "key_scale": packed.key_scale, "key_low": packed.key_low,
        "value_codes": packed.value_codes, "value_scale": packed.value_scale, "value_low": packed.value_low,
        "stride_cg": packed.key_codes.stride(0), "stride_ct": packed.key_codes.stride(1),
        "stride_kg": packed.key_scale.stride(0), "stride_kt": packed.key_scale.stride(1),
        "stride_vg": packed.value_scale.stride(0),
    }  # fmt: skip


def half_block(dim: int) -> int:
    """A tile's width: half a row, rounded up to what a product takes."""
    return max(16, triton.next_power_of_2(dim // 2))


def pack_launch(
    keys: Tensor,
    values: Tensor,
    packed: PackedKV,
    start: int,
    rotation: tuple[Tensor, Tensor] | None,
    refused: Tensor,
) -> Launch:
    check_packed(packed)
    capacity, dim = packed.key_codes.shape[1], packed.key_scale.shape[2]
    check("keys", keys, (packed.key_codes.shape[0], None, dim), FLOATS, packed.key_codes)
    check("values", values, tuple(keys.shape), (keys.dtype,), keys)
    tokens = keys.shape[1]
    if tokens % PACK_GROUP:
        raise ValueError(f"keys: {tokens} tokens, expected a multiple of {PACK_GROUP}")
    if start % PACK_GROUP or not 0 <= start <= capacity - tokens:
        raise ValueError(f"start: {start}, expected a multiple of {PACK_GROUP} from 0 to {capacity - tokens}")
    cos, sin = rotation or (None, None)
    for name, table in (("cos", cos), ("sin", sin)):
        if table is not None:
            check(name, table, (tokens, dim), (torch.float32,), keys)
            if not table.is_contiguous():
                raise ValueError(f"{name}: expected a contiguous table")
    return Launch(
        _pack,
        (tokens // PACK_GROUP, keys.shape[0]),
        {
            "keys": keys, "values": values, "cos": cos, "sin": sin, "refused": refused,
            "stride_xg": keys.stride(0), "stride_xt": keys.stride(1),
            "stride_yg": values.stride(0), "stride_yt": values.stride(1), **packed_arguments(packed), "start": start,
        },
        {"D": dim, "BLOCK_D": half_block(dim), "GROUP": PACK_GROUP, "BITS": packed.bits},
        num_warps=8 if dim > 128 else 4,
        num_stages=1,
    )  # fmt: skip


def unpack_launch(packed: PackedKV, keys: Tensor, values: Tensor) -> Launch:
    heads, tokens, dim = keys.shape
    return Launch(
        _unpack,
        (tokens // PACK_GROUP, heads),
        {"keys": keys, "values": values, **packed_arguments(packed), "stride_xg": keys.stride(0)},
        {"D": dim, "BLOCK_D": half_block(dim), "GROUP": PACK_GROUP, "BITS": packed.bits},
        num_warps=4,
        num_stages=1,
    )


@triton.jit
def load_codes(codes, rows, dims, stride, inside, D: tl.constexpr, BITS: tl.constexpr):
    """The codes of dimensions `dims` and `dims` + D/2 of `rows`, both (rows, dims) float32."""
    at = codes + rows[:, None] * stride + dims[None, :]
    low = tl.load(at, mask=inside, other=0)
    if BITS == 4:
        high = low >> 4
        low = low & 15
    else:
        high = tl.load(at + D // 2, mask=inside, other=0)
    return as_float(low), as_float(high)


@triton.jit
def as_float(codes):
    """uint8 -> float32 by setting mantissa bits: a conversion instruction has a quarter of the throughput on sm_80."""
    return (codes.to(tl.int32) | _BIASED_ZERO).to(tl.float32, bitcast=True) - _TWO_23


@triton.jit
def _quantized(x, low, scale, TOP: tl.constexpr):
    """float32 -> uint8 codes against low and scale that broadcast."""
    safe = tl.where(scale == 0.0, 1.0, scale)
    codes = tl.where(scale == 0.0, 0.0, tl.div_rn(x - low, tl.broadcast_to(safe, x.shape)))
    codes = tl.minimum(tl.maximum(codes, 0.0), TOP)
    return (codes + _ROUND - _ROUND).to(tl.uint8)


@triton.jit
def _grid(least, most, TOP: tl.constexpr):
    """(scale, low) in float16 of numbers between least and most."""
    return tl.div_rn(most - least, tl.full(most.shape, TOP, tl.float32)).to(tl.float16), least.to(tl.float16)


@triton.jit
def _store_codes(codes, at, low, high, inside, D: tl.constexpr, BITS: tl.constexpr):
    if BITS == 4:
        tl.store(codes + at, low | (high << 4), mask=inside)
    else:
        tl.store(codes + at, low, mask=inside)
        tl.store(codes + at + D // 2, high, mask=inside)


@triton.jit
def count_refused(low, high, inside):
    """Numbers that float16 cannot hold, NaN among them."""
    bad = ((tl.abs(low) <= _LARGEST) == 0) | ((tl.abs(high) <= _LARGEST) == 0)
    return tl.sum(tl.sum((bad & inside).to(tl.int32), axis=1), axis=0)


@triton.jit
def pack_tile(
    key_low_half, key_high_half, value_low_half, value_high_half, first, head, dims, inside,
    key_codes, key_scale, key_low, value_codes, value_scale, value_low,
    stride_cg, stride_ct, stride_kg, stride_kt, stride_vg,
    D: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """Stores one group of float32 tokens, (GROUP, BLOCK_D) halves, from token `first` on; head int64."""
    TOP: tl.constexpr = float(2**BITS - 1)
    rows = tl.arange(0, GROUP)
    at = head * stride_cg + first.to(tl.int64) * stride_ct + rows[:, None] * stride_ct + dims[None, :]
    if KEYS:
        low_scale, low_low = _grid(tl.min(key_low_half, axis=0), tl.max(key_low_half, axis=0), TOP)
        high_scale, high_low = _grid(tl.min(key_high_half, axis=0), tl.max(key_high_half, axis=0), TOP)
        grid_at = head * stride_kg + (first // GROUP).to(tl.int64) * stride_kt + dims
        real = dims < D // 2
        tl.store(key_scale + grid_at, low_scale, mask=real)
        tl.store(key_scale + grid_at + D // 2, high_scale, mask=real)
        tl.store(key_low + grid_at, low_low, mask=real)
        tl.store(key_low + grid_at + D // 2, high_low, mask=real)
        low = _quantized(key_low_half, low_low.to(tl.float32)[None, :], low_scale.to(tl.float32)[None, :], TOP)
        high = _quantized(key_high_half, high_low.to(tl.float32)[None, :], high_scale.to(tl.float32)[None, :], TOP)
        _store_codes(key_codes, at, low, high, inside, D, BITS)
    if VALUES:
        least = tl.min(tl.where(inside, tl.minimum(value_low_half, value_high_half), float("inf")), axis=1)
        most = tl.max(tl.where(inside, tl.maximum(value_low_half, value_high_half), float("-inf")), axis=1)
        scale, least_half = _grid(least, most, TOP)
        tl.store(value_scale + head * stride_vg + first + rows, scale)
        tl.store(value_low + head * stride_vg + first + rows, least_half)
        low = _quantized(value_low_half, least_half.to(tl.float32)[:, None], scale.to(tl.float32)[:, None], TOP)
        high = _quantized(value_high_half, least_half.to(tl.float32)[:, None], scale.to(tl.float32)[:, None], TOP)
        _store_codes(value_codes, at, low, high, inside, D, BITS)


@triton.jit
def rotate(low, high, cos, sin, at, inside, D: tl.constexpr):
    """RoPE of two halves in float32; cos, sin (tokens, D) at offsets `at` of the low half."""
    cos_low, cos_high = tl.load(cos + at, mask=inside, other=0.0), tl.load(cos + at + D // 2, mask=inside, other=0.0)
    sin_low, sin_high = tl.load(sin + at, mask=inside, other=0.0), tl.load(sin + at + D // 2, mask=inside, other=0.0)
    return low * cos_low - high * sin_low, high * cos_high + low * sin_high


@triton.jit(do_not_specialize=["start"])
def _pack(
    keys, values, cos, sin, refused, stride_xg, stride_xt, stride_yg, stride_yt,
    key_codes, key_scale, key_low, value_codes, value_scale, value_low,
    stride_cg, stride_ct, stride_kg, stride_kt, stride_vg, start,
    D: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    group, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows, dims = tl.arange(0, GROUP), tl.arange(0, BLOCK_D)
    inside = (rows >= 0)[:, None] & (dims < D // 2)[None, :]
    token = (group * GROUP + rows).to(tl.int64)
    at = keys + head * stride_xg + token[:, None] * stride_xt + dims[None, :]
    key_first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    key_second = tl.load(at + D // 2, mask=inside, other=0.0).to(tl.float32)
    if cos is not None:
        key_first, key_second = rotate(key_first, key_second, cos, sin, token[:, None] * D + dims[None, :], inside, D)
    at = values + head * stride_yg + token[:, None] * stride_yt + dims[None, :]
    value_first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    value_second = tl.load(at + D // 2, mask=inside, other=0.0).to(tl.float32)
    slot = head * tl.num_programs(0) + group
    tl.store(refused + slot, count_refused(key_first, key_second, inside))
    tl.store(refused + tl.num_programs(0) * tl.num_programs(1) + slot, count_refused(value_first, value_second, inside))
    pack_tile(
        key_first, key_second, value_first, value_second, start + group * GROUP, head, dims, inside,
        key_codes, key_scale, key_low, value_codes, value_scale, value_low,
        stride_cg, stride_ct, stride_kg, stride_kt, stride_vg, D, GROUP, BITS, KEYS=True, VALUES=True,
    )  # fmt: skip


@triton.jit
def _unpack(
    keys, values, key_codes, key_scale, key_low, value_codes, value_scale, value_low,
    stride_cg, stride_ct, stride_kg, stride_kt, stride_vg, stride_xg,
    D: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    group, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    rows, dims = tl.arange(0, GROUP), tl.arange(0, BLOCK_D)
    real = dims < D // 2
    inside = (rows >= 0)[:, None] & real[None, :]
    token = group * GROUP + rows
    at = head * stride_xg + token[:, None] * D + dims[None, :]

    first, second = load_codes(key_codes + head * stride_cg, token, dims, stride_ct, inside, D, BITS)
    grid = head * stride_kg + group * stride_kt + dims
    scale, low = tl.load(key_scale + grid, mask=real, other=0.0), tl.load(key_low + grid, mask=real, other=0.0)
    first = first * scale.to(tl.float32)[None, :] + low.to(tl.float32)[None, :]
    tl.store(keys + at, first.to(keys.dtype.element_ty), mask=inside)
    grid += D // 2
    scale, low = tl.load(key_scale + grid, mask=real, other=0.0), tl.load(key_low + grid, mask=real, other=0.0)
    second = second * scale.to(tl.float32)[None, :] + low.to(tl.float32)[None, :]
    tl.store(keys + at + D // 2, second.to(keys.dtype.element_ty), mask=inside)

    first, second = load_codes(value_codes + head * stride_cg, token, dims, stride_ct, inside, D, BITS)
    scale = tl.load(value_scale + head * stride_vg + token).to(tl.float32)[:, None]
    low = tl.load(value_low + head * stride_vg + token).to(tl.float32)[:, None]
    tl.store(values + at, (first * scale + low).to(values.dtype.element_ty), mask=inside)
    tl.store(values + at + D // 2, (second * scale + low).to(values.dtype.element_ty), mask=inside)
