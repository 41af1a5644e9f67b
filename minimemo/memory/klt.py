"""The transform codec: all layers of a token as one vector, in a basis calibrated for the model, rounded with one step.

Rounding every component with the same step and coding it by entropy is reverse water-filling: components quieter than
the step vanish by themselves, no bit allocation is needed. The step is the quality. Sinks stay exact.

Letters: L layers, G kv heads, n tokens, D head dim, S sinks; a group of layers has C = layers * G * D numbers a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minimemo.errors import MemoError
from minimemo.kernels import Basis
from minimemo.memory.blocks import BLOCK_TOKENS, KVBlock
from minimemo.memory.codec import (
    KLT,
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

SINKS = 16  # where a sequence begins with no known opening: a chat template's special tokens are among the first 16
QUIET = 0.08  # steps: of a Laplacian component this quiet, 1 symbol in 7,000 is not zero; it is left out
FINE = 8  # steps: the root mean square of numbers from which on products of 8 bits would add 6 % to the squared error
LOUD = 0.3  # steps: 1 symbol in 11 is not zero; whole vectors are quicker from here on (1,000 rows: 4.2 ms either way)


@dataclass(frozen=True, slots=True)
class _Part:
    """One Transform at one step: what is coded of a group's keys or values."""

    half: Transform
    step: float
    plan: tuple[Band, ...]
    basis: Basis  # (r, C), only components that are coded

    @classmethod
    def of(cls, half: Transform, step: float) -> _Part:
        steps = half.deviation.numpy() / step
        kept, loud = (int((steps >= least).sum()) for least in (QUIET, LOUD))
        fine = bool((steps**2).sum() > FINE**2 * half.mean.numel())
        return cls(half, step, bands(steps[:kept]), Basis(half.basis[:kept], loud, exact=fine))

    def scale(self) -> Tensor:
        """(C,)"""
        return self.half.weight.repeat_interleave(self.half.mean.numel() // self.half.weight.numel())

    def encode(self, x: Tensor) -> Streams:
        """x (n, C) float32."""
        components = self.basis.components((x - self.half.mean) * self.scale())
        symbols = (components / self.step).round_().clamp_(-LARGEST, LARGEST).to(torch.int32)
        return pack(symbols.T.contiguous().numpy(), self.plan)

    def decode(self, streams: Sequence[bytes], out: Tensor) -> None:
        """Into out (layers, G, n, D) float32, a part of a larger one."""
        symbols = torch.from_numpy(unpack(streams, self.plan, out.shape[2]))
        inverse = (1 / self.half.weight).repeat_interleave(out.shape[1])
        self.basis.inverse(symbols, self.step, self.half.mean * self.scale(), inverse, out.flatten(0, 1))


@dataclass(frozen=True, slots=True)
class KltCodec:
    """`profile` in `make_codec`'s parameters is the hash of a Profile; key_step, value_step: in its weighted units.

    Error bound: in the basis, each coded component is off by at most half a step (unless beyond 32,767 steps), plus,
    where the step is not `FINE`, what products of 8 bits add: 0.05 of the token's weighted distance from the mean at
    worst, in practice a few thousandths, spread over all components. What lies outside the coded components is lost.
    The first tokens of the sequence are exact: an opening that the profile knows (as the profile has it), else the
    first `sinks`. Streams: the number of the opening, from 1, if there is one; sinks (byte planes of (keys, values));
    then for each group of layers those of `packing` for keys and for values.
    """

    layout: KVLayout
    profile: Profile
    key_step: float
    value_step: float
    sinks: int
    _parts: tuple[tuple[_Part, _Part], ...]

    name = KLT
    lossless = False
    level = 13  # zstd; 3 takes 4-10 % more bytes on these streams, 19 as many at 2.5-5 times the time

    @classmethod
    def make(
        cls, layout: KVLayout, profile: Profile, key_step: float, value_step: float, sinks: int = SINKS
    ) -> KltCodec:
        whole_number("sinks", sinks, 0, BLOCK_TOKENS)
        if any(x.kv.shape[:3] + x.kv.shape[4:] != (2, *layout.shape(0)[:2], layout.head_dim) for x in profile.openings):
            raise MemoError(f"codec: profile {profile.hash} is of a model of another shape than {layout}")
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
        opening = self._opening(block)
        exact = sinks_of(block, keys, values, 0 if opening else self.sinks)
        kept = len(self.profile.openings[opening - 1].ids) if opening else exact.shape[3]
        streams = [bytes([opening]) if opening else b"", *byte_planes(exact)]
        layer = 0
        for parts in self._parts:
            end = layer + len(parts[0].half.weight)
            for part, x in zip(parts, (keys, values), strict=True):
                streams += part.encode(joint(x[layer:end, :, kept:]))
            layer = end
        return tuple(streams)

    def _opening(self, block: KVBlock) -> int:
        """The number of the opening with which a block begins, from 1; 0 when it begins with none."""
        if block.start == 0:
            for number, opening in enumerate(self.profile.openings, 1):
                if np.array_equal(opening.ids.numpy(), block.ids[: len(opening.ids)]):
                    return number
        return 0

    def _exact(self, head: bytes, planes: Streams, tokens: int) -> Tensor:
        """(2, L, G, S, D) float32: the first tokens of a block of `tokens`."""
        if not head:
            return sinks_from(planes, self.layout, tokens)
        if len(head) > 1 or not 1 <= head[0] <= len(self.profile.openings) or any(planes):
            raise MemoError("a block begins with an opening that its profile does not know")
        found = self.profile.openings[head[0] - 1].kv
        if found.shape[3] > tokens:
            raise MemoError(f"an opening of {found.shape[3]} tokens in a block of {tokens}")
        return found.to(self.layout.torch_dtype).float()

    def decode(self, streams: Streams, tokens: int) -> tuple[Tensor, Tensor]:
        """As the protocol says, in float32."""
        layers, heads, _, dim = self.layout.shape(tokens)
        width = 1 + self.layout.torch_dtype.itemsize
        expected = width + sum(len(part.plan) + 2 for parts in self._parts for part in parts)
        if len(streams) != expected:
            raise MemoError(f"{len(streams)} streams where {expected} belong")
        exact = self._exact(streams[0], streams[1:width], tokens)
        kept = exact.shape[3]
        found = torch.empty(2, layers, heads, tokens, dim)
        found[:, :, :, :kept] = exact
        at, layer = width, 0
        for parts in self._parts:
            end = layer + len(parts[0].half.weight)
            for kind, part in enumerate(parts):
                count = len(part.plan) + 2
                part.decode(streams[at : at + count], found[kind, layer:end, :, kept:])
                at += count
            layer = end
        return found[0], found[1]
