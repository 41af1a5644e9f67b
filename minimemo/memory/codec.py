"""Codecs: a block of KV -> a few byte streams -> the block again.

Rule of this file: no paths, no file layout, no entropy coder. A codec puts numbers of one kind into one stream, in an
order that an entropy coder likes; the container compresses each stream as a zstd frame of its own. Same block, same
bytes.

Letters: L layers, G kv heads, n tokens of a block, D head dim, S sink tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from minimemo.errors import MemoError, ModelError
from minimemo.memory.blocks import BLOCK_TOKENS, KVBlock
from minimemo.memory.writer import LEVEL

if TYPE_CHECKING:
    from minimemo.memory.profile import Profile

Streams = tuple[bytes, ...]  # the coded form of a block; their number and order belong to the codec

# Measured on Qwen2.5-Coder-0.5B: mean KL of the next 128 tokens after 2,048 of four documents, English and Chinese,
# and ratio of all streams in bfloat16 under zstd 3 to fp16. Key group x value group: 64 x 64 0.0049 at 3.95, 64 x 128
# 0.0054 at 4.14, 32 x 64 0.0035 at 3.75, 32 x 128 0.0037 at 3.91, 16 x 128 0.0028 at 3.58. Sinks 0, 1, 4, 8 (at
# 64 x 64): 0.0060, 0.0051, 0.0049, 0.0050.
SINKS, KEY_GROUP, VALUE_GROUP = 4, 32, 128
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class KVLayout:
    """What every block of one model looks like. dtype: that of the model's keys and values."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_kv_heads", "head_dim"):
            whole_number(name, getattr(self, name), 1, 65536)
        if not isinstance(self.dtype, str) or self.dtype not in _DTYPES:
            raise MemoError(f"codec: dtype {self.dtype!r} is unknown; known: {', '.join(_DTYPES)}")

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]

    def shape(self, tokens: int) -> tuple[int, int, int, int]:
        """(L, G, n, D)."""
        return self.num_layers, self.num_kv_heads, tokens, self.head_dim


class Codec(Protocol):
    """Blocks to byte streams and back. `lossless`: decoded tensors are bit-equal and in the layout's dtype."""

    @property
    def name(self) -> str: ...

    @property
    def layout(self) -> KVLayout: ...

    @property
    def lossless(self) -> bool: ...

    @property
    def level(self) -> int: ...  # of zstd, worth its time on these streams

    def params(self) -> dict[str, Any]:
        """JSON-able; `make_codec(name, params)` gives an equal codec."""

    def encode(self, block: KVBlock, following: int = BLOCK_TOKENS) -> Streams:
        """following: tokens of the sequence after this block, as far as they matter: the end may be coded with more
        care. Raises ModelError for NaN or infinity, ValueError for a block of another layout."""

    def decode(self, streams: Streams, tokens: int) -> tuple[Tensor, Tensor]:
        """keys (before RoPE) and values, each (L, G, tokens, D) on the CPU. Raises MemoError for a damaged block."""


def make_codec(name: str, params: Mapping[str, Any], find_profile: Callable[[str], Profile] | None = None) -> Codec:
    """The codec called `name`. Raises MemoError for unknown names and parameters: both may come from a file.

    find_profile: gives the Profile of a hash; the transform codec cannot be made without.
    """
    if not isinstance(name, str) or name not in CODECS:
        raise MemoError(f"codec {name!r} is unknown; known: {', '.join(CODECS)}")
    if not isinstance(params, Mapping):
        raise MemoError(f"codec {name!r}: parameters must be an object, got {params!r}")
    try:
        layout = KVLayout(*(params[key] for key in ("num_layers", "num_kv_heads", "head_dim", "dtype")))
    except KeyError as error:
        raise MemoError(f"codec {name!r}: parameter {error} is missing") from None
    options = {key: value for key, value in params.items() if key not in KVLayout.__dataclass_fields__}
    unknown = options.keys() - CODECS[name]
    if unknown:
        raise MemoError(f"codec {name!r}: unknown parameter {', '.join(sorted(map(repr, unknown)))}")
    if name == ExactCodec.name:
        return ExactCodec(layout)
    if name == Int4Codec.name:
        return Int4Codec(layout, **options)
    return _transform_codec(layout, options, find_profile)


def _transform_codec(layout: KVLayout, options: dict[str, Any], find_profile: Callable[[str], Profile] | None) -> Codec:
    from minimemo.memory.klt import KltCodec

    missing = CODECS[KLT] - options.keys()
    if missing:
        raise MemoError(f"codec 'klt': parameter {', '.join(sorted(map(repr, missing)))} is missing")
    hash_ = options.pop("profile")
    if not isinstance(hash_, str) or find_profile is None:
        raise MemoError(f"codec 'klt': profile {hash_!r} cannot be looked up")
    return KltCodec.make(layout, find_profile(hash_), **options)


