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

from minimemo.memory.blocks import BLOCK_TOKENS, KVBlock
from minimemo.memory.codec import KVLayout, Streams

SINKS = 4  # first tokens, kept in fp16: without them every transform collapses
LEVEL = 12  # zstd: 2.58 bits where 3, 9 and 16 have 2.91, 2.64 and 2.33, and 16 takes six times as long


@dataclass(frozen=True, slots=True)
class Basis:
    """mean (L, 1, C), axes (L, C, C) with the widest first, spread (L, 1, 1) that a layer is divided by.

    order (L C,): all layers' coefficients, the widest first: an entropy coder wants its like side by side.
    """

    mean: Tensor
    axes: Tensor
    spread: Tensor
    order: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(L, n, C) -> (L, n, C) coefficients."""
        return (x - self.mean) / self.spread @ self.axes

    def back(self, coefficients: Tensor) -> Tensor:
        return coefficients @ self.axes.transpose(1, 2) * self.spread + self.mean


@dataclass(frozen=True, slots=True)
class LayerPca:
    """*_step: in standard deviations of the layer."""

    name: str
    layout: KVLayout
    keys: Basis
    values: Basis
    key_step: float
    value_step: float

    lossless = False
    level = LEVEL

    def params(self) -> dict[str, Any]:
        return {**asdict(self.layout), "key_step": self.key_step, "value_step": self.value_step}

    def encode(self, block: KVBlock, following: int = BLOCK_TOKENS) -> Streams:
        """Streams: fp16 sinks, then low and high bytes of the symbols of keys and values, component by component."""
        kept = min(SINKS, block.tokens) if block.start == 0 else 0
        rows = [x.float().transpose(1, 2).flatten(2) for x in (block.keys, block.values)]
        sinks = torch.stack([x[:, :kept] for x in rows]).half().numpy().tobytes()
        planes = [
            plane.tobytes()
            for basis, step, x in zip(*self._sides(), rows, strict=True)
            for plane in _planes((basis.forward(x[:, kept:]) / step).transpose(1, 2).flatten(0, 1)[basis.order])
        ]
        return sinks, *planes

    def decode(self, streams: Streams, tokens: int) -> tuple[Tensor, Tensor]:
        """keys (before RoPE) and values, (L, G, n, D) float32."""
        layers, heads, channels = self.layout.num_layers, self.layout.num_kv_heads, self.keys.mean.shape[-1]
        sinks = np.frombuffer(streams[0], np.float16).reshape(2, layers, -1, channels)
        found = []
        for at, (basis, step) in enumerate(zip(*self._sides(), strict=True)):
            low, high = (np.frombuffer(stream, np.uint8) for stream in streams[1 + 2 * at : 3 + 2 * at])
            symbols = np.stack((low, high), axis=-1).view("<i2").astype(np.float32).reshape(layers * channels, -1)
            coefficients = torch.empty(symbols.shape)
            coefficients[basis.order] = torch.from_numpy(symbols) * step
            rows = basis.back(coefficients.unflatten(0, (layers, channels)).transpose(1, 2))
            rows = torch.cat((torch.from_numpy(sinks[at].astype(np.float32)), rows), dim=1)
            found.append(rows.unflatten(2, (heads, -1)).transpose(1, 2))
        return found[0], found[1]

    def _sides(self) -> tuple[tuple[Basis, Basis], tuple[float, float]]:
        return (self.keys, self.values), (self.key_step, self.value_step)


def fit(pieces: Iterable[tuple[Tensor, Tensor]]) -> tuple[Basis, Basis]:
    """The bases of keys and values from pieces of documents, each (L, G, n, D). The first tokens of each, which are
    like no others, are left out."""
    keys, values = _Moments(), _Moments()
    for piece in pieces:
        for moments, x in zip((keys, values), piece, strict=True):
            moments.add(x[:, :, SINKS:].transpose(1, 2).flatten(2).double())
    return keys.basis(), values.basis()


class _Moments:
    """Sums over tokens, of (L, n, C) float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = self._outer = torch.zeros(())

    def add(self, x: Tensor) -> None:
        self._count += x.shape[1]
        self._sum = self._sum + x.sum(dim=1, keepdim=True)
        self._outer = self._outer + x.transpose(1, 2) @ x

    def basis(self) -> Basis:
        mean = self._sum / self._count
        variances, axes = torch.linalg.eigh(self._outer / self._count - mean.transpose(1, 2) @ mean)
        spread = variances.mean(dim=1).sqrt().view(-1, 1, 1)
        order = (variances.flip(-1) / spread.flatten(1).square()).flatten().argsort(descending=True)
        return Basis(mean.float(), axes.flip(-1).float(), spread.float(), order)


def _planes(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Low and high bytes of the nearest int16."""
    wide = x.round().clamp(-(2**15), 2**15 - 1).numpy().astype("<i2")
    return wide.astype(np.uint8), (wide >> 8).astype(np.uint8)
