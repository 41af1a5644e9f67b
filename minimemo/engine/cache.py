"""The cache is the hot form of a memory: keys after RoPE and values, ready for attention.

Rule of this file: one writer, and `length` moves once a step, after every layer has written.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from minimemo.kernels import PACK_GROUP, PackedKV, empty_packed, hugepages, pack_into, rope_store


class KVCache:
    """Keys and values of one sequence. The token at position i lies in slot i, or, where the first `start` tokens are
    packed, in slot i - start.

    keys, values: (L, G, slots, D), dense; only tokens up to `length` are meaningful. packed: the tokens before them,
    heads of all layers in a row (L G of them), None where there are none. Memory on a CPU is reserved but not touched
    until written, so a generous capacity costs nothing. `truncate` is free.
    """

    __slots__ = ("_room", "keys", "length", "packed", "start", "values")

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        packed_tokens: int = 0,
        bits: int | None = None,
    ) -> None:
        """packed_tokens: how many tokens that `append` brings are to be packed, with 8 or 4 `bits`, whole groups."""
        packed_tokens = packed_tokens // PACK_GROUP * PACK_GROUP if bits else 0
        # A group is complete before it is packed: until then its tokens wait in dense slots.
        slots = max(capacity - packed_tokens, PACK_GROUP) if packed_tokens else capacity
        shape = (num_layers, num_kv_heads, slots, head_dim)
        self.keys, self.values = (hugepages.empty(shape, dtype, device) for _ in range(2))
        self.length = 0
        self.start = 0
        self.packed: PackedKV | None = None
        self._room: PackedKV | None = None  # for all tokens that are to be packed
        if bits and packed_tokens:
            self._room = empty_packed(num_layers * num_kv_heads, packed_tokens, head_dim, bits, device)

    def split(self, count: int) -> list[KVCache]:
        """Cuts an empty cache without packed tokens into `count` caches, each of so many times fewer layers. They lie
        side by side, which lets a kernel serve all of them at once."""
        parts = []
        for keys, values in zip(self.keys.chunk(count), self.values.chunk(count), strict=True):
            part = copy(self)
            part.keys, part.values = keys, values
            parts.append(part)
        return parts

    @property
    def capacity(self) -> int:
        """Tokens that fit, those to be packed among them."""
        return self._packed_capacity + self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Of all its slots, those never written too."""
        r = self._room
        packed = () if r is None else (r.key_codes, r.key_scale, r.key_low, r.value_codes, r.value_scale, r.value_low)
        return sum(x.nbytes for x in (self.keys, self.values, *packed))

    @property
    def _packed_capacity(self) -> int:
        return 0 if self._room is None else self._room.key_codes.shape[1]

    @property
    def bits(self) -> int | None:
        """Of packed tokens; None where none are to be packed."""
        return None if self._room is None else self._room.bits

    @property
    def dtype(self) -> torch.dtype:
        """Of dense tokens."""
        return self.keys.dtype

    def require(self, tokens: int) -> None:
        """Raises ValueError unless `tokens` more can be written."""
        if self.length - self.start + tokens > self.keys.shape[2]:
            raise ValueError(
                f"KV cache: {self.length} + {tokens} tokens do not fit into {self.start + self.keys.shape[2]}"
            )

    def write(self, layer: int, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Stores (G, n, D) keys, rotated by cos, sin (n, D), and values of one layer after the current end; `length`
        stays."""
        rope_store(keys, values, cos, sin, self.keys[layer], self.values[layer], self.length - self.start)

    def advance(self, tokens: int) -> None:
        """Makes `tokens` freshly written ones part of the sequence."""
        self.length += tokens

    def ahead(self, tokens: int) -> KVCache:
        """The same slots, seen from `tokens` further on: for a token of a pass that computes those before it as well,
        each as a row of its own."""
        seen = copy(self)
        seen.length += tokens
        return seen

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Adds finished tokens, keys (after RoPE) and values (L, G, n, D) of any float dtype; packs what is to be.

        Raises ValueError when they do not fit, or hold numbers that packed ones cannot (see `kernels.pack_into`).
        """
        count, held = keys.shape[2], self.length - self.start
        if self.length + count > self.capacity:
            raise ValueError(f"KV cache: {self.length} + {count} tokens do not fit into {self.capacity}")
        if self._room is not None and self.start < self._packed_capacity:
            if held:
                keys = torch.cat((self.keys[:, :, :held].to(keys.dtype), keys), dim=2)
                values = torch.cat((self.values[:, :, :held].to(values.dtype), values), dim=2)
            whole = min(keys.shape[2] // PACK_GROUP * PACK_GROUP, self._packed_capacity - self.start)
            if whole:
                parts = (x[:, :, :whole].flatten(0, 1) for x in (keys, values))
                pack_into(self._room, self.start, *parts)
                self._pack_up_to(self.start + whole)
            keys, values, held = keys[:, :, whole:], values[:, :, whole:], 0
        self.keys[:, :, held : held + keys.shape[2]] = keys
        self.values[:, :, held : held + keys.shape[2]] = values
        self.length += count

    def append_raw(self, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Adds finished tokens, keys before RoPE and values (L, G, n, D), to a cache that packs none, and turns them by
        cos, sin (n, D) for all layers in one go. Raises ValueError when they do not fit."""
        self.require(keys.shape[2])
        ours = self.keys.flatten(0, 1), self.values.flatten(0, 1)
        rope_store(keys.flatten(0, 1), values.flatten(0, 1), cos, sin, *ours, self.length)
        self.length += keys.shape[2]

    def truncate(self, length: int) -> None:
        """Forgets everything from position `length` on. Of packed tokens only whole groups can be forgotten."""
        if not 0 <= length <= self.length or (length < self.start and length % PACK_GROUP):
            raise ValueError(f"KV cache: cannot truncate {self.length} tokens to {length}")
        if length < self.start:
            self._pack_up_to(length)
        self.length = length

    def _pack_up_to(self, start: int) -> None:
        self.start = start
        self.packed = self._room.part(slice(None), start) if self._room is not None and start else None