@dataclass(frozen=True, slots=True)
class ExactCodec:
    """Every bit as it was. Streams: the byte planes of the keys, then of the values (signs and exponents repeat,
    mantissas do not)."""

    layout: KVLayout

    name = "exact"
    lossless = True
    level = LEVEL

    def params(self) -> dict[str, Any]:
        return asdict(self.layout)

    def encode(self, block: KVBlock, following: int = BLOCK_TOKENS) -> Streams:
        keys, values = checked_kv(block, self.layout)
        return *byte_planes(keys), *byte_planes(values)

    def decode(self, streams: Streams, tokens: int) -> tuple[Tensor, Tensor]:
        dtype, shape = self.layout.torch_dtype, self.layout.shape(tokens)
        _expect(streams, 2 * dtype.itemsize)
        keys, values = streams[: dtype.itemsize], streams[dtype.itemsize :]
        return from_planes(keys, dtype, shape), from_planes(values, dtype, shape)


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
        options = {"sinks": self.sinks, "key_group": self.key_group, "value_group": self.value_group}
        return {**asdict(self.layout), **options}

    def encode(self, block: KVBlock, following: int = BLOCK_TOKENS) -> Streams:
        keys, values = checked_kv(block, self.layout)
        exact = sinks_of(block, keys, values, self.sinks)
        kept = exact.shape[3]
        key_streams = _quantize(_rows(keys[:, :, kept:]), 1, self.key_group)
        value_streams = _quantize(_rows(values[:, :, kept:]), 2, self.value_group)
        return *key_streams, *value_streams, *byte_planes(exact)

    def decode(self, streams: Streams, tokens: int) -> tuple[Tensor, Tensor]:
        """As the protocol says; in float32, so that a cache rounds once, after RoPE."""
        layers, heads, _, dim = self.layout.shape(tokens)
        dtype = self.layout.torch_dtype
        _expect(streams, 10 + dtype.itemsize)
        sinks = sinks_from(streams[10:], self.layout, tokens)
        kept = sinks.shape[3]
        rest = (layers, tokens - kept, heads * dim)
        keys = _dequantize(streams[:5], rest, 1, self.key_group)
        values = _dequantize(streams[5:10], rest, 2, self.value_group)
        heads_first = [x.unflatten(2, (heads, dim)).transpose(1, 2) for x in (keys, values)]
        return torch.cat((sinks[0], heads_first[0]), dim=2), torch.cat((sinks[1], heads_first[1]), dim=2)


def sinks_of(block: KVBlock, keys: Tensor, values: Tensor, count: int) -> Tensor:
    """(2, L, G, S, D): keys and values of the block's sinks, which only the first block of a sequence has."""
    kept = min(count, block.tokens) if block.start == 0 else 0
    return torch.stack((keys[:, :, :kept], values[:, :, :kept]))


def sinks_from(planes: Streams, layout: KVLayout, tokens: int) -> Tensor:
    """The float32 sinks of `byte_planes(sinks_of(...))` in a block of `tokens`. Raises MemoError for more than that."""
    layers, heads, _, dim = layout.shape(tokens)
    kept = len(planes[0]) // (2 * layers * heads * dim)
    if kept > tokens:
        raise MemoError(f"{kept} sinks in a block of {tokens} tokens")
    return from_planes(planes, layout.torch_dtype, (2, layers, heads, kept, dim)).float()


def _rows(x: Tensor) -> Tensor:
    """(L, G, n, D) -> (L, n, G D) float32."""
    return x.transpose(1, 2).flatten(2).float()


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


def byte_planes(x: Tensor) -> Streams:
    """The bytes of x as it lies in memory: all first bytes of its numbers, all second ones ..."""
    if x.numel() == 0:
        return (b"",) * x.itemsize
    planes = x.contiguous().view(torch.uint8).reshape(-1, x.itemsize).t().contiguous()
    return tuple(plane.numpy().tobytes() for plane in planes)


def from_planes(planes: Streams, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Undoes `byte_planes`; MemoError when the planes are not exactly those of a tensor of this dtype and shape."""
    expected = math.prod(shape)
    for plane in planes:
        if len(plane) != expected:
            raise MemoError(f"a stream has {len(plane)} bytes where {expected} belong")
    if expected == 0:
        return torch.empty(shape, dtype=dtype)
    rows = torch.frombuffer(bytearray(b"".join(planes)), dtype=torch.uint8).view(dtype.itemsize, -1)
    return rows.t().flatten().view(dtype).reshape(shape)


def _expect(streams: Streams, count: int) -> None:
    if len(streams) != count:
        raise MemoError(f"{len(streams)} streams where {count} belong")


def checked_kv(block: KVBlock, layout: KVLayout) -> tuple[Tensor, Tensor]:
    """keys and values on the CPU, right in shape and dtype, finite."""
    found = []
    for what, x in (("keys", block.keys), ("values", block.values)):
        if x.shape != layout.shape(block.tokens) or x.dtype != layout.torch_dtype:
            raise ValueError(f"codec: {what} {x.dtype} {tuple(x.shape)} in a memory of {layout}")
        if not torch.stack(x.aminmax()).isfinite().all():
            layer = int((~x.isfinite()).flatten(1).any(dim=1).nonzero()[0])
            raise ModelError(
                f"the model gave NaN or infinite {what} in layer {layer} for tokens {block.start} to "
                f"{block.start + block.tokens - 1}: its weights are damaged or {layout.dtype} is too narrow for it"
            )
        found.append(x.cpu())
    return found[0], found[1]


def whole_number(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise MemoError(f"codec: {name} must be a whole number from {low} to {high}, got {value!r}")


KLT = "klt"
CODECS: dict[str, set[str]] = {  # name -> its own parameters
    ExactCodec.name: set(),
    Int4Codec.name: {"sinks", "key_group", "value_group"},
    KLT: {"profile", "key_step", "value_step", "sinks"},
}
