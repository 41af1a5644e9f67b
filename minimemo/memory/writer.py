"""Blocks -> memory.bin (layout: format.py), in as many lives of the process as it takes.

The growing file is PATH.part. Beside it lies a journal: u32 frames a block, then the index entry of every block and its
CRC-32C, written after the block's frames. What both agree on after a kill, by checksum, is whole; the rest is cut off.
Blocks may also come from another memory.bin, frame by frame as they lie there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zstandard
from crc32c import crc32c

from minimemo.files import put
from minimemo.memory.blocks import BLOCK_TOKENS, FIRST_PREVIOUS, block_hash, token_array
from minimemo.memory.format import CRC, LEVEL, MAX_FRAMES, MAX_RAW_BLOCK, ending, index_entry, prologue, shuffled
from minimemo.memory.reader import MemoryReader

QUICK, STAYS = 1, 0.98  # a level of zstd, and the share of a stream from which on another is not worth its time
_FRAMES = struct.Struct("<I")


@contextmanager
def writing(path: Path, header: Mapping[str, Any], *, level: int = LEVEL) -> Iterator[MemoryWriter]:
    """Writes a memory.bin: `with writing(path, header) as writer: writer.add(...)`.

    The file appears under its name, whole and on disk, when the `with` ends well, and nothing else is left then. An
    error or a kill leaves PATH.part and PATH.journal, and the next writer of the same path and header goes on from the
    whole blocks of those. After a crash of the system the checksums decide what is whole.

    header: JSON-able; level: of zstd. Raises OSError when the disk is full or the path cannot be written: the caller
    knows by which name the user knows the file.
    """
    head, part, journal = prologue(header), path.with_name(f"{path.name}.part"), _journal(path)
    with _opened(part, buffering=-1) as file, _opened(journal, buffering=0) as entries:
        writer = MemoryWriter(file, entries, head, level)
        yield writer
        writer.finish()
    put(part, path)
    journal.unlink()


def forget_journal(path: Path) -> None:
    """Removes what a kill leaves that comes when a memory file has just got its name."""
    _journal(path).unlink(missing_ok=True)


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}.journal")


class MemoryWriter:
    """Writes blocks into a growing file and its journal, which `writing` opens and closes."""

    def __init__(self, file: BinaryIO, journal: BinaryIO, head: bytes, level: int) -> None:
        """Goes on from the whole blocks of a file that begins with `head`, else begins anew."""
        self._file, self._journal = file, journal
        self._quick, self._thorough = (zstandard.ZstdCompressor(level=each) for each in (QUICK, level))
        self._entries: list[bytes] = []  # of the index
        self._frames = 1  # of every block
        self._offset = 0
        if file.read(len(head)) == head:
            self._offset = len(head)
            self._recover(journal.read())
        else:
            file.seek(0)
            file.truncate()
            self._write(head)
        self.cut(len(self._entries))

    def finish(self) -> None:
        """Writes what stands behind the blocks."""
        self._file.write(ending(self._offset, self._tokens, self._entries, self._frames))
        self._file.flush()

    @property
    def written(self) -> int:
        """Bytes so far."""
        return self._offset

    @property
    def hashes(self) -> list[bytes]:
        """Chained hashes of the blocks that the file holds."""
        return [entry["hash"].tobytes() for entry in self._index()]

    def add(self, hash_: bytes, ids: Sequence[int] | np.ndarray, streams: Sequence[bytes]) -> None:
        """Appends a block; blocks come in order, each with equally many streams, only the last one partial.

        Raises ValueError when the block does not continue the file.
        """
        tokens = token_array(ids)
        if self._tokens % BLOCK_TOKENS or not 1 <= len(tokens) <= BLOCK_TOKENS:
            raise ValueError(f"memory writer: {len(tokens)} tokens cannot follow {self._tokens}")
        if hash_ != block_hash(self._previous, tokens):
            raise ValueError(f"memory writer: block {len(self._entries)} does not chain to the one before")
        if (self._entries and len(streams) + 1 != self._frames) or len(streams) >= MAX_FRAMES:
            raise ValueError(f"memory writer: {len(streams)} streams after blocks of {self._frames - 1}")
        if sum(map(len, streams)) > MAX_RAW_BLOCK:
            raise ValueError(f"memory writer: a block of {sum(map(len, streams))} bytes exceeds {MAX_RAW_BLOCK}")
        self._frames = len(streams) + 1
        entry = np.zeros((), index_entry(self._frames))
        entry["offset"], entry["tokens"] = self._offset, len(tokens)
        entry["hash"] = np.frombuffer(hash_, np.uint8)
        for number, raw in enumerate((shuffled(tokens), *streams)):
            frame = self._compressed(raw) if raw else b""
            entry["frames"][number] = len(frame), len(raw), crc32c(frame)
            self._write(frame)
        self._enter(entry)

    def _compressed(self, raw: bytes) -> bytes:
        """What an entropy coder has coded already stays as large as it is, at any level."""
        frame = self._quick.compress(raw)
        return frame if len(frame) > STAYS * len(raw) else self._thorough.compress(raw)

    def take(self, reader: MemoryReader, blocks: int) -> None:
        """Copies the first `blocks` blocks, all full, of another memory; this one must be empty.

        Raises MemoError where they are damaged.
        """
        if self._entries:
            raise ValueError("memory writer: only an empty memory can take blocks of another")
        for index in range(blocks):
            frames, stored = reader.stored(index)
            entry: Any = stored.copy()  # one element of a structured array
            self._frames = len(entry["frames"])
            entry["offset"] = self._offset
            self._write(frames)
            self._enter(entry)

    def cut(self, blocks: int) -> None:
        """Forgets all blocks but the first ones."""
        if blocks < len(self._entries):
            self._offset = int(self._index()[blocks]["offset"])
            del self._entries[blocks:]
        self._tokens = len(self._entries) * BLOCK_TOKENS
        self._previous = self.hashes[-1] if self._entries else FIRST_PREVIOUS
        self._file.seek(self._offset)
        self._file.truncate()
        record = index_entry(self._frames).itemsize + CRC.size
        self._journal.seek(_FRAMES.size + len(self._entries) * record if self._entries else 0)
        self._journal.truncate()

    def _recover(self, journal: bytes) -> None:
        """Takes up the blocks whose index entry and frames are whole."""
        frames = _FRAMES.unpack_from(journal)[0] if len(journal) >= _FRAMES.size else 0
        if not 1 <= frames <= MAX_FRAMES:
            return
        dtype = index_entry(frames)
        for at in range(_FRAMES.size, len(journal) - dtype.itemsize - CRC.size + 1, dtype.itemsize + CRC.size):
            record = journal[at : at + dtype.itemsize]
            entry = np.frombuffer(record, dtype)[0]
            if CRC.pack(crc32c(record)) != journal[at + dtype.itemsize :][: CRC.size]:
                return
            if entry["tokens"] != BLOCK_TOKENS or entry["offset"] != self._offset:
                return
            for length, checksum in zip(*(entry["frames"][part].tolist() for part in ("length", "crc")), strict=True):
                frame = self._file.read(length)
                if len(frame) != length or crc32c(frame) != checksum:
                    return
            self._frames = frames
            self._entries.append(record)
            self._offset += int(entry["frames"]["length"].sum())

    def _enter(self, entry: np.ndarray) -> None:
        """Enters a block whose frames are written into index and journal."""
        self._file.flush()
        record = entry.tobytes()
        first = b"" if self._entries else _FRAMES.pack(self._frames)
        self._journal.write(first + record + CRC.pack(crc32c(record)))
        self._entries.append(record)
        self._tokens += int(entry["tokens"])
        self._previous = entry["hash"].tobytes()

    def _index(self) -> np.ndarray:
        return np.frombuffer(b"".join(self._entries), index_entry(self._frames))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._offset += len(data)


@contextmanager
def _opened(path: Path, buffering: int) -> Iterator[BinaryIO]:
    """Opens the file as it is, or a new one, to read and write."""
    file = open(path, "r+b" if path.exists() else "x+b", buffering=buffering)  # noqa: SIM115 (closed below)
    try:
        yield file
    finally:
        with suppress(OSError):  # a full disk fails here once more, after having been reported
            file.close()
