"""The codec of four bits a number: a grid for each group, no profile needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from minimemo.errors import MemoError, ModelError
from minimemo.memory.blocks import BLOCK_TOKENS, KVBlock
from minimemo.memory.codec import (
    KVLayout,
    Streams,
    byte_planes,
    checked_kv,
    expect_streams,
    from_planes,
    sinks_from,
    sinks_of,
    whole_number,
)
from minimemo.memory.format import LEVEL

# Measured on Qwen2.5-Coder-0.5B: mean KL of the next 128 tokens after 2,048 of four documents, English and Chinese,
# and ratio of all streams in bfloat16 under zstd 3 to fp16. Key group x value group: 64 x 64 0.0049 at 3.95, 64 x 128
# 0.0054 at 4.14, 32 x 64 0.0035 at 3.75, 32 x 128 0.0037 at 3.91, 16 x 128 0.0028 at 3.58. Sinks 0, 1, 4, 8 (at
# 64 x 64): 0.0060, 0.0051, 0.0049, 0.0050.
SINKS, KEY_GROUP, VALUE_GROUP = 4, 32, 128


@dataclass(frozen=True, slots=True)
class Int4Codec:
    """4 bits a number: keys before RoPE per channel over groups of tokens, values per token over groups of channels
    (the axes of KIVI, arXiv 2402.02750, section 3), min-max, with an fp16 zero and step a group.

    Error bound: a decoded number, in float32, is within half the *stored* step of the coded one. The zero is rounded
    down to fp16 and the step up, so that the grid always covers its group and nothing is clipped; the stored step of
    a group from a to b is at most ((b - a) + |a| / 1024 + 2^-24) / 15 * (1 + 1/1024) + 2^-24. A constant group that
    fp16 can hold is exact.

    The first `sinks` tokens of the sequence are kept exactly, in the layout's dtype: all later tokens lean on them.

    Streams: key codes, key grid, value codes, value grid, sinks. Codes are (L, n - S, G D) with two neighbours along
    the group in one byte, the first in its low bits. A grid is four byte planes: low and high bytes of all zeros, then
    of all steps; each has its own statistics, and apart from the others takes 20 % less. The sinks are the byte planes
    of (keys, values).
    """

    layout: KVLayout
    sinks: int = SINKS
    key_group: int = KEY_GROUP
    value_group: int = VALUE_GROUP

    name = "int4"
    lossless = False
    level = LEVEL

    def __post_init__(self) -> None:
        whole_number("sinks", self.sinks, 0, BLOCK_TOKENS)
        for group in ("key_group", "value_group"):
            whole_number(group, getattr(self, group), 2, 1024)
            if getattr(self, group) % 2:
                raise MemoError(f"codec: {group} must be even, got {getattr(self, group)}")

    def params(self) -> dict[str, Any]:
        params = asdict(self)
        return {**params.pop("layout"), **params}

    def encode(self, block: KVBlock, following: int = BLOCK_TOKENS) -> Streams:
        keys, values = checked_kv(block, self.layout)
        exact = sinks_of(block, keys, values, self.sinks)
        kept = exact.shape[3]
        key_rows, value_rows = (x[:, :, kept:].transpose(1, 2).flatten(2).float() for x in (keys, values))
        return (
            *_quantize(key_rows, 1, self.key_group),
            *_quantize(value_rows, 2, self.value_group),
            *byte_planes(exact),
        )

    def decode(self, streams: Streams, tokens: int) -> tuple[Tensor, Tensor]:
        """As the protocol says; in float32, so that a cache rounds once, after RoPE."""
        layers, heads, _, dim = self.layout.shape(tokens)
        dtype = self.layout.torch_dtype
        expect_streams(streams, 10 + dtype.itemsize)
        sinks = sinks_from(streams[10:], self.layout, tokens)
        kept = sinks.shape[3]
        rest = (layers, tokens - kept, heads * dim)
        keys = _dequantize(streams[:5], rest, 1, self.key_group)
        values = _dequantize(streams[5:10], rest, 2, self.value_group)
        heads_first = [x.unflatten(2, (heads, dim)).transpose(1, 2) for x in (keys, values)]
        return torch.cat((sinks[0], heads_first[0]), dim=2), torch.cat((sinks[1], heads_first[1]), dim=2)


def _quantize(x: Tensor, dim: int, group: int) -> Streams:
    """x (L, n, C) float32 -> packed 4-bit codes, and the grid: a zero and a step for every `group` along `dim`."""
    size = x.shape[dim]
    if x.numel() == 0:
        return (b"",) * 5
    if size % group:  # the last group is short: repeat its last row, which moves neither end of its range
        x = torch.cat((x, x.narrow(dim, size - 1, 1).expand(*_resized(x.shape, dim, -size % group))), dim)
    grouped = x.unflatten(dim, (-1, group))
    low, high = grouped.amin(dim + 1), grouped.amax(dim + 1)
    zero = _round_half(low, up=False)
    step = _round_half((high - zero.float()) / 15, up=True)
    if not (zero.isfinite().all() and step.isfinite().all()):
        raise ModelError(f"codec 'int4': a key or value of {x.abs().max():.3g} is beyond fp16: use the codec 'exact'")
    inverse = torch.where(step > 0, 1 / step.float(), 0.0)
    codes = (grouped - zero.float().unsqueeze(dim + 1)).mul_(inverse.unsqueeze(dim + 1)).round_().clamp_(0, 15)
    pairs = codes.to(torch.uint8).flatten(dim, dim + 1).unflatten(dim, (-1, 2))
    packed = (pairs.select(dim + 1, 1) << 4).bitwise_or_(pairs.select(dim + 1, 0))
    return *byte_planes(packed.narrow(dim, 0, (size + 1) // 2)), *byte_planes(zero), *byte_planes(step)


def _dequantize(streams: Streams, shape: tuple[int, ...], dim: int, group: int) -> Tensor:
    """The float32 numbers of `_quantize`, of `shape` (L, n, C)."""
    size = shape[dim]
    groups = -(-size // group)
    grid = _resized(shape, dim, groups)
    zero, step = (from_planes(streams[at : at + 2], torch.float16, grid).float().unsqueeze(dim + 1) for at in (1, 3))
    pairs = from_planes(streams[:1], torch.uint8, _resized(shape, dim, (size + 1) // 2))
    codes = torch.stack((pairs & 15, pairs >> 4), dim + 1).flatten(dim, dim + 1).narrow(dim, 0, size)
    numbers = torch.zeros(_resized(shape, dim, groups * group))
    numbers.narrow(dim, 0, size).copy_(codes)
    numbers.unflatten(dim, (-1, group)).mul_(step).add_(zero)
    return numbers.narrow(dim, 0, size)


def _resized(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    """`shape` with another size at `dim`."""
    return (*shape[:dim], size, *shape[dim + 1 :])


def _round_half(x: Tensor, *, up: bool) -> Tensor:
    """The float16 next to x that is not below (`up`) or not above it; infinite beyond the range of float16."""
    near = x.half()
    wrong = near.float() < x if up else near.float() > x
    return torch.where(wrong, torch.nextafter(near, torch.full_like(near, float("inf") if up else float("-inf"))), near)
