"""These kernels pack keys and values as formats.PackedKV has them, and read their codes.

A program takes one group of 64 tokens of one kv head. Its tiles are the two halves of a row, dimensions i and i + D/2,
which share a byte at 4 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..formats import PACK_GROUP, PackedKV, check, check_packed
from . import FLOATS
from .launch import Launch, power_of_2

_LARGEST = tl.constexpr(65504.0)  # of float16
_BIASED_ZERO = tl.constexpr(0x4B000000)  # 2 ** 23 as float32: the mantissa below it holds an integer
_TWO_23 = tl.constexpr(8388608.0)
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2 ** 23: adding it rounds to the nearest integer, ties to even


def pack_into(packed: PackedKV, first: int, keys: Tensor, values: Tensor) -> None:
    """As `pack.pack_into`. Waits for the GPU once."""
    refused = torch.empty((2, keys.shape[0], keys.shape[1] // PACK_GROUP), dtype=torch.int32, device=keys.device)
    pack_launch(packed, first, keys, values, refused).run()
    for name, count in zip(("keys", "values"), refused.flatten(1).sum(1).tolist(), strict=True):
        if count:
            raise ValueError(f"{name}: {count} numbers are not finite or too large for float16")


def packed_arguments(packed: PackedKV) -> dict[str, Tensor | int | float | None]:
    """Returns the kernels' arguments for a packed cache, whose keys and values lie alike (`check_packed`)."""
    return {
        "key_codes": packed.key_codes, "key_scale": packed.key_scale, "key_low": packed.key_low,
        "value_codes": packed.value_codes, "value_scale": packed.value_scale, "value_low": packed.value_low,
        "stride_cg": packed.key_codes.stride(0), "stride_ct": packed.key_codes.stride(1),
        "stride_kg": packed.key_scale.stride(0), "stride_kt": packed.key_scale.stride(1),
        "stride_vg": packed.value_scale.stride(0),
    }  # fmt: skip


