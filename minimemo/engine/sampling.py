"""Logits -> the next token. Commands choose the likeliest; temperature, top_p and seed are there for a server, whose
clients send them in OpenAI's protocol."""

from __future__ import annotations

import torch
from torch import Tensor

from minimemo.errors import InputError


class Sampling:
    """Chooses the tokens of one reply; the same seed gives the same tokens.

    temperature 0: the likeliest, and nothing else matters. top_p: out of the smallest set of tokens whose probability
    reaches it (arXiv 1904.09751). Raises InputError for numbers that mean nothing.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> None:
        if not temperature >= 0:
            raise InputError(f"temperature must be 0 or more, got {temperature}")
        if not 0 < top_p <= 1:
            raise InputError(f"top_p must be in (0, 1], got {top_p}")
        self.greedy = temperature == 0
        self._temperature, self._top_p = temperature, top_p
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self, logits: Tensor) -> list[int]:
        """logits (rows, V) float32 -> one token id a row."""
        if self.greedy:
            return likeliest(logits)
        scaled, order = (logits.cpu() / self._temperature).sort(dim=-1, descending=True, stable=True)
        chances = scaled.softmax(dim=-1)
        chances[chances.cumsum(dim=-1) - chances >= self._top_p] = 0.0
        picked = torch.multinomial(chances, 1, generator=self._generator)
        return order.gather(1, picked)[:, 0].tolist()


def likeliest(logits: Tensor) -> list[int]:
    """logits (rows, V) -> the likeliest token of each row, of equal ones that of the lowest id."""
    if not logits.is_cpu:
        return logits.argmax(dim=-1).tolist()  # a few bytes come back, not the logits
    # numpy: torch's own would wake a team of threads that then spins on the cores of the next step's products
    return logits.cpu().numpy().argmax(axis=-1).tolist()
