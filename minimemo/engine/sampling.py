"""Logits -> the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minimemo.errors import InputError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose a token. temperature 0: the most likely one (ties: the lowest id), and nothing else matters.

    top_k 0: no limit. top_p: smallest set of tokens whose probability reaches it (arXiv 1904.09751).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise InputError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k < 0:
            raise InputError(f"top_k must be 0 or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be in (0, 1], got {self.top_p}")


class Sampler:
    """A Sampling with its random state; the same seed gives the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> list[int]:
        """logits (rows, V) float32 -> one token id a row."""
        settings = self._sampling
        if settings.greedy:
            # numpy: torch's own would wake a team of threads that then spins on the cores of the next step's products.
            return logits.cpu().numpy().argmax(axis=-1).tolist()
        scaled, order = (logits.cpu() / settings.temperature).sort(dim=-1, descending=True, stable=True)
        if settings.top_k:
            scaled[:, settings.top_k :] = float("-inf")
        chances = scaled.softmax(dim=-1)
        chances[chances.cumsum(dim=-1) - chances >= settings.top_p] = 0.0
        picked = torch.multinomial(chances, 1, generator=self._generator)
        return order.gather(1, picked)[:, 0].tolist()
