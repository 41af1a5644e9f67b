"""The hot form of a memory: keys after RoPE and values, ready for attention.

Rule of this file: one writer, and `length` moves once a step, after every layer has written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minimemo.kernels import hugepages


class KVCache:
    """Keys and values of one sequence, dense. Slot i holds the token at position i.

    keys, values: (L, G, capacity, D); only the first `length` tokens are meaningful. Memory is reserved but not
    touched until written, so a generous capacity costs nothing. `truncate` is free.
    """

    __slots__ = ("keys", "length", "values")

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_layers, num_kv_heads, capacity, head_dim)
        on_cpu = torch.device(device).type == "cpu"
        self.keys: Tensor = hugepages.empty(shape, dtype) if on_cpu else torch.empty(shape, dtype=dtype, device=device)
        self.values: Tensor = hugepages.empty(shape, dtype) if on_cpu else torch.empty_like(self.keys)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.keys.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        return self.keys.dtype

    def require(self, tokens: int) -> None:
        """Raises ValueError unless `tokens` more fit."""
        if self.length + tokens > self.capacity:
            raise ValueError(f"KV cache: {self.length} + {tokens} tokens do not fit into {self.capacity}")

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Stores (G, n, D) keys and values of one layer after the current end; `length` stays."""
        end = self.length + keys.shape[1]
        self.keys[layer, :, self.length : end] = keys
        self.values[layer, :, self.length : end] = values

    def advance(self, tokens: int) -> None:
        """Makes `tokens` freshly written ones part of the sequence."""
        self.require(tokens)
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forgets everything from position `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"KV cache: cannot truncate {self.length} tokens to {length}")
        self.length = length
