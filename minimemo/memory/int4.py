"""The codec of about four bits a number: a grid for each group, no profile needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from minimemo.errors import MemoError, ModelError
from minimemo.memory.blocks import BLOCK_TOKENS, KVBlock
from minimemo.memory.codec import (
    CPU,
    KVLayout,
    Planes,
    Streams,
    brought,
    byte_planes,
    checked_kv,
    expect_streams,
    from_planes,
    sinks_from,
    sinks_of,
    whole_number,
)
from minimemo.memory.format import LEVEL

# Measured on Qwen2.5-Coder-0.5B over 4,096 tokens of a novel: KL of the next 256, bytes a token of memory.bin. Key
# group and levels 32 and 16: .0064, 3,210; 128 and 24: .0050, 3,172; 256 and 24: .0055, 3,106; 128 and 32: .0038,
# 3,309; 256 and 32: .0033, 3,232. A grid costs more than the levels that it saves. Values in groups of 64: 5 % more
# bytes for 7 % of KL (four documents); grids fitted to the least squared error instead of the ends: 12 % more KL, since
# what they clip does not average out. 0, 1, 4, 8 sinks, with the grids of before: .0060, .0051, .0049, .0050 (2,048
# tokens); 16: 5 % less than 4, for 2 % more bytes.
SINKS, KEY_GROUP, VALUE_GROUP = 4, 256, 128
KEY_LEVELS, VALUE_LEVELS = 27, 16
PAIRED = 16  # levels up to which two codes share a byte


@dataclass(frozen=True, slots=True)
class Int4Codec:
    """About 4 bits a number: keys before RoPE per channel over groups of tokens, values per token over groups of
    channels (the axes of KIVI, arXiv 2402.02750, section 3), min-max, with an fp16 zero and step a group.

    Error bound: a decoded number, in float32, is within half the *stored* step of the coded one. The zero is rounded
    down to fp16 and the step up, so that the grid always covers its group and nothing is clipped; the stored step of
    a group from a to b is at most ((b - a) + |a| / 1024 + 2^-24) / (levels - 1) * (1 + 1/1024) + 2^-24. A constant
    group that fp16 can hold is exact.

    The first `sinks` tokens of the sequence are kept exactly, in the layout's dtype: all later tokens lean on them.

    Streams: key codes, key grid, value codes, value grid, sinks. Codes are (L, n - S, G D): of up to 16 levels two
    neighbours along the group in one byte, the first in its low bits; of more levels a byte each, which zstd takes to
    their entropy. A grid is four byte planes: low and high bytes of all zeros, then
    of all steps; each has its own statistics, and apart from the others takes 20 % less. The sinks are the byte planes
    of (keys, values).
    """

    layout: KVLayout
    sinks: int = SINKS
    key_group: int = KEY_GROUP
    value_group: int = VALUE_GROUP
    key_levels: int = KEY_LEVELS
    value_levels: int = VALUE_LEVELS

    name = "int4"
    lossless = False
    level = LEVEL

    def __post_init__(self) -> None:
        whole_number("sinks", self.sinks, 0, BLOCK_TOKENS)
        for group in ("key_group", "value_group"):
            whole_number(group, getattr(self, group), 2, 1024)
            if getattr(self, group) % 2:
                raise MemoError(f"codec: {group} must be even, got {getattr(self, group)}")
        for levels in ("key_levels", "value_levels"):
            whole_number(levels, getattr(self, levels), 2, 256)

    def params(self) -> dict[str, Any]:
        """As the protocol says; 16 levels, the only number that there was once, stay unnamed."""
        params = asdict(self)
        layout = params.pop("layout")
        return {**layout, **{key: value for key, value in params.items() if "levels" not in key or value != PAIRED}}

    def encode(self, block: KVBlock, following: int = BLOCK_TOKENS) -> Streams:
        keys, values = checked_kv(block, self.layout)
        exact = sinks_of(block, keys, values, self.sinks)
        kept = exact.shape[3]
        key_rows, value_rows = (x[:, :, kept:].transpose(1, 2).flatten(2).float() for x in (keys, values))
        return (
            *_quantize(key_rows, 1, self.key_group, self.key_levels),
            *_quantize(value_rows, 2, self.value_group, self.value_levels),
            *byte_planes(exact),
        )

    def decode(self, streams: Streams, tokens: int, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
        """As the protocol says; in float32, so that a cache rounds once, after RoPE."""
        layers, heads, _, dim = self.layout.shape(tokens)
        dtype = self.layout.torch_dtype
        expect_streams(streams, 10 + dtype.itemsize)
        planes = streams if device == CPU else brought(streams, device)
        sinks = sinks_from(planes[10:], self.layout, tokens)
        kept = sinks.shape[3]
        rest = (layers, tokens - kept, heads * dim)
        keys = _dequantize(planes[:5], rest, 1, self.key_group, self.key_levels)
        values = _dequantize(planes[5:10], rest, 2, self.value_group, self.value_levels)
        heads_first = [x.unflatten(2, (heads, dim)).transpose(1, 2) for x in (keys, values)]
        return torch.cat((sinks[0], heads_first[0]), dim=2), torch.cat((sinks[1], heads_first[1]), dim=2)


def _quantize(x: Tensor, dim: int, group: int, levels: int) -> Streams:
    """x (L, n, C) float32 -> codes, and the grid: a zero and a step for every `group` along `dim`."""
    size = x.shape[dim]
    if x.numel() == 0:
        return (b"",) * 5
    if size % group:  # the last group is short: repeat its last row, which moves neither end of its range
        x = torch.cat((x, x.narrow(dim, size - 1, 1).expand(*_resized(x.shape, dim, -size % group))), dim)
    grouped = x.unflatten(dim, (-1, group))
    low, high = grouped.amin(dim + 1), grouped.amax(dim + 1)
    zero = _round_half(low, up=False)
    step = _round_half((high - zero.float()) / (levels - 1), up=True)
    if not (zero.isfinite().all() and step.isfinite().all()):
        raise ModelError(f"codec 'int4': a key or value of {x.abs().max():.3g} is beyond fp16: use the codec 'exact'")
    inverse = torch.where(step > 0, 1 / step.float(), 0.0)
    codes = (grouped - zero.float().unsqueeze(dim + 1)).mul_(inverse.unsqueeze(dim + 1)).round_().clamp_(0, levels - 1)
    packed = codes.to(torch.uint8).flatten(dim, dim + 1)
    if levels <= PAIRED:
        pairs = packed.unflatten(dim, (-1, 2))
        packed = (pairs.select(dim + 1, 1) << 4).bitwise_or_(pairs.select(dim + 1, 0))
    packed = packed.narrow(dim, 0, _code_rows(size, levels))
    return *byte_planes(packed), *byte_planes(zero), *byte_planes(step)


def _dequantize(streams: Planes, shape: tuple[int, ...], dim: int, group: int, levels: int) -> Tensor:
    """The float32 numbers of `_quantize`, of `shape` (L, n, C)."""
    size = shape[dim]
    groups = -(-size // group)
    grid = _resized(shape, dim, groups)
    zero, step = (from_planes(streams[at : at + 2], torch.float16, grid).float().unsqueeze(dim + 1) for at in (1, 3))
    codes = from_planes(streams[:1], torch.uint8, _resized(shape, dim, _code_rows(size, levels)))
    if levels <= PAIRED:
        codes = torch.stack((codes & 15, codes >> 4), dim + 1).flatten(dim, dim + 1).narrow(dim, 0, size)
    numbers = zero.new_zeros(_resized(shape, dim, groups * group))
    numbers.narrow(dim, 0, size).copy_(codes)
    numbers.unflatten(dim, (-1, group)).mul_(step).add_(zero)
    return numbers.narrow(dim, 0, size)


def _code_rows(size: int, levels: int) -> int:
    """Bytes along a group's axis that `size` codes take."""
    return (size + 1) // 2 if levels <= PAIRED else size


def _resized(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    """`shape` with another size at `dim`."""
    return (*shape[:dim], size, *shape[dim + 1 :])


def _round_half(x: Tensor, *, up: bool) -> Tensor:
    """The float16 next to x that is not below (`up`) or not above it; infinite beyond the range of float16."""
    near = x.half()
    wrong = near.float() < x if up else near.float() > x
    return torch.where(wrong, torch.nextafter(near, torch.full_like(near, float("inf") if up else float("-inf"))), near)
