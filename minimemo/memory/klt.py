"""The transform codec: all layers of a token as one vector, in a basis calibrated for the model, rounded with one step.

Rounding every component with the same step and coding it by entropy is reverse water-filling: components quieter than
the step vanish by themselves, no bit allocation is needed. The step is the quality. Sinks stay exact.

Letters: L layers, G kv heads, n tokens, D head dim, S sinks; a group of layers has C = layers * G * D numbers a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from minimemo.errors import MemoError
from minimemo.memory.blocks import BLOCK_TOKENS, KVBlock
from minimemo.memory.codec import (
    KLT,
    SINKS,
    KVLayout,
    Streams,
    byte_planes,
    checked_kv,
    sinks_from,
    sinks_of,
    whole_number,
)
from minimemo.memory.packing import LARGEST, Band, bands, pack, unpack
from minimemo.memory.profile import Profile, Transform, joint

QUIET = 0.08  # steps: of a Laplacian component this quiet, 1 symbol in 7,000 is not zero; it is left out


@dataclass(frozen=True, slots=True)
class _Part:
    """One Transform at one step: what is coded of a group's keys or values."""

    half: Transform
    step: float
    plan: tuple[Band, ...]
    basis: Tensor  # (r, C) float32, only components that are coded

    @classmethod
    def of(cls, half: Transform, step: float) -> _Part:
        steps = half.deviation.numpy() / step
        kept = int((steps >= QUIET).sum())
        return cls(half, step, bands(steps[:kept]), half.basis[:kept].float())

    def scale(self) -> Tensor:
        """(C,)"""
        return self.half.weight.repeat_interleave(self.half.mean.numel() // self.half.weight.numel())

    def encode(self, x: Tensor) -> Streams:
        """x (n, C) float32."""
        components = ((x - self.half.mean) * self.scale()) @ self.basis.T
        symbols = (components / self.step).round_().clamp_(-LARGEST, LARGEST).to(torch.int32)
        return pack(symbols.T.contiguous().numpy(), self.plan)

    def decode(self, streams: Sequence[bytes], tokens: int) -> Tensor:
        """(n, C) float32, through the basis of those components that are not zero in this block."""
        symbols = torch.from_numpy(unpack(streams, self.plan, tokens))
        active = symbols.any(1).nonzero()[:, 0]
        x = (symbols[active].float() * self.step).T @ self.basis[active]
        return x.div_(self.scale()).add_(self.half.mean)


@dataclass(frozen=True, slots=True)
class KltCodec:
    """`profile` in `make_codec`'s parameters is the hash of a Profile; key_step, value_step: in its weighted units.

    Error bound: in the basis, each coded component is off by at most half a step (unless beyond 32,767 steps); what
    lies outside the coded components is lost. Streams: sinks (byte planes of (keys, values)), then for each group of
    layers those of `packing` for keys and for values.
    """

    layout: KVLayout
    profile: Profile
    key_step: float
    value_step: float
    sinks: int
    _parts: tuple[tuple[_Part, _Part], ...]

    name = KLT
    lossless = False
    level = 19  # zstd; 3 takes 10 % more bytes on these streams

    @classmethod
    def make(
        cls, layout: KVLayout, profile: Profile, key_step: float, value_step: float, sinks: int = SINKS
    ) -> KltCodec:
        whole_number("sinks", sinks, 0, BLOCK_TOKENS)
        for name, step in (("key_step", key_step), ("value_step", value_step)):
            if not isinstance(step, (int, float)) or not 1e-6 <= step <= 1e6:
                raise MemoError(f"codec: {name} must be a number from 1e-6 to 1e6, got {step!r}")
        width = layout.num_kv_heads * layout.head_dim
        for half in (*profile.keys, *profile.values):
            if profile.layers != layout.num_layers or len(half.mean) != len(half.weight) * width:
                raise MemoError(f"codec: profile {profile.hash} is of a model of another shape than {layout}")
        parts = tuple(
            (_Part.of(key, key_step), _Part.of(value, value_step))
            for key, value in zip(profile.keys, profile.values, strict=True)
        )
        return cls(layout, profile, float(key_step), float(value_step), sinks, parts)

    def params(self) -> dict[str, Any]:
        steps = {"key_step": self.key_step, "value_step": self.value_step}
        return {**asdict(self.layout), "profile": self.profile.hash, **steps, "sinks": self.sinks}

    def encode(self, block: KVBlock) -> Streams:
        keys, values = checked_kv(block, self.layout)
        exact = sinks_of(block, keys, values, self.sinks)
        kept = exact.shape[3]
        streams = [*byte_planes(exact)]
        layer = 0
        for parts in self._parts:
            end = layer + len(parts[0].half.weight)
            for part, x in zip(parts, (keys, values), strict=True):
                streams += part.encode(joint(x[layer:end, :, kept:]))
            layer = end
        return tuple(streams)

    def decode(self, streams: Streams, tokens: int) -> tuple[Tensor, Tensor]:
        """As the protocol says, in float32."""
        layers, heads, _, dim = self.layout.shape(tokens)
        width = self.layout.torch_dtype.itemsize
        expected = width + sum(len(part.plan) + 2 for parts in self._parts for part in parts)
        if len(streams) != expected:
            raise MemoError(f"{len(streams)} streams where {expected} belong")
        exact = sinks_from(streams[:width], self.layout, tokens)
        kept = exact.shape[3]
        found = torch.empty(2, layers, heads, tokens, dim)
        found[:, :, :, :kept] = exact
        at, layer = width, 0
        for parts in self._parts:
            end = layer + len(parts[0].half.weight)
            for kind, part in enumerate(parts):
                count = len(part.plan) + 2
                x = part.decode(streams[at : at + count], tokens - kept)
                found[kind, layer:end, :, kept:] = x.view(tokens - kept, end - layer, heads, dim).permute(1, 2, 0, 3)
                at += count
            layer = end
        return found[0], found[1]
