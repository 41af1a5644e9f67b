"""Rotary position tables: positions -> cos, sin for each layer's kind of rotation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minimemo.kernels import apply_rope
from minimemo.models.config import ModelConfig, RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """(D/2,) float32 angles a position, stretched as `rope.scaling` says (sources: RopeConfig)."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    inverse = 1.0 / (rope.base**exponent)
    if rope.scaling == "linear":
        return inverse / rope.factor
    if rope.scaling == "factors":
        return inverse / torch.tensor(rope.factors)
    if rope.scaling == "llama3":
        # Short waves stay, long waves are stretched by `factor`, those between are blended.
        turns = rope.original_context * inverse / (2 * math.pi)
        keep = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
        return inverse * keep + inverse / rope.factor * (1 - keep)
    if rope.scaling == "yarn":

        def dimension(turns: float) -> float:
            """The dimension whose wave makes `turns` turns within the original context."""
            return head_dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.base))

        low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
        if rope.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
        return inverse / rope.factor * ramp + inverse * (1 - ramp)
    return inverse


class RopeTable:
    """cos and sin for any positions. Full and windowed layers may rotate differently: two kinds at most.

    Computed once for all positions up to the largest asked for, and looked up: a decoding step asks for a row or two.
    """

    def __init__(self, config: ModelConfig) -> None:
        kinds = [config.rope, *([config.local_rope] if config.local_rope else [])]
        self._inverse = [inverse_frequencies(rope, config.head_dim) for rope in kinds]
        self._factor = [rope.attention_factor for rope in kinds]
        self._tables: list[tuple[Tensor, Tensor]] = []  # (cos, sin), each (positions, D), of every kind
        self.kind: Sequence[int] = [kinds.index(config.layer_rope(layer)) for layer in range(config.num_layers)]

    def of_spans(self, spans: Sequence[tuple[int, int]], device: torch.device) -> Sequence[tuple[Tensor, Tensor]]:
        """Looks up (cos, sin), each (n, D) float32, for each kind, of `count` positions from `start` on for every
        (start, count), one span after the other. Of a single span it gives a view, which costs a decoding step
        nothing."""
        if len(spans) != 1:
            positions = [position for start, count in spans for position in range(start, start + count)]
            self._reach(max(positions, default=-1) + 1, device)
            places = torch.tensor(positions, dtype=torch.long, device=device)
            return [(cosines[places], sines[places]) for cosines, sines in self._tables]
        ((start, count),) = spans
        self._reach(start + count, device)
        return [(cosines[start : start + count], sines[start : start + count]) for cosines, sines in self._tables]

    def whole(self, end: int, device: torch.device) -> Sequence[tuple[Tensor, Tensor]]:
        """(cos, sin), each (P, D), of all positions up to `end`, and more, for each kind."""
        self._reach(end, device)
        return self._tables

    def rotate(self, keys: Tensor, start: int, out: Tensor | None = None) -> Tensor:
        """Turns keys (L, G, n, D) of all layers to the positions from `start` on, in their dtype or into `out`.

        On a CPU layer by layer: what is needed besides stays small, and is quicker than all layers of a kind in one.
        """
        rotations = self.of_spans([(start, keys.shape[2])], keys.device)
        out = torch.empty_like(keys) if out is None else out
        if not (keys.is_cpu or any(self.kind)):
            return out.copy_(apply_rope(keys.flatten(0, 1), *rotations[0]).view(keys.shape))
        for layer, kind in enumerate(self.kind):
            out[layer] = apply_rope(keys[layer], *rotations[kind])
        return out

    def _reach(self, end: int, device: torch.device) -> None:
        """Extends the tables up to position `end`."""
        reached = len(self._tables[0][0]) if self._tables else 0
        if reached and reached >= end and self._tables[0][0].device == device:
            return
        positions = torch.arange(max(end, 2048, 2 * reached), device=device, dtype=torch.float32)
        tables = []
        for inverse, factor in zip(self._inverse, self._factor, strict=True):
            angles = (positions[:, None] * inverse.to(device)).repeat(1, 2)
            tables.append((angles.cos() * factor, angles.sin() * factor))
        self._tables = tables
