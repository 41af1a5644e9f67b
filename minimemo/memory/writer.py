"""Blocks -> memory.bin (format: container.py), under a temporary name until it is whole."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import zstandard
from crc32c import crc32c

from minimemo.memory.blocks import BLOCK_TOKENS, FIRST_PREVIOUS, block_hash, token_array
from minimemo.memory.format import (
    CRC,
    END_MAGIC,
    FOOTER,
    MAGIC,
    MAX_FRAMES,
    MAX_HEADER,
    MAX_RAW_BLOCK,
    PROLOGUE,
    VERSION,
    canonical,
    index_entry,
    shuffled,
)  # fmt: skip

LEVEL = 3  # zstd; on int4 streams level 1 is 0.3 % larger, level 19 1 % smaller and 80 times slower


class MemoryWriter:
    """Writes a memory.bin: `with MemoryWriter(path, header) as writer: writer.add(...)`.

    The file appears under its name, whole and on disk, when the `with` ends well, and not at all otherwise. header:
    JSON-able; level: of zstd. Raises OSError when the disk is full or the path cannot be written: the caller
    knows by which name the user knows the file.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, level: int = LEVEL) -> None:
        encoded = canonical(header)
        if len(encoded) > MAX_HEADER:
            raise ValueError(f"memory writer: a header of {len(encoded)} bytes exceeds {MAX_HEADER}")
        self.path = Path(path)
        self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        self._prologue = PROLOGUE.pack(MAGIC, VERSION, 0, len(encoded)) + encoded
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._index: list[bytes] = []
        self._frames = 1
        self._tokens = 0
        self._offset = 0
        self._previous = FIRST_PREVIOUS
        self._file: BinaryIO | None = None

    def __enter__(self) -> MemoryWriter:
        self._file = open(self._temporary, "xb")
        try:
            self._write(self._prologue + CRC.pack(crc32c(self._prologue)))
        except BaseException:
            self._discard(self._file)
            raise
        return self

    @property
    def written(self) -> int:
        """Bytes so far."""
        return self._offset

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
        entry = np.zeros((), index_entry(self._frames))
        entry["offset"], entry["tokens"] = self._offset, len(tokens)
        entry["hash"] = np.frombuffer(hash_, np.uint8)
        for number, raw in enumerate((shuffled(tokens), *streams)):
            frame = self._compressor.compress(raw) if raw else b""
            entry["frames"][number] = len(frame), len(raw), crc32c(frame)
            self._write(frame)
        self._wrote(entry)

    def _wrote(self, entry: np.ndarray) -> None:
        """The frames of a block are written; this is its index entry."""
        self._index.append(entry.tobytes())
        self._tokens += int(entry["tokens"])
        self._previous = entry["hash"].tobytes()

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
        footer = FOOTER.pack(index_offset, self._tokens, len(self._index), self._frames, crc32c(index))
        self._write(index + footer + CRC.pack(crc32c(footer)) + END_MAGIC)
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
        self._file.write(data)
        self._offset += len(data)
