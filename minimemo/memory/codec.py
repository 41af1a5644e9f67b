"""Codecs: a block of KV -> a few byte streams -> the block again.

Rule of this file: no paths, no file layout, no entropy coder. A codec puts numbers of one kind into one stream, in an
order that an entropy coder likes; the container compresses each stream as a zstd frame of its own. Same block, same
bytes.

Letters: L layers, G kv heads, n tokens of a block, D head dim, S sink tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from minimemo.errors import MemoError, ModelError
from minimemo.memory.blocks import BLOCK_TOKENS, KVBlock
from minimemo.memory.format import LEVEL

Streams = tuple[bytes, ...]  # the coded form of a block; their number and order belong to the codec
Planes = Sequence[bytes] | Sequence[Tensor]  # some of them, on a GPU as uint8
CPU = torch.device("cpu")

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

    @property
    def fp16_bytes(self) -> int:
        """Bytes a token of keys and values in fp16, against which ratios are told."""
        return 2 * 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def shape(self, tokens: int) -> tuple[int, int, int, int]:
        """(L, G, n, D)."""
        return self.num_layers, self.num_kv_heads, tokens, self.head_dim


class Codec(Protocol):
    """Turns blocks into byte streams and back. lossless: decoded tensors are bit-equal and in the layout's dtype;
    level: of zstd, worth its time on these streams."""

    @property
    def name(self) -> str: ...
    @property
    def layout(self) -> KVLayout: ...
    @property
    def lossless(self) -> bool: ...
    @property
    def level(self) -> int: ...

    def params(self) -> dict[str, Any]:
        """JSON-able; `make_codec(name, params)` gives an equal codec."""

    def encode(self, block: KVBlock, following: int = BLOCK_TOKENS) -> Streams:
        """following: tokens of the sequence after this block, as far as they matter: the end may be coded with more
        care. Raises ModelError for NaN or infinity, ValueError for a block of another layout."""

    def decode(self, streams: Streams, tokens: int, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
        """keys (before RoPE) and values, each (L, G, tokens, D) on `device`. To a GPU what the streams hold goes
        in one copy, and becomes numbers there. Raises MemoError for a damaged block."""


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

    def decode(self, streams: Streams, tokens: int, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
        dtype, shape = self.layout.torch_dtype, self.layout.shape(tokens)
        expect_streams(streams, 2 * dtype.itemsize)
        planes = streams if device == CPU else brought(streams, device)
        return from_planes(planes[: dtype.itemsize], dtype, shape), from_planes(planes[dtype.itemsize :], dtype, shape)


def sinks_of(block: KVBlock, keys: Tensor, values: Tensor, count: int) -> Tensor:
    """(2, L, G, S, D): keys and values of the block's sinks, which only the first block of a sequence has."""
    kept = min(count, block.tokens) if block.start == 0 else 0
    return torch.stack((keys[:, :, :kept], values[:, :, :kept]))


def sinks_from(planes: Planes, layout: KVLayout, tokens: int) -> Tensor:
    """The float32 sinks of `byte_planes(sinks_of(...))` in a block of `tokens`. Raises MemoError for more than that."""
    layers, heads, _, dim = layout.shape(tokens)
    kept = len(planes[0]) // (2 * layers * heads * dim)
    if kept > tokens:
        raise MemoError(f"{kept} sinks in a block of {tokens} tokens")
    return from_planes(planes, layout.torch_dtype, (2, layers, heads, kept, dim)).float()


def byte_planes(x: Tensor) -> Streams:
    """The bytes of x as it lies in memory: all first bytes of its numbers, all second ones ..."""
    planes = x.contiguous().view(torch.uint8).reshape(x.numel(), x.itemsize).t().contiguous().cpu()
    return tuple(plane.numpy().tobytes() for plane in planes)


def brought(streams: Sequence[bytes | np.ndarray], device: torch.device) -> list[Tensor]:
    """Streams as uint8 tensors on a GPU: one copy, from memory that it reads by itself."""
    parts = [np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part.reshape(-1).view(np.uint8)
             for part in streams]  # fmt: skip
    joined = torch.empty(sum(map(len, parts)), dtype=torch.uint8, pin_memory=device.type == "cuda")
    if len(joined):
        np.concatenate(parts, out=joined.numpy())
    return list(joined.to(device, non_blocking=True).split([len(part) for part in parts]))


def from_planes(planes: Planes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Undoes `byte_planes`; MemoError when the planes are not exactly those of a tensor of this dtype and shape."""
    expected = math.prod(shape)
    for plane in planes:
        if len(plane) != expected:
            raise MemoError(f"a stream has {len(plane)} bytes where {expected} belong")
    there = [plane for plane in planes if isinstance(plane, Tensor)]
    if expected == 0:
        return torch.empty(shape, dtype=dtype, device=there[0].device if there else CPU)
    if there:
        rows = torch.cat(there).view(dtype.itemsize, -1)
    else:
        joined = b"".join(plane for plane in planes if isinstance(plane, bytes))
        rows = torch.frombuffer(bytearray(joined), dtype=torch.uint8).view(dtype.itemsize, -1)
    return rows.t().flatten().view(dtype).reshape(shape)


def expect_streams(streams: Streams, count: int) -> None:
    if len(streams) != count:
        raise MemoError(f"{len(streams)} streams where {count} belong")


def checked_kv(block: KVBlock, layout: KVLayout) -> tuple[Tensor, Tensor]:
    """The block's keys and values, where they are. Raises as `Codec.encode` does."""
    for what, x in (("keys", block.keys), ("values", block.values)):
        if x.shape != layout.shape(block.tokens) or x.dtype != layout.torch_dtype:
            raise ValueError(f"codec: {what} {x.dtype} {tuple(x.shape)} in a memory of {layout}")
        if not torch.stack(x.aminmax()).isfinite().all():
            layer = int((~x.isfinite()).flatten(1).any(dim=1).nonzero()[0])
            raise ModelError(
                f"the model gave NaN or infinite {what} in layer {layer} for tokens {block.start} to "
                f"{block.start + block.tokens - 1}: its weights are damaged or {layout.dtype} is too narrow for it"
            )
    return block.keys, block.values


def whole_number(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise MemoError(f"codec: {name} must be a whole number from {low} to {high}, got {value!r}")
