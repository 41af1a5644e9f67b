"""memory.bin, format v1: blocks of streams on disk. It knows neither codecs nor models: streams are bytes.

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
allocated or inflated.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import zstandard
from crc32c import crc32c

from minimemo.errors import InputError, MemoError
from minimemo.events import Event, Listener, silent
from minimemo.memory.blocks import BLOCK_TOKENS, FIRST_PREVIOUS, HASH_BYTES, block_hash, token_array

MAGIC, END_MAGIC = b"MINIMEMO", b"OMEMINIM"
VERSION = 1
MAX_HEADER = 1 << 20  # bytes
MAX_FRAMES = 64  # a block
MAX_RAW_BLOCK = 512 << 20  # bytes of a block inflated: 256 tokens of an 80-layer float32 model are 168 MB
LEVEL = 3  # zstd; on int4 streams level 1 is 0.3 % larger, level 19 1 % smaller and 80 times slower

_PROLOGUE = struct.Struct("<8sHHI")
_FOOTER = struct.Struct("<QQIII")
_CRC = struct.Struct("<I")
_END = _FOOTER.size + _CRC.size + len(END_MAGIC)


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """Block `index` of a file: its first token's position, tokens, chained hash, and where its bytes lie."""

    index: int
    start: int
    tokens: int
    hash: bytes
    offset: int
    length: int


def _entries(frames: int) -> np.dtype:
    """The index entry of a block of `frames` frames."""
    frame = np.dtype([("length", "<u4"), ("raw", "<u4"), ("crc", "<u4")])
    return np.dtype([("offset", "<u8"), ("tokens", "<u4"), ("hash", "u1", (HASH_BYTES,)), ("frames", frame, (frames,))])


def _canonical(header: Mapping[str, Any]) -> bytes:
    """Sorted keys, no spaces, ASCII: one header, one spelling. ValueError or TypeError for what JSON cannot hold."""
    return json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _shuffled(ids: np.ndarray) -> bytes:
    """The four byte planes of int32 ids, low bytes first: the high ones nearly vanish under zstd."""
    return ids.astype("<i4").view(np.uint8).reshape(-1, 4).T.tobytes()


