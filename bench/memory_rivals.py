"""Other people's KV codecs, written for `bench.memory` as codecs of minimemo: streams in, streams out, real bytes.

    fp16           the numbers as they are
    q8_0, q4_0     llama.cpp's cache types: keys after RoPE, groups of 32 along a token, one fp16 scale
    kivi4/3/2      KIVI (arXiv 2402.02750): keys per channel, values per token, min-max groups of 32, fp16 step and
                   zero. Keys before RoPE, which compress better than the paper's; no exact window of last tokens
    turbo3/2       TurboQuant (arXiv 2504.19874) without its second stage: each head's vector after RoPE, its norm in
                   fp16, a seeded rotation (signs, Hadamard), Lloyd-Max levels of a normal distribution

They are tensors of fixed width in their own homes; here the container's zstd runs over them too, to their advantage.
Letters: L layers, G kv heads, n tokens, D head dim, C = G D.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from minimemo.errors import InputError
from minimemo.kernels import apply_rope
from minimemo.memory.blocks import BLOCK_TOKENS, KVBlock
from minimemo.memory.codec import KVLayout, Streams
from minimemo.memory.writer import LEVEL
from minimemo.models.rope import RopeTable

GROUP = 32
SEED = 0


@dataclass(frozen=True, slots=True)
class Rival:
    """One quantizer for keys and one for values. quantize_*: (L, n, C) float32 -> streams; rebuild_*: back.

    after_rope: keys are coded as they lie in a hot cache; then the block's position is a stream of its own.
    """

    name: str
    layout: KVLayout
    keys: Quantizer
    values: Quantizer
    after_rope: RopeTable | None = None

    lossless = False
    level = LEVEL

    def params(self) -> dict[str, Any]:
        return asdict(self.layout)

    def encode(self, block: KVBlock, following: int = BLOCK_TOKENS) -> Streams:
        keys = block.keys.float()
        where: Streams = ()
        if self.after_rope is not None:
            keys = _rotate(keys, self.after_rope, block.start)
            where = (np.int32(block.start).tobytes(),)
        return *where, *self.keys.quantize(_rows(keys)), *self.values.quantize(_rows(block.values.float()))

    def decode(self, streams: Streams, tokens: int) -> tuple[Tensor, Tensor]:
        """keys (before RoPE) and values, (L, G, n, D) float32."""
        shape = (self.layout.num_layers, tokens, self.layout.num_kv_heads * self.layout.head_dim)
        first = 0 if self.after_rope is None else 1
        split = first + self.keys.streams
        keys, values = (
            x.unflatten(2, (self.layout.num_kv_heads, -1)).transpose(1, 2)
            for x in (self.keys.rebuild(streams[first:split], shape), self.values.rebuild(streams[split:], shape))
        )
        if self.after_rope is not None:
            keys = _rotate(keys, self.after_rope, int(np.frombuffer(streams[0], np.int32)[0]), back=True)
        return keys, values


class Quantizer(Protocol):
    """(L, n, C) float32 <-> `streams` byte strings."""

    streams: int

    def quantize(self, x: Tensor) -> Streams: ...

    def rebuild(self, streams: Streams, shape: tuple[int, int, int]) -> Tensor: ...


class Half(Quantizer):
    """fp16."""

    streams = 1

    def quantize(self, x: Tensor) -> Streams:
        return (x.half().numpy().tobytes(),)

    def rebuild(self, streams: Streams, shape: tuple[int, int, int]) -> Tensor:
        return _halves(streams[0], shape).float()


@dataclass(frozen=True)
class Scaled(Quantizer):
    """llama.cpp's q8_0 (bits 8) and q4_0 (bits 4): code * scale, the scale of a group from its largest magnitude."""

    bits: int
    streams = 2

    def quantize(self, x: Tensor) -> Streams:
        grouped = _grouped(x)
        extreme = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
        # 8 bits are symmetric, -127 to 127; 4 bits give the extreme the code -8, so that all 16 codes are used
        scale = extreme.abs() / 127 if self.bits == 8 else extreme / -8
        inverse = torch.where(scale != 0, 1 / scale, 0.0)
        if self.bits == 8:
            codes = (grouped * inverse).round().to(torch.int8).numpy().tobytes()
        else:
            codes = pack((grouped * inverse + 8.5).clamp(0, 15).to(torch.uint8).numpy(), 4)
        return codes, scale.half().numpy().tobytes()

    def rebuild(self, streams: Streams, shape: tuple[int, int, int]) -> Tensor:
        groups = (*shape[:2], shape[2] // GROUP)
        scale = _halves(streams[1], (*groups, 1)).float()
        if self.bits == 8:
            codes = torch.from_numpy(np.frombuffer(streams[0], np.int8).copy())
        else:
            codes = torch.from_numpy(unpack(streams[0], 4, math.prod(shape))).char() - 8
        return (codes.view(*groups, GROUP) * scale).flatten(2)


@dataclass(frozen=True)
class MinMax(Quantizer):
    """Groups of 32 along `dim`: 1 over tokens, 2 over channels. A short last group is padded, and counted so."""

    bits: int
    dim: int
    streams = 3

    def quantize(self, x: Tensor) -> Streams:
        grouped = _grouped(self._turned(x))
        zero = grouped.amin(-1, keepdim=True).half().float()
        step = ((grouped.amax(-1, keepdim=True) - zero) / (2**self.bits - 1)).half().float()
        inverse = torch.where(step > 0, 1 / step, 0.0)
        codes = ((grouped - zero) * inverse).round().clamp(0, 2**self.bits - 1).to(torch.uint8)
        return pack(codes.numpy(), self.bits), zero.half().numpy().tobytes(), step.half().numpy().tobytes()

    def rebuild(self, streams: Streams, shape: tuple[int, int, int]) -> Tensor:
        layers, tokens, channels = shape
        padded = -(-tokens // GROUP) * GROUP
        groups = (layers, channels, padded // GROUP) if self.dim == 1 else (layers, tokens, channels // GROUP)
        codes = torch.from_numpy(unpack(streams[0], self.bits, math.prod(groups) * GROUP))
        zero, step = (_halves(stream, (*groups, 1)).float() for stream in streams[1:])
        x = (codes.view(*groups, GROUP) * step + zero).flatten(2)
        return x.transpose(1, 2)[:, :tokens] if self.dim == 1 else x

    def _turned(self, x: Tensor) -> Tensor:
        """The dimension of the groups last, its length a multiple of them: the last row is repeated as needed."""
        if self.dim == 2:
            return x
        missing = -x.shape[1] % GROUP
        return torch.cat((x, x[:, -1:].expand(-1, missing, -1)), dim=1).transpose(1, 2)


@dataclass(frozen=True)
class Rotated(Quantizer):
    """Norm and direction of each head's vector; the direction rotated, so that its numbers are nearly normal."""

    bits: int
    dim: int  # D
    streams = 2

    def quantize(self, x: Tensor) -> Streams:
        vectors = x.unflatten(2, (-1, self.dim))
        norm = vectors.norm(dim=-1, keepdim=True).half().float()
        unit = vectors * torch.where(norm > 0, 1 / norm, 0.0)
        levels = lloyd_max(self.bits)
        edges = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize((unit @ rotation(self.dim)) * math.sqrt(self.dim), edges)
        return pack(codes.to(torch.uint8).numpy(), self.bits), norm.half().numpy().tobytes()

    def rebuild(self, streams: Streams, shape: tuple[int, int, int]) -> Tensor:
        heads = (*shape[:2], shape[2] // self.dim)
        codes = torch.from_numpy(unpack(streams[0], self.bits, math.prod(shape))).view(*heads, self.dim)
        unit = lloyd_max(self.bits)[codes.int()] / math.sqrt(self.dim) @ rotation(self.dim).T
        return (unit * _halves(streams[1], (*heads, 1)).float()).flatten(2)


@cache
def lloyd_max(bits: int) -> Tensor:
    """(2**bits,) float32: the levels of least squared error for a standard normal variable (Max 1960, table I)."""
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    levels = normal.icdf((torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits)
    end = torch.tensor([math.inf], dtype=torch.float64)
    for _ in range(2000):  # a centroid is the density's drop over the cell's probability
        edges = torch.cat((-end, (levels[1:] + levels[:-1]) / 2, end))
        density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
        levels = (density[:-1] - density[1:]) / normal.cdf(edges).diff()
    return levels.float()


@cache
def rotation(dim: int) -> Tensor:
    """(D, D) float32 orthonormal: random signs, then Hadamard over the largest power of two that divides D."""
    size = dim & -dim
    hadamard = torch.ones(1, 1)
    while len(hadamard) < size:
        hadamard = torch.kron(hadamard, torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    signs = torch.randint(0, 2, (dim,), generator=torch.Generator().manual_seed(SEED)) * 2.0 - 1
    return signs[:, None] * torch.block_diag(*[hadamard / math.sqrt(size)] * (dim // size))


def pack(codes: np.ndarray, bits: int) -> bytes:
    """uint8 codes below 2**bits, `bits` bits each, low bits first."""
    return np.packbits((codes.reshape(-1, 1) >> np.arange(bits, dtype=np.uint8)) & 1, bitorder="little").tobytes()


def unpack(data: bytes, bits: int, count: int) -> np.ndarray:
    """Undoes `pack`: (count,) uint8."""
    flat = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little")
    return (flat.reshape(-1, bits) << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)


def _kivi(bits: int) -> Callable[[KVLayout, RopeTable], Rival]:
    return lambda layout, _: Rival(f"kivi{bits}", layout, MinMax(bits, 1), MinMax(bits, 2))


def _llama(bits: int) -> Callable[[KVLayout, RopeTable], Rival]:
    return lambda layout, rope: Rival(f"q{bits}_0", layout, Scaled(bits), Scaled(bits), rope)


def _turbo(bits: int) -> Callable[[KVLayout, RopeTable], Rival]:
    def make(layout: KVLayout, rope: RopeTable) -> Rival:
        return Rival(f"turbo{bits}", layout, Rotated(bits, layout.head_dim), Rotated(bits, layout.head_dim), rope)

    return make


RIVALS: dict[str, Callable[[KVLayout, RopeTable], Rival]] = {
    "fp16": lambda layout, _: Rival("fp16", layout, Half(), Half()),
    **{f"q{bits}_0": _llama(bits) for bits in (8, 4)},
    **{f"kivi{bits}": _kivi(bits) for bits in (4, 3, 2)},
    **{f"turbo{bits}": _turbo(bits) for bits in (3, 2)},
}


def _rotate(keys: Tensor, rope: RopeTable, start: int, *, back: bool = False) -> Tensor:
    """keys (L, G, n, D) rotated to positions from `start` on, or back from there."""
    tables = rope.tables(torch.arange(start, start + keys.shape[2]))
    rotated = torch.empty_like(keys)
    for layer, kind in enumerate(rope.kind):
        cosines, sines = tables[kind]
        if back:  # the transpose, over the square of the tables' own factor (YaRN's)
            square = cosines.square() + sines.square()
            cosines, sines = cosines / square, -sines / square
        rotated[layer] = apply_rope(keys[layer], cosines, sines)
    return rotated


def _rows(x: Tensor) -> Tensor:
    """(L, G, n, D) -> (L, n, C)."""
    return x.transpose(1, 2).flatten(2)


def _grouped(x: Tensor) -> Tensor:
    """(..., C) -> (..., C / 32, 32)."""
    if x.shape[-1] % GROUP:
        raise InputError(f"rivals: rows of {x.shape[-1]} numbers are no multiple of {GROUP}; leave them out of --tiers")
    return x.unflatten(-1, (-1, GROUP))


def _halves(data: bytes, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.float16).copy()).view(shape)
