"""memory.bin (layout: format.py) -> blocks, each checked when it is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import zstandard
from crc32c import crc32c

from minimemo.errors import MemoError
from minimemo.events import Event, Listener, silent
from minimemo.files import parse_json
from minimemo.memory import format as layout
from minimemo.memory.blocks import BLOCK_TOKENS, FIRST_PREVIOUS, block_hash
from minimemo.memory.view import Extent


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """A block's tokens, chained hash, and where its bytes lie."""

    tokens: int
    hash: bytes
    offset: int
    length: int


class ByteSource(Protocol):
    """Where the bytes of a memory.bin are: a file on this disk, or elsewhere with copies of parts here. Its `str` names
    it. Any method may be called from several threads."""

    size: int

    def read(self, start: int, end: int) -> bytes:
        """The bytes [start, end), fewer at the end. Raises OSError, and ValueError when it was closed."""

    def fetch(self, spans: Iterable[tuple[int, int]]) -> None:
        """Brings spans (start, end) here at once, which are going to be read one by one."""

    def forget(self, start: int, end: int) -> bool:
        """Drops the copies here of bytes that turned out damaged; whether there were any."""

    def close(self) -> None: ...


class FileBytes:
    """A file on this disk. It is not mapped into memory: one that is cut off meanwhile would kill the process (SIGBUS).
    Raises OSError where it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()  # where one place in the file is all that threads share
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by close)
        self.size = os.fstat(self._file.fileno()).st_size

    def __str__(self) -> str:
        return str(self._path)

    def read(self, start: int, end: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), end - start, start)
        with self._lock:
            self._file.seek(start)
            return self._file.read(end - start)

    def fetch(self, spans: Iterable[tuple[int, int]]) -> None:
        """All of it is here."""

    def forget(self, start: int, end: int) -> bool:
        return False

    def close(self) -> None:
        self._file.close()


class MemoryReader:
    """Reads a memory.bin frame by frame, never whole. Close it, or use it in a `with` statement.

    Opening checks everything but the frames; a frame is checked whenever it is read. Any method may be called from
    several threads. Raises MemoError for whatever is not a whole, undamaged file of this version.
    """

    def __init__(self, source: Path | ByteSource) -> None:
        self.path = str(source)
        try:
            self._source: ByteSource = FileBytes(source) if isinstance(source, Path) else source
        except OSError as error:
            raise MemoError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        self._size = self._source.size
        try:
            try:
                self._open()
            except MemoError:
                if not self._source.forget(0, self._size):
                    raise
                self._open()  # what was damaged may have been a copy here
        except BaseException:
            self._source.forget(0, self._size)
            self._source.close()
            raise

    def _open(self) -> None:
        if self._size < layout.PROLOGUE.size + layout.CRC.size + layout.END:
            raise self._damaged("it is too short")
        self.header = self._read_header()
        self._index = self._read_index()

    def __enter__(self) -> MemoryReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        self._source.close()

    def fetch(self, blocks: Iterable[int]) -> None:
        """Brings blocks here that are going to be read, where the file is elsewhere: as few requests as may be."""
        infos = [self.block(index) for index in blocks]
        self._source.fetch((info.offset, info.offset + info.length) for info in infos)

    def _bytes(self, start: int, end: int) -> bytes:
        """Bytes of the file; MemoError where it does not have them (any longer)."""
        try:
            content = self._source.read(start, end)
        except (OSError, ValueError) as error:  # the latter: closed meanwhile
            raise MemoError(f"{self.path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        if len(content) != end - start:
            raise self._damaged("it was cut off")
        return content

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
        return BlockInfo(int(entry["tokens"]), entry["hash"].tobytes(), int(entry["offset"]), length)

    @property
    def extent(self) -> Extent:
        """The memory's length, and where its document begins. Raises MemoError when the header does not say."""
        opening, tokens = self.header.get("opening_tokens", 0), self.tokens
        if type(opening) is not int or not 0 <= opening <= tokens:
            raise self._damaged(f"{opening!r} of {tokens} tokens before the document")
        return Extent(tokens, opening, BLOCK_TOKENS)

    def ids(self, index: int) -> np.ndarray:
        """(n,) int32 token ids of a block."""
        return layout.unshuffled(self._inflated(index, 0))

    def payload(self, index: int) -> tuple[bytes, ...]:
        """The codec's streams of a block."""
        return tuple(self._inflated(index, number) for number in range(1, self._index["frames"].shape[1]))

    def stored(self, index: int) -> tuple[bytes, np.void]:
        """A block's frames as they lie in the file, checked, and its index entry (format.py)."""
        entry = self._entry(index)
        return b"".join(self._frame(index, number) for number in range(len(entry["frames"]))), entry

    def sizes(self) -> dict[str, int]:
        """Bytes of each part; they add up to the file's size."""
        lengths = self._index["frames"]["length"].astype(np.int64)
        ids, payload = int(lengths[:, 0].sum()), int(lengths[:, 1:].sum())
        header = self._blocks_at
        return {"header": header, "ids": ids, "payload": payload, "index": self._size - header - ids - payload}

    def verify(self, on_event: Listener = silent) -> None:
        """Reads everything: checksums, frames, and the chain of hashes over the token ids."""
        previous = FIRST_PREVIOUS
        for index in range(len(self)):
            self.fetch([index])
            previous = block_hash(previous, self.ids(index))
            if previous != self.block(index).hash:
                raise self._damaged(f"the token ids of block {index} do not belong to its hash")
            self.payload(index)
            on_event(Event("verify", index + 1, len(self), "blocks"))

    def _read_header(self) -> dict[str, Any]:
        magic, version, zero, length = layout.PROLOGUE.unpack(self._bytes(0, layout.PROLOGUE.size))
        if magic != layout.MAGIC:
            raise MemoError(f"{self.path}: not a memory of minimemo; build one: minimemo build DOCUMENT")
        if version != layout.VERSION:
            raise MemoError(
                f"{self.path}: memory format {version}, but this minimemo reads format {layout.VERSION}; "
                "build it again: minimemo build DOCUMENT"
            )
        end = layout.PROLOGUE.size + length
        fits = end + layout.CRC.size + layout.END <= self._size
        self._require(zero == 0 and length <= layout.MAX_HEADER and fits, "header length")
        self._blocks_at = end + layout.CRC.size
        whole = self._bytes(0, self._blocks_at)
        self._require(layout.CRC.unpack_from(whole, end)[0] == crc32c(whole[:end]), "header checksum")
        encoded = whole[layout.PROLOGUE.size : end]
        try:
            header: dict[str, Any] = parse_json(encoded)
            canonical = isinstance(header, dict) and layout.canonical(header) == encoded
        except ValueError:
            canonical = False
        self._require(canonical, "header is not canonical JSON")
        return header

    def _read_index(self) -> np.ndarray:
        """The index, whose frames tile the space between header and index, with blocks that are full but for the last
        and sizes that are sane."""
        end = self._size - layout.END
        last = self._bytes(end, self._size)
        footer = last[: layout.FOOTER.size]
        (checksum,) = layout.CRC.unpack_from(last, layout.FOOTER.size)
        self._require(last[-len(layout.END_MAGIC) :] == layout.END_MAGIC, "the end is missing")
        self._require(checksum == crc32c(footer), "footer checksum")
        offset, tokens, blocks, frames, index_checksum = layout.FOOTER.unpack(footer)
        self._require(1 <= frames <= layout.MAX_FRAMES and offset >= self._blocks_at, "footer")
        entry = layout.index_entry(frames)
        self._require(offset + blocks * entry.itemsize == end, "index length")
        content = self._bytes(offset, end)
        self._require(crc32c(content) == index_checksum, "index checksum")
        index = np.frombuffer(content, entry)
        lengths, raw = (index["frames"][part].astype(np.int64) for part in ("length", "raw"))
        edges = self._blocks_at + np.concatenate(([0], lengths.sum(axis=1).cumsum()))
        tile = edges[-1] == offset and np.array_equal(index["offset"], edges[:-1].astype(np.uint64))
        self._require(tile, "index: blocks do not follow each other")
        counts = index["tokens"].astype(np.int64)
        sane = (counts[:-1] == BLOCK_TOKENS).all() and ((counts >= 1) & (counts <= BLOCK_TOKENS)).all()
        self._require(sane, "index: tokens of a block")
        self._require(counts.sum() == tokens and np.array_equal(raw[:, 0], 4 * counts), "index: tokens")
        sane = (raw[:, 1:].sum(axis=1) <= layout.MAX_RAW_BLOCK).all() and ((raw == 0) == (lengths == 0)).all()
        self._require(sane, "index: sizes of frames")
        return index

    def _require(self, holds: bool | np.bool_, what: str) -> None:
        if not holds:
            raise self._damaged(what)

    def _entry(self, index: int) -> np.void:
        if not 0 <= index < len(self):
            raise IndexError(f"memory has {len(self)} blocks, there is no block {index}")
        return self._index[index]

    def _frame(self, index: int, number: int) -> bytes:
        """A frame as it lies in the file."""
        entry = self._entry(index)
        lengths = entry["frames"]["length"]
        start = int(entry["offset"]) + int(lengths[:number].sum())
        end = start + int(lengths[number])
        frame = self._bytes(start, end)
        if frame and crc32c(frame) != entry["frames"][number]["crc"]:
            again = self._bytes(start, end) if self._source.forget(start, end) else b""
            if crc32c(again) != entry["frames"][number]["crc"]:
                self._source.forget(start, end)
                raise self._damaged(f"checksum of block {index}")
            return again
        return frame

    def _inflated(self, index: int, number: int) -> bytes:
        frame = self._frame(index, number)
        if not frame:
            return b""
        try:
            # the frame's own claim is what the library allocates, so it has to be the checked one
            if zstandard.frame_content_size(frame) != self._index[index]["frames"][number]["raw"]:
                raise self._damaged(f"size of block {index}")
            return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise self._damaged(f"block {index}: {error}") from error

    def _damaged(self, what: str) -> MemoError:
        return MemoError(f"{self.path}: damaged ({what}); build it again: minimemo build DOCUMENT")
