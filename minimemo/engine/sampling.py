"""Logits -> the next token. Commands choose the likeliest; temperature, top_p and seed are there for a server, whose
clients send them in OpenAI's protocol."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minimemo.errors import InputError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. temperature 0: the likeliest, and nothing else matters. top_p: out of the smallest set of
    tokens whose probability reaches it (arXiv 1904.09751)."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise InputError(f"temperature must be 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be in (0, 1], got {self.top_p}")


class Sampler:
    """Chooses tokens as a Sampling says; the same seed gives the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> list[int]:
        """logits (rows, V) float32 -> one token id a row."""
        if self._sampling.greedy:
            return likeliest(logits)
        scaled, order = (logits.cpu() / self._sampling.temperature).sort(dim=-1, descending=True, stable=True)
        chances = scaled.softmax(dim=-1)
        chances[chances.cumsum(dim=-1) - chances >= self._sampling.top_p] = 0.0
        picked = torch.multinomial(chances, 1, generator=self._generator)
        return order.gather(1, picked)[:, 0].tolist()


def likeliest(logits: Tensor) -> list[int]:
    """logits (rows, V) -> the likeliest token of each row, of equal ones that of the lowest id."""
    # numpy: torch's own would wake a team of threads that then spins on the cores of the next step's products
    return logits.cpu().numpy().argmax(axis=-1).tolist()