def half_block(dim: int) -> int:
    """Returns a tile's width: half a row, rounded up to what a product takes."""
    return max(16, power_of_2(dim // 2))


def pack_launch(packed: PackedKV, first: int, keys: Tensor, values: Tensor, refused: Tensor) -> Launch:
    """Counts in refused (2, G, n / 64) int32 the numbers of each group of keys, and of values, beyond float16."""
    check_packed(packed, keys.device)
    heads, capacity, dim = packed.shape
    check("keys", keys, (heads, None, dim), FLOATS)
    check("values", values, keys.shape, (keys.dtype,), keys.device)
    tokens = keys.shape[1]
    if tokens % PACK_GROUP:
        raise ValueError(f"keys: {tokens} tokens, expected a multiple of {PACK_GROUP}")
    if first % PACK_GROUP or not 0 <= first <= capacity - tokens:
        raise ValueError(f"first: {first}, expected a multiple of {PACK_GROUP} from 0 to {capacity - tokens}")
    return Launch(
        _pack,
        (tokens // PACK_GROUP, heads),
        {
            "keys": keys, "values": values, "refused": refused,
            "stride_xg": keys.stride(0), "stride_xt": keys.stride(1),
            "stride_yg": values.stride(0), "stride_yt": values.stride(1), **packed_arguments(packed), "first": first,
        },
        {"D": dim, "BLOCK_D": half_block(dim), "GROUP": PACK_GROUP, "BITS": packed.bits},
        num_warps=8 if dim > 128 else 4,
        num_stages=1,
    )  # fmt: skip


@triton.jit
def load_codes(codes, rows, dims, stride, inside, D: tl.constexpr, BITS: tl.constexpr):
    """Reads the codes of dimensions `dims` and `dims` + D/2 of `rows`, both (rows, dims) float32."""
    at = codes + rows[:, None] * stride + dims[None, :]
    low = tl.load(at, mask=inside, other=0)
    if BITS == 4:
        high = low >> 4
        low = low & 15
    else:
        high = tl.load(at + D // 2, mask=inside, other=0)
    return _as_float(low), _as_float(high)


@triton.jit
def _as_float(codes):
    """Widens uint8 to float32 by setting mantissa bits: a conversion has a quarter of the throughput on sm_80."""
    return (codes.to(tl.int32) | _BIASED_ZERO).to(tl.float32, bitcast=True) - _TWO_23


@triton.jit
def _quantized(x, low, scale, TOP: tl.constexpr):
    """Rounds float32 to uint8 codes against float16 low and scale that broadcast."""
    low, scale = low.to(tl.float32), scale.to(tl.float32)
    safe = tl.where(scale == 0.0, 1.0, scale)
    codes = tl.where(scale == 0.0, 0.0, tl.div_rn(x - low, tl.broadcast_to(safe, x.shape)))
    codes = tl.minimum(tl.maximum(codes, 0.0), TOP)
    return (codes + _ROUND - _ROUND).to(tl.uint8)


@triton.jit
def _grid(least, most, TOP: tl.constexpr):
    """Returns (scale, low) in float16 of numbers between least and most."""
    return tl.div_rn(most - least, tl.full(most.shape, TOP, tl.float32)).to(tl.float16), least.to(tl.float16)


@triton.jit
def _store_codes(codes, at, low, high, inside, D: tl.constexpr, BITS: tl.constexpr):
    if BITS == 4:
        tl.store(codes + at, low | (high << 4), mask=inside)
    else:
        tl.store(codes + at, low, mask=inside)
        tl.store(codes + at + D // 2, high, mask=inside)


@triton.jit
def _count_refused(low, high, inside):
    """Counts numbers that float16 cannot hold, NaN among them."""
    bad = ((tl.abs(low) <= _LARGEST) == 0) | ((tl.abs(high) <= _LARGEST) == 0)
    return tl.sum(tl.sum((bad & inside).to(tl.int32), axis=1), axis=0)


@triton.jit(do_not_specialize=["first"])
def _pack(
    keys, values, refused, stride_xg, stride_xt, stride_yg, stride_yt,
    key_codes, key_scale, key_low, value_codes, value_scale, value_low,
    stride_cg, stride_ct, stride_kg, stride_kt, stride_vg, first,
    D: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Packs one group of tokens (axis 0) of one kv head (axis 1)."""
    TOP: tl.constexpr = float(2**BITS - 1)
    group, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows, dims = tl.arange(0, GROUP), tl.arange(0, BLOCK_D)
    real = dims < D // 2
    inside = (rows >= 0)[:, None] & real[None, :]
    token = (group * GROUP + rows).to(tl.int64)
    at = keys + head * stride_xg + token[:, None] * stride_xt + dims[None, :]
    key_low_half = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    key_high_half = tl.load(at + D // 2, mask=inside, other=0.0).to(tl.float32)
    at = values + head * stride_yg + token[:, None] * stride_yt + dims[None, :]
    value_low_half = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    value_high_half = tl.load(at + D // 2, mask=inside, other=0.0).to(tl.float32)
    slot = head * tl.num_programs(0) + group
    tl.store(refused + slot, _count_refused(key_low_half, key_high_half, inside))
    slot += tl.num_programs(0) * tl.num_programs(1)
    tl.store(refused + slot, _count_refused(value_low_half, value_high_half, inside))

    start = first + group * GROUP
    at = head * stride_cg + start.to(tl.int64) * stride_ct + rows[:, None] * stride_ct + dims[None, :]
    low_scale, low_low = _grid(tl.min(key_low_half, axis=0), tl.max(key_low_half, axis=0), TOP)
    high_scale, high_low = _grid(tl.min(key_high_half, axis=0), tl.max(key_high_half, axis=0), TOP)
    grid_at = head * stride_kg + (start // GROUP).to(tl.int64) * stride_kt + dims
    tl.store(key_scale + grid_at, low_scale, mask=real)
    tl.store(key_scale + grid_at + D // 2, high_scale, mask=real)
    tl.store(key_low + grid_at, low_low, mask=real)
    tl.store(key_low + grid_at + D // 2, high_low, mask=real)
    low = _quantized(key_low_half, low_low[None, :], low_scale[None, :], TOP)
    high = _quantized(key_high_half, high_low[None, :], high_scale[None, :], TOP)
    _store_codes(key_codes, at, low, high, inside, D, BITS)

    least = tl.min(tl.where(inside, tl.minimum(value_low_half, value_high_half), float("inf")), axis=1)
    most = tl.max(tl.where(inside, tl.maximum(value_low_half, value_high_half), float("-inf")), axis=1)
    scale, least_half = _grid(least, most, TOP)
    tl.store(value_scale + head * stride_vg + start + rows, scale)
    tl.store(value_low + head * stride_vg + start + rows, least_half)
    low = _quantized(value_low_half, least_half[:, None], scale[:, None], TOP)
    high = _quantized(value_high_half, least_half[:, None], scale[:, None], TOP)
    _store_codes(value_codes, at, low, high, inside, D, BITS)
