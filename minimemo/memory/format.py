"""memory.bin, format v1: blocks of streams on disk. The format knows neither codecs nor models: streams are bytes.

    prologue  magic "MINIMEMO" | u16 version | u16 zero | u32 header length | header: canonical JSON | u32 CRC-32C
              of all before
    blocks    for each block its frames, one after the other: token ids, then the codec's streams
    index     for each block: u64 offset | u32 tokens | 16 B chained hash | for each frame:
              u32 length | u32 raw length | u32 CRC-32C of the frame
    footer    u64 index offset | u64 tokens | u32 blocks | u32 frames a block | u32 CRC-32C of the index |
              u32 CRC-32C of the footer so far | magic "OMEMINIM"

Little-endian throughout. A frame is an independent zstd frame with its content size; an empty stream has no bytes at
all. Every block but the last holds BLOCK_TOKENS tokens. Frames leave no gaps and every byte is under a checksum, so
damage anywhere is found: in prologue, index and footer on opening, in a frame on reading it, everywhere by `verify`.
Totals live in the footer, since a document's blocks leave while it is still being read.

Files come from strangers: lengths are held against the file's own size and the limits below before anything is
allocated or inflated. `writer.py` and `reader.py` are the two ends.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from crc32c import crc32c

from minimemo.memory.blocks import HASH_BYTES

MAGIC, END_MAGIC = b"MINIMEMO", b"OMEMINIM"
VERSION = 1
LEVEL = 3  # of zstd; on int4 streams level 1 is 0.3 % larger, level 19 1 % smaller and 80 times slower
MAX_HEADER = 1 << 20  # bytes
MAX_FRAMES = 4096  # a block; a transform codec has about 30 for each group of layers, of which Llama 2 13B has 40
MAX_RAW_BLOCK = 512 << 20  # bytes of a block inflated: 256 tokens of an 80-layer float32 model are 168 MB

PROLOGUE = struct.Struct("<8sHHI")
FOOTER = struct.Struct("<QQIII")
CRC = struct.Struct("<I")
END = FOOTER.size + CRC.size + len(END_MAGIC)


def index_entry(frames: int) -> np.dtype:
    """The index entry of a block of `frames` frames."""
    frame = np.dtype([("length", "<u4"), ("raw", "<u4"), ("crc", "<u4")])
    return np.dtype([("offset", "<u8"), ("tokens", "<u4"), ("hash", "u1", (HASH_BYTES,)), ("frames", frame, (frames,))])


def canonical(header: Mapping[str, Any]) -> bytes:
    """Sorted keys, no spaces, ASCII: one header, one spelling. ValueError or TypeError for what JSON cannot hold."""
    return json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def prologue(header: Mapping[str, Any]) -> bytes:
    """All that stands before the blocks. Raises ValueError for a header that is too long or no JSON."""
    encoded = canonical(header)
    if len(encoded) > MAX_HEADER:
        raise ValueError(f"memory writer: a header of {len(encoded)} bytes exceeds {MAX_HEADER}")
    head = PROLOGUE.pack(MAGIC, VERSION, 0, len(encoded)) + encoded
    return head + CRC.pack(crc32c(head))


def ending(offset: int, tokens: int, entries: Sequence[bytes], frames: int) -> bytes:
    """All that stands behind the blocks, which end at `offset`."""
    index = b"".join(entries)
    footer = FOOTER.pack(offset, tokens, len(entries), frames, crc32c(index))
    return index + footer + CRC.pack(crc32c(footer)) + END_MAGIC


def shuffled(ids: np.ndarray) -> bytes:
    """The four byte planes of int32 ids, low bytes first: the high ones nearly vanish under zstd."""
    return ids.astype("<i4").view(np.uint8).reshape(-1, 4).T.tobytes()


def unshuffled(planes: bytes) -> np.ndarray:
    """(n,) int32: `shuffled` undone."""
    return np.frombuffer(planes, np.uint8).reshape(4, -1).T.copy().view("<i4")[:, 0].astype(np.int32)
