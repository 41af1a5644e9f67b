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
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from minimemo.errors import InputError
from minimemo.kernels import apply_rope
from minimemo.memory.blocks import BLOCK_TOKENS, KVBlock
from minimemo.memory.codec import CPU, KVLayout, Streams
from minimemo.memory.format import LEVEL
from minimemo.models.rope import RopeTable

GROUP = 32
SEED = 0


@dataclass(frozen=True, slots=True)
class Rival:
    """One quantizer for keys and one for values. after_rope: keys are coded as they lie in a hot cache; then the
    block's position is a stream of its own."""

    name: str
    layout: KVLayout
    keys: Quantizer
    values: Quantizer
    after_rope: RopeTable | None = None

    level = LEVEL
    lossless = False

    def params(self) -> dict[str, Any]:
        return asdict(self.layout)

    def encode(self, block: KVBlock, following: int = BLOCK_TOKENS) -> Streams:
        keys = block.keys.float()
        where: Streams = ()
        if self.after_rope is not None:
            keys = self.after_rope.rotate(keys, block.start)
            where = (np.int32(block.start).tobytes(),)
        pairs = ((self.keys, keys), (self.values, block.values.float()))
        return *where, *(stream for q, x in pairs for stream in q.quantize(x.transpose(1, 2).flatten(2)))

    def decode(self, streams: Streams, tokens: int, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
        """keys (before RoPE) and values, (L, G, n, D) float32."""
        shape = (self.layout.num_layers, tokens, self.layout.num_kv_heads * self.layout.head_dim)
        first = 0 if self.after_rope is None else 1
        split = first + self.keys.streams
        keys, values = (
            x.unflatten(2, (self.layout.num_kv_heads, -1)).transpose(1, 2)
            for x in (self.keys.rebuild(streams[first:split], shape), self.values.rebuild(streams[split:], shape))
        )
        if self.after_rope is not None:
            keys = _turned_back(keys, self.after_rope, int(np.frombuffer(streams[0], np.int32)[0]))
        return keys.to(device), values.to(device)


class Half:
    """fp16."""

    streams = 1

    def quantize(self, x: Tensor) -> Streams:
        return (x.half().numpy().tobytes(),)

    def rebuild(self, streams: Streams, shape: tuple[int, int, int]) -> Tensor:
        return _halves(streams[0], shape).float()


@dataclass(frozen=True)
class Scaled:
    """llama.cpp's q8_0 and q4_0, by its own package: groups of 32 codes, their fp16 scales apart."""

    kind: GGMLQuantizationType
    streams = 2

    def quantize(self, x: Tensor) -> Streams:
        groups = quants.quantize(_grouped(x).numpy(), self.kind)  # (..., 2 bytes of scale and the codes)
        return groups[..., 2:].tobytes(), groups[..., :2].tobytes()

    def rebuild(self, streams: Streams, shape: tuple[int, int, int]) -> Tensor:
        parts = [np.frombuffer(stream, np.uint8).reshape(math.prod(shape) // GROUP, -1) for stream in streams]
        return torch.from_numpy(quants.dequantize(np.hstack(parts[::-1]), self.kind)).view(shape)


@dataclass(frozen=True)
class MinMax:
    """Groups of 32 along `dim`: 1 over tokens, 2 over channels. A short last group is padded, and counted so."""

    bits: int
    dim: int
    streams = 3

    def quantize(self, x: Tensor) -> Streams:
        if self.dim == 1:  # the groups' dimension last, the last row repeated to a multiple of them
            x = torch.cat((x, x[:, -1:].expand(-1, -x.shape[1] % GROUP, -1)), dim=1).transpose(1, 2)
        grouped = _grouped(x)
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


@dataclass(frozen=True)
class Rotated:
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


Quantizer = Half | Scaled | MinMax | Rotated  # (L, n, C) float32 <-> `streams` byte strings


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


def _rival(name: str, layout: KVLayout, rope: RopeTable) -> Rival:
    """A rival that needs no calibration, by its name."""
    bits = int("".join(c for c in name.split("_")[0] if c.isdecimal()))
    if name == "fp16":
        return Rival(name, layout, Half(), Half())
    if name.startswith("kivi"):
        return Rival(name, layout, MinMax(bits, 1), MinMax(bits, 2))
    one = Scaled(GGMLQuantizationType[name.upper()]) if name.startswith("q") else Rotated(bits, layout.head_dim)
    return Rival(name, layout, one, one, rope)


NAMES = ("fp16", "q8_0", "q4_0", "kivi4", "kivi3", "kivi2", "turbo3", "turbo2")
RIVALS: dict[str, Callable[[KVLayout, RopeTable], Rival]] = {name: partial(_rival, name) for name in NAMES}


def _turned_back(keys: Tensor, rope: RopeTable, start: int) -> Tensor:
    """keys (L, G, n, D) at positions from `start` on, as they were before RoPE."""
    tables = rope.of_spans([(start, keys.shape[2])], keys.device)
    turned = torch.empty_like(keys)
    for layer, kind in enumerate(rope.kind):
        cosines, sines = tables[kind]
        square = cosines.square() + sines.square()  # the transpose, over the square of the tables' own factor (YaRN's)
        turned[layer] = apply_rope(keys[layer], cosines / square, -sines / square)
    return turned


def _grouped(x: Tensor) -> Tensor:
    """(..., C) -> (..., C / 32, 32)."""
    if x.shape[-1] % GROUP:
        raise InputError(f"rivals: rows of {x.shape[-1]} numbers are no multiple of {GROUP}; leave them out of --tiers")
    return x.unflatten(-1, (-1, GROUP))


def _halves(data: bytes, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.float16).copy()).view(shape)
