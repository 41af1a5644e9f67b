"""The exact keys and values that a reading still looks at, in a file: what a killed or a grown build goes on from.

A file of equal slots, one a block: u8[16] chained hash | u32 CRC-32C of hash and numbers | 12 zero bytes | keys before
RoPE, then values, as they lie in memory. The first `pinned` blocks have slots of their own, those after them share
`ring` slots in turn. A slot is believed for the hash that it carries, and only with its checksum.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import torch
from crc32c import crc32c
from torch import Tensor

from minimemo.memory.blocks import BLOCK_TOKENS, HASH_BYTES, KVBlock
from minimemo.memory.codec import KVLayout

_HEAD = struct.Struct(f"<{HASH_BYTES}sI12x")


class ExactTail:
    """Use it in a `with` statement. Raises OSError when the file cannot be written; another memory's is only read."""

    def __init__(self, path: Path, layout: KVLayout, *, pinned: int, ring: int, read_only: bool = False) -> None:
        if pinned < 0 or ring < 1:
            raise ValueError(f"exact tail: {pinned} pinned blocks and a ring of {ring}")
        self._layout = layout
        self._pinned, self._ring = pinned, ring
        self._size = 2 * math.prod(layout.shape(BLOCK_TOKENS)) * layout.torch_dtype.itemsize
        mode = "rb" if read_only else "r+b" if path.exists() else "x+b"
        self._file = open(path, mode, buffering=0)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> ExactTail:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def put(self, block: KVBlock) -> None:
        """Keeps a full block, in place of an older one. ValueError for a block of another layout."""
        for x in (block.keys, block.values):
            if x.shape != self._layout.shape(BLOCK_TOKENS) or x.dtype != self._layout.torch_dtype:
                raise ValueError(f"exact tail: a block of {x.dtype} {tuple(x.shape)} among those of {self._layout}")
        numbers = torch.stack((block.keys, block.values)).cpu().view(torch.uint8).numpy().tobytes()
        self._seek(block.start // BLOCK_TOKENS)
        written = self._file.write(_HEAD.pack(block.hash, crc32c(block.hash + numbers)) + numbers)
        if written != _HEAD.size + len(numbers):
            raise OSError(28, "the disk is full")

    def has(self, index: int, hash_: bytes) -> bool:
        """Whether the slot of block `index` carries this hash; its numbers are not looked at."""
        self._seek(index)
        return self._file.read(HASH_BYTES) == hash_

    def get(self, index: int, hash_: bytes) -> tuple[Tensor, Tensor] | None:
        """Keys before RoPE and values, each (L, G, BLOCK_TOKENS, D); None unless the slot holds that block, whole."""
        self._seek(index)
        head = self._file.read(_HEAD.size)
        numbers = self._file.read(self._size)
        if len(head) < _HEAD.size or len(numbers) != self._size:
            return None
        if _HEAD.unpack(head) != (hash_, crc32c(hash_ + numbers)):
            return None
        both = torch.frombuffer(bytearray(numbers), dtype=self._layout.torch_dtype)
        keys, values = both.view(2, *self._layout.shape(BLOCK_TOKENS))
        return keys, values

    def _seek(self, index: int) -> None:
        slot = index if index < self._pinned else self._pinned + (index - self._pinned) % self._ring
        self._file.seek(slot * (_HEAD.size + self._size))
