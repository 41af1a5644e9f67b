"""Blocks: the unit in which a memory is coded, stored, checked and chosen.

Rule of this file: a block is immutable and owns its tensors, so the cache that it came from may go on without it.
Letters: L layers, G kv heads, n tokens of a block, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # reading and verifying a file needs this module but not torch
    from torch import Tensor

BLOCK_TOKENS = 256  # tokens of every block but the last of a sequence
HASH_BYTES = 16
FIRST_PREVIOUS = bytes(HASH_BYTES)  # stands for the hash before the first block


def token_array(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Copies ids into a read-only (n,) int32 array; raises ValueError for anything but token ids."""
    wide = np.asarray(ids)
    if wide.ndim != 1 or (wide.size and wide.dtype.kind not in "iu"):
        raise ValueError(f"token ids must be a list of whole numbers, got {wide.dtype} of shape {wide.shape}")
    if wide.size and not (wide.min() >= 0 and wide.max() < 2**31):
        raise ValueError("token ids must lie in 0 .. 2**31 - 1")
    narrow = wide.astype(np.int32)
    narrow.setflags(write=False)
    return narrow


def block_hash(previous: bytes, ids: np.ndarray) -> bytes:
    """blake2b-128 of the previous block's hash and this block's token ids (int32, little-endian).

    Equal hashes mean equal token sequences from the start of the document on, hence equal KV under one model.
    """
    return blake2b(previous + ids.astype("<i4").tobytes(), digest_size=HASH_BYTES).digest()


def chain(ids: np.ndarray, blocks: int) -> list[bytes]:
    """Hashes of the first `blocks` blocks of token ids (n,), fewer where n does not fill as many."""
    hashes = [FIRST_PREVIOUS]
    for at in range(0, min(blocks, len(ids) // BLOCK_TOKENS) * BLOCK_TOKENS, BLOCK_TOKENS):
        hashes.append(block_hash(hashes[-1], token_array(ids[at : at + BLOCK_TOKENS])))
    return hashes[1:]


@dataclass(frozen=True, slots=True, eq=False)
class KVBlock:
    """Up to BLOCK_TOKENS tokens of all layers.

    start: position of the first token in its sequence. ids: (n,) int32. keys (before RoPE), values: (L, G, n, D).
    hash: `block_hash` of the block before and of ids.
    """

    start: int
    ids: np.ndarray
    keys: Tensor
    values: Tensor
    hash: bytes

    @property
    def tokens(self) -> int:
        """n."""
        return len(self.ids)


class BlockAssembler:
    """Cuts a stream of chunks of any size into blocks; holds less than one block of pending tokens.

    start: position of the first token to come; previous: hash of the block before it.
    """

    def __init__(self, start: int = 0, previous: bytes = FIRST_PREVIOUS) -> None:
        self._start = start  # of the pending block
        self._previous = previous
        self._pending = 0  # tokens
        self._pieces: list[tuple[np.ndarray, Tensor, Tensor]] = []  # ids, keys and values of the pending tokens
        self._kind: tuple[object, ...] | None = None  # dtype, device, L, G, D of the first chunk

    def push(self, ids: Sequence[int] | np.ndarray, keys: Tensor, values: Tensor) -> list[KVBlock]:
        """The blocks that this chunk completes. ids (c,), keys (before RoPE) and values (L, G, c, D); all are copied.

        Raises ValueError for chunks that fit neither each other nor the chunks before.
        """
        tokens = token_array(ids)
        if keys.ndim != 4 or keys.shape != values.shape or keys.dtype != values.dtype or keys.shape[2] != len(tokens):
            raise ValueError(
                f"block assembler: {len(tokens)} ids, keys {keys.dtype} {tuple(keys.shape)} and "
                f"values {values.dtype} {tuple(values.shape)} do not fit together"
            )
        kind = (keys.dtype, keys.device, *keys.shape[:2], keys.shape[3])
        if kind != (self._kind or kind):
            raise ValueError(f"block assembler: a chunk of {kind} after chunks of {self._kind}")
        self._kind = kind
        blocks, at = [], 0
        while at < len(tokens):
            end = min(len(tokens), at + BLOCK_TOKENS - self._pending)
            self._pieces.append((tokens[at:end], keys[:, :, at:end].clone(), values[:, :, at:end].clone()))
            self._pending += end - at
            at = end
            if self._pending == BLOCK_TOKENS:
                blocks.append(self._cut())
        return blocks

    def finish(self) -> KVBlock | None:
        """The last, partial block, or None when the tokens came out even."""
        return self._cut() if self._pending else None

    def _cut(self) -> KVBlock:
        import torch

        parts = list(zip(*self._pieces, strict=True))
        ids = token_array(np.concatenate(parts[0]))
        keys, values = (torch.cat(part, dim=2) for part in parts[1:])
        self._previous = block_hash(self._previous, ids)
        block = KVBlock(self._start, ids, keys, values, self._previous)
        self._start += self._pending
        self._pending, self._pieces = 0, []
        return block