class MemoryWriter:
    """Writes a memory.bin: `with MemoryWriter(path, header) as writer: writer.add(...)`.

    The file appears under its name, whole and on disk, when the `with` ends well, and not at all otherwise. header:
    JSON-able; level: of zstd. Raises InputError when the disk is full or the path cannot be written.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, level: int = LEVEL) -> None:
        encoded = _canonical(header)
        if len(encoded) > MAX_HEADER:
            raise ValueError(f"memory writer: a header of {len(encoded)} bytes exceeds {MAX_HEADER}")
        self.path = Path(path)
        self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        self._prologue = _PROLOGUE.pack(MAGIC, VERSION, 0, len(encoded)) + encoded
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._index: list[bytes] = []
        self._frames = 1
        self._tokens = 0
        self._offset = 0
        self._previous = FIRST_PREVIOUS
        self._file: BinaryIO | None = None

    def __enter__(self) -> MemoryWriter:
        with self._writing():
            self._file = open(self._temporary, "xb")
        try:
            self._write(self._prologue + _CRC.pack(crc32c(self._prologue)))
        except BaseException:
            self._discard(self._file)
            raise
        return self

    def add(self, hash_: bytes, ids: Sequence[int] | np.ndarray, streams: Sequence[bytes]) -> None:
        """Appends a block; blocks come in order, each with equally many streams, only the last one partial.

        Raises ValueError when the block does not continue the file.
        """
        tokens = token_array(ids)
        if self._tokens % BLOCK_TOKENS or not 1 <= len(tokens) <= BLOCK_TOKENS:
            raise ValueError(f"memory writer: {len(tokens)} tokens cannot follow {self._tokens}")
        if hash_ != block_hash(self._previous, tokens):
            raise ValueError(f"memory writer: block {len(self._index)} does not chain to the one before")
        if (self._index and len(streams) + 1 != self._frames) or len(streams) >= MAX_FRAMES:
            raise ValueError(f"memory writer: {len(streams)} streams after blocks of {self._frames - 1}")
        if sum(map(len, streams)) > MAX_RAW_BLOCK:
            raise ValueError(f"memory writer: a block of {sum(map(len, streams))} bytes exceeds {MAX_RAW_BLOCK}")
        self._frames = len(streams) + 1
        entry = np.zeros((), _entries(self._frames))
        entry["offset"], entry["tokens"] = self._offset, len(tokens)
        entry["hash"] = np.frombuffer(hash_, np.uint8)
        for number, raw in enumerate((_shuffled(tokens), *streams)):
            frame = self._compressor.compress(raw) if raw else b""
            entry["frames"][number] = len(frame), len(raw), crc32c(frame)
            self._write(frame)
        self._index.append(entry.tobytes())
        self._tokens += len(tokens)
        self._previous = hash_

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        try:
            if kind is None:
                self._finish(self._file)
        finally:
            self._discard(self._file)

    def _finish(self, file: BinaryIO) -> None:
        index_offset, index = self._offset, b"".join(self._index)
        footer = _FOOTER.pack(index_offset, self._tokens, len(self._index), self._frames, crc32c(index))
        self._write(index + footer + _CRC.pack(crc32c(footer)) + END_MAGIC)
        with self._writing():
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(self._temporary, self.path)

    def _discard(self, file: BinaryIO) -> None:
        """Leaves nothing under the temporary name; when all went well, nothing is."""
        with suppress(OSError):  # a full disk fails here once more, after having been reported
            file.close()
        self._temporary.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        if self._file is None:
            raise ValueError("memory writer: use it in a `with` statement")
        with self._writing():
            self._file.write(data)
        self._offset += len(data)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(
                f"{self.path}: cannot be written: {reason}; free some space or name another place"
            ) from error


class MemoryReader:
    """A memory.bin, mapped into memory and never loaded whole. Close it, or use it in a `with` statement.

    Opening checks everything but the frames; a frame is checked whenever it is read. Any method may be called from
    several threads. Raises MemoError for whatever is not a whole, undamaged file of this version.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < _PROLOGUE.size + _CRC.size + _END:
                    raise self._damaged("it is too short")
                self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise MemoError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        try:
            self.header = self._read_header()
            self._index = self._read_index()
        except BaseException:
            self._map.close()
            raise

    def __enter__(self) -> MemoryReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        self._map.close()

    def __len__(self) -> int:
        """Blocks."""
        return len(self._index)

    @property
    def tokens(self) -> int:
        """Tokens of all blocks."""
        return int(self._index["tokens"].sum())

    def block(self, index: int) -> BlockInfo:
        """What the index says of a block. IndexError when there is none."""
        entry = self._entry(index)
        length = int(entry["frames"]["length"].sum())
        start = index * BLOCK_TOKENS
        return BlockInfo(index, start, int(entry["tokens"]), entry["hash"].tobytes(), int(entry["offset"]), length)

    def ids(self, index: int) -> np.ndarray:
        """(n,) int32 token ids of a block."""
        planes = np.frombuffer(self._frame(index, 0), np.uint8).reshape(4, -1)
        return planes.T.copy().view("<i4")[:, 0].astype(np.int32)

    def all_ids(self) -> np.ndarray:
        """(tokens,) int32."""
        return np.concatenate([np.empty(0, np.int32), *(self.ids(index) for index in range(len(self)))])

    def payload(self, index: int) -> tuple[bytes, ...]:
        """The codec's streams of a block."""
        return tuple(self._frame(index, number) for number in range(1, self._index["frames"].shape[1]))

    def sizes(self) -> dict[str, int]:
        """Bytes of each part; they add up to the file's size."""
        lengths = self._index["frames"]["length"].astype(np.int64)
        ids, payload = int(lengths[:, 0].sum()), int(lengths[:, 1:].sum())
        header = self._blocks_at
        return {"header": header, "ids": ids, "payload": payload, "index": len(self._map) - header - ids - payload}

    def verify(self, on_event: Listener = silent) -> None:
        """Reads everything: checksums, frames, and the chain of hashes over the token ids."""
        previous = FIRST_PREVIOUS
        for index in range(len(self)):
            previous = block_hash(previous, self.ids(index))
            if previous != self.block(index).hash:
                raise self._damaged(f"the token ids of block {index} do not belong to its hash")
            self.payload(index)
            on_event(Event("verify", index + 1, len(self), "blocks"))

    def _read_header(self) -> dict[str, Any]:
        magic, version, zero, length = _PROLOGUE.unpack_from(self._map)
        if magic != MAGIC:
            raise MemoError(f"{self.path}: not a memory of minimemo; build one: minimemo build DOCUMENT")
        if version != VERSION:
            raise MemoError(
                f"{self.path}: memory format {version}, but this minimemo reads format {VERSION}; "
                "build it again: minimemo build DOCUMENT"
            )
        end = _PROLOGUE.size + length
        if zero or length > MAX_HEADER or end + _CRC.size + _END > len(self._map):
            raise self._damaged("header length")
        if _CRC.unpack_from(self._map, end)[0] != crc32c(self._map[:end]):
            raise self._damaged("header checksum")
        self._blocks_at = end + _CRC.size
        encoded = self._map[_PROLOGUE.size : end]
        try:
            header = json.loads(encoded)
            canonical = _canonical(header) == encoded
        except (ValueError, RecursionError):
            canonical = False
        if not canonical or not isinstance(header, dict):
            raise self._damaged("header is not canonical JSON")
        return header

    def _read_index(self) -> np.ndarray:
        end = len(self._map) - _END
        footer = self._map[end : end + _FOOTER.size]
        (checksum,) = _CRC.unpack_from(self._map, end + _FOOTER.size)
        if self._map[end + _FOOTER.size + _CRC.size :] != END_MAGIC:
            raise self._damaged("the end is missing")
        if checksum != crc32c(footer):
            raise self._damaged("footer checksum")
        offset, tokens, blocks, frames, index_checksum = _FOOTER.unpack(footer)
        if not 1 <= frames <= MAX_FRAMES or offset < self._blocks_at:
            raise self._damaged("footer")
        entry = _entries(frames)
        if offset + blocks * entry.itemsize != end:
            raise self._damaged("index length")
        if crc32c(self._map[offset:end]) != index_checksum:
            raise self._damaged("index checksum")
        index = np.frombuffer(self._map[offset:end], entry)
        self._check_index(index, offset, tokens)
        return index

    def _check_index(self, index: np.ndarray, end: int, tokens: int) -> None:
        """Frames tile the space between header and index; blocks are full but for the last; sizes are sane."""
        lengths = index["frames"]["length"].astype(np.int64)
        raw = index["frames"]["raw"].astype(np.int64)
        edges = self._blocks_at + np.concatenate(([0], lengths.sum(axis=1).cumsum()))
        if edges[-1] != end or not np.array_equal(index["offset"], edges[:-1].astype(np.uint64)):
            raise self._damaged("index: blocks do not follow each other")
        if (index["tokens"][:-1] != BLOCK_TOKENS).any() or not (
            (index["tokens"] >= 1) & (index["tokens"] <= BLOCK_TOKENS)
        ).all():
            raise self._damaged("index: tokens of a block")
        if index["tokens"].sum() != tokens or not np.array_equal(raw[:, 0], 4 * index["tokens"].astype(np.int64)):
            raise self._damaged("index: tokens")
        if (raw[:, 1:].sum(axis=1) > MAX_RAW_BLOCK).any() or ((raw == 0) != (lengths == 0)).any():
            raise self._damaged("index: sizes of frames")

    def _entry(self, index: int) -> np.void:
        if not 0 <= index < len(self):
            raise IndexError(f"memory has {len(self)} blocks, there is no block {index}")
        return self._index[index]

    def _frame(self, index: int, number: int) -> bytes:
        entry = self._entry(index)
        frames = entry["frames"]
        start = int(entry["offset"]) + int(frames["length"][:number].sum())
        length, raw, checksum = (int(x) for x in frames[number])
        if length == 0:
            return b""
        frame = self._map[start : start + length]
        if crc32c(frame) != checksum:
            raise self._damaged(f"checksum of block {index}")
        try:
            # the frame's own claim is what the library allocates, so it has to be the checked one
            if zstandard.frame_content_size(frame) != raw:
                raise self._damaged(f"size of block {index}")
            return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise self._damaged(f"block {index}: {error}") from error

    def _damaged(self, what: str) -> MemoError:
        return MemoError(f"{self.path}: damaged ({what}); build it again: minimemo build DOCUMENT")
