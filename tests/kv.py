"""Keys and values for the tests of the memory room: seeded, with the manners of real ones."""

from __future__ import annotations

import torch
from torch import Tensor

from minimemo.memory.blocks import BlockAssembler, KVBlock


def real_looking(shape: tuple[int, int, int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """float32 keys and values (L, G, T, D).

    Keys have channels far off zero (over a hundred in the first layer, spread under one) and drift from token to
    token; the first token is unlike all others; values grow with depth.
    """
    layers, heads, tokens, dim = shape
    random = torch.Generator().manual_seed(seed)
    offset = torch.randn((layers, heads, 1, dim), generator=random) * 3
    offset[0, :, :, 0] = 150.0
    drift = torch.randn((layers, heads, tokens, dim), generator=random).cumsum(2) * 0.05
    keys = offset + drift + torch.randn((layers, heads, tokens, dim), generator=random)
    keys[:, :, :1] *= -2
    depth = torch.linspace(0.05, 2.5, layers).view(-1, 1, 1, 1)
    return keys, torch.randn((layers, heads, tokens, dim), generator=random) * depth


def blocks_of(
    tokens: int, layers: int = 2, heads: int = 2, dim: int = 16, dtype: torch.dtype = torch.float32
) -> list[KVBlock]:
    """A whole sequence, cut."""
    keys, values = (x.to(dtype) for x in real_looking((layers, heads, tokens, dim)))
    assembler = BlockAssembler()
    blocks = assembler.push([(7919 * i) % 150_000 for i in range(tokens)], keys, values)
    last = assembler.finish()
    return blocks + ([last] if last else [])
