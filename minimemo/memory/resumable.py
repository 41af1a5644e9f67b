"""A memory.bin that grows over several lives of its process: what a kill leaves behind, and how to go on from there.

Beside the growing file lies a journal: u32 frames a block, then the index entry of every block and its CRC-32C, written
after the block's frames. What both agree on after a kill, by checksum, is whole; the rest is cut off. Blocks may also
come from another memory.bin, frame by frame as they lie there.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from crc32c import crc32c

from minimemo.memory.blocks import BLOCK_TOKENS, FIRST_PREVIOUS
from minimemo.memory.format import CRC, MAX_FRAMES, index_entry
from minimemo.memory.reader import MemoryReader
from minimemo.memory.writer import LEVEL, MemoryWriter

_FRAMES = struct.Struct("<I")


class ResumableWriter(MemoryWriter):
    """As MemoryWriter, but an error or a kill leaves PATH.part and PATH.journal, and the next writer of the same path
    and header goes on from the whole blocks of those. When all ends well, neither is left.

    Safe against a kill of the process. After a crash of the system the checksums decide what is whole.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, level: int = LEVEL) -> None:
        super().__init__(path, header, level=level)
        self._temporary = self.path.with_name(f"{self.path.name}.part")
        self._journal_path = self.path.with_name(f"{self.path.name}.journal")
        self._journal: BinaryIO | None = None

    def __enter__(self) -> ResumableWriter:
        head = self._prologue + CRC.pack(crc32c(self._prologue))
        mode = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._file = open(os.open(self._temporary, mode, 0o644), "r+b")
        self._journal = open(os.open(self._journal_path, mode, 0o644), "r+b", buffering=0)
        if self._file.read(len(head)) == head:
            self._offset = len(head)
            self._recover(self._file, self._journal.read())
            self.cut(len(self._index))
        else:
            self._file.seek(0)
            self._file.truncate()
            self._journal.truncate(0)
            self._write(head)
        return self

    @property
    def hashes(self) -> list[bytes]:
        """Chained hashes of the blocks that the file holds."""
        entry = index_entry(self._frames)
        return [np.frombuffer(known, entry)[0]["hash"].tobytes() for known in self._index]

    def cut(self, blocks: int) -> None:
        """Forgets all blocks but the first ones."""
        if self._file is None or self._journal is None:
            raise ValueError("memory writer: use it in a `with` statement")
        entry = index_entry(self._frames)
        if blocks < len(self._index):
            self._offset = int(np.frombuffer(self._index[blocks], entry)[0]["offset"])
            del self._index[blocks:]
        self._tokens = len(self._index) * BLOCK_TOKENS
        self._previous = self.hashes[-1] if self._index else FIRST_PREVIOUS
        self._file.seek(self._offset)
        self._file.truncate()
        self._journal.seek(_FRAMES.size + len(self._index) * (entry.itemsize + CRC.size) if self._index else 0)
        self._journal.truncate()

    def take(self, reader: MemoryReader, blocks: int) -> None:
        """Makes the first `blocks`, all full, of another memory this one's own; this one must be empty.

        Raises MemoError where they are damaged.
        """
        if self._index:
            raise ValueError("memory writer: only an empty memory can take blocks of another")
        for index in range(blocks):
            frames, known = reader.stored(index)
            entry: Any = known.copy()  # one element of a structured array
            self._frames = len(entry["frames"])
            entry["offset"] = self._offset
            self._write(frames)
            self._wrote(entry)

    def _recover(self, file: BinaryIO, journal: bytes) -> None:
        """Takes up the blocks whose index entry and frames are whole."""
        if len(journal) < _FRAMES.size:
            return
        (frames,) = _FRAMES.unpack_from(journal)
        if not 1 <= frames <= MAX_FRAMES:
            return
        entry, offset = index_entry(frames), self._offset
        size = entry.itemsize + CRC.size
        for at in range(_FRAMES.size, len(journal) - size + 1, size):
            known = np.frombuffer(journal, entry, 1, at)[0]
            lengths = known["frames"]["length"].tolist()
            if CRC.pack(crc32c(known.tobytes())) != journal[at + size - CRC.size : at + size]:
                return
            if known["tokens"] != BLOCK_TOKENS or known["offset"] != offset:
                return
            for length, checksum in zip(lengths, known["frames"]["crc"].tolist(), strict=True):
                frame = file.read(length)
                if len(frame) != length or crc32c(frame) != checksum:
                    return
            offset += sum(lengths)
            self._frames = frames
            self._index.append(known.tobytes())
            self._offset = offset

    def _wrote(self, entry: np.ndarray) -> None:
        if self._file is None or self._journal is None:
            raise ValueError("memory writer: use it in a `with` statement")
        self._file.flush()
        record = entry.tobytes()
        head = b"" if self._index else _FRAMES.pack(self._frames)
        self._journal.write(head + record + CRC.pack(crc32c(record)))
        super()._wrote(entry)

    def _finish(self, file: BinaryIO) -> None:
        super()._finish(file)
        self._journal_path.unlink()

    def _discard(self, file: BinaryIO) -> None:
        """Closes; what was written stays for the next writer."""
        for open_ in (file, self._journal):
            if open_ is not None:
                with suppress(OSError):
                    open_.close()
