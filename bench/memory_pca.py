"""The last rival of `bench.memory`: each layer's own PCA, one uniform step, zstd. What a transform gives without layers
sharing it. Bases come from documents that are not measured.

Letters: L layers, G kv heads, n tokens, D head dim, C = G D.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minimemo.memory.blocks import KVBlock
from minimemo.memory.codec import KVLayout, Streams

SINKS = 4  # first tokens, kept in fp16: without them every transform collapses
LEVEL = 9  # zstd; 19 is 1 % smaller


@dataclass(frozen=True, slots=True)
class Basis:
    """mean (L, 1, C), axes (L, C, C) with the widest first, spread (L, 1, 1) that a layer is divided by."""

    mean: Tensor
    axes: Tensor
    spread: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(L, n, C) -> (L, n, C) coefficients."""
        return (x - self.mean) / self.spread @ self.axes

    def back(self, coefficients: Tensor) -> Tensor:
        return coefficients @ self.axes.transpose(1, 2) * self.spread + self.mean


@dataclass(frozen=True, slots=True)
class LayerPca:
    """step: of the keys' coefficients, in standard deviations of their layer; of the values', in that of all values."""

    name: str
    layout: KVLayout
    keys: Basis
    values: Basis
    step: float

    lossless = False

    def params(self) -> dict[str, Any]:
        return {**asdict(self.layout), "step": self.step}

    def encode(self, block: KVBlock) -> Streams:
        """Streams: fp16 sinks, then low and high bytes of the symbols of keys and values, component by component."""
        kept = min(SINKS, block.tokens) if block.start == 0 else 0
        rows = [x.float().transpose(1, 2).flatten(2) for x in (block.keys, block.values)]
        sinks = torch.stack([x[:, :kept] for x in rows]).half().numpy().tobytes()
        planes = [
            plane.tobytes()
            for basis, x in zip((self.keys, self.values), rows, strict=True)
            for plane in _symbols(basis.forward(x[:, kept:]) / self.step)
        ]
        return sinks, *planes

    def decode(self, streams: Streams, tokens: int) -> tuple[Tensor, Tensor]:
        """keys (before RoPE) and values, (L, G, n, D) float32."""
        layers, heads, channels = self.layout.num_layers, self.layout.num_kv_heads, self.keys.mean.shape[-1]
        sinks = np.frombuffer(streams[0], np.float16).reshape(2, layers, -1, channels)
        found = []
        for at, basis in enumerate((self.keys, self.values)):
            low, high = (np.frombuffer(stream, np.uint8) for stream in streams[1 + 2 * at : 3 + 2 * at])
            symbols = np.stack((low, high), axis=-1).view(np.int16).reshape(layers, channels, -1)
            rows = basis.back(torch.from_numpy(symbols.astype(np.float32)).transpose(1, 2) * self.step)
            rows = torch.cat((torch.from_numpy(sinks[at].astype(np.float32)), rows), dim=1)
            found.append(rows.unflatten(2, (heads, -1)).transpose(1, 2))
        return found[0], found[1]


def fit(pieces: Iterable[tuple[Tensor, Tensor]]) -> tuple[Basis, Basis]:
    """The bases of keys and values from pieces of documents, each (L, G, n, D). The first tokens of each, which are
    like no others, are left out."""
    keys, values = _Moments(), _Moments()
    for piece in pieces:
        for moments, x in zip((keys, values), piece, strict=True):
            moments.add(x[:, :, SINKS:].transpose(1, 2).flatten(2).double())
    return keys.basis(shared_spread=False), values.basis(shared_spread=True)


class _Moments:
    """Sums over tokens, of (L, n, C) float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = self._outer = torch.zeros(())

    def add(self, x: Tensor) -> None:
        self._count += x.shape[1]
        self._sum = self._sum + x.sum(dim=1, keepdim=True)
        self._outer = self._outer + x.transpose(1, 2) @ x

    def basis(self, *, shared_spread: bool) -> Basis:
        mean = self._sum / self._count
        variances, axes = torch.linalg.eigh(self._outer / self._count - mean.transpose(1, 2) @ mean)
        variance = variances.mean(dim=1).view(-1, 1, 1)
        spread = (variance.mean().expand_as(variance) if shared_spread else variance).sqrt()
        return Basis(mean.float(), axes.flip(-1).float(), spread.float())


def _symbols(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(L, n, C) -> low and high bytes of the nearest int16, component by component."""
    wide = x.round().clamp(-(2**15), 2**15 - 1).transpose(1, 2).numpy().astype("<i2")
    return np.ascontiguousarray(wide & 0xFF).astype(np.uint8), np.ascontiguousarray(wide >> 8).astype(np.uint8)
