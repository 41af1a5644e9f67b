"""The vectors of many documents in two files: a table of whose they are, and the numbers, which are mapped into memory.

What is added goes behind the numbers that are there, what is removed is overwritten with zeros, and a file that is half
empty, or holds what no entry accounts for, is written anew without the holes. So one document costs the same among
thousands as alone, but for the table, which is small and written whole. A checksum covers the table, one the numbers of
each entry: an entry that is damaged is left out, as if it had never been added.
"""

from __future__ import annotations

import heapq
import json
import os
import struct
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt
from crc32c import crc32c
from filelock import FileLock, Timeout

from minimemo.files import private_folder, write_whole

Vectors = npt.NDArray[np.float32]

_HEAD, _MAGIC = struct.Struct("<4sI"), b"MMS2"  # of the table; the CRC-32C of all that follows
_WAIT = 10  # seconds for another process that writes; after them nothing is kept
_SPARE = 1 << 18  # numbers that may be holes, however few others there are: 1 MB


@dataclass(frozen=True, slots=True)
class Entry:
    """A document's vectors: `rows` of `dim` numbers from `start` on. note: its key; stamp: what they were read from;
    model, embedder: fingerprints."""

    note: str
    path: str
    stamp: int
    model: str
    embedder: str
    rows: int
    dim: int
    start: int = 0
    crc: int = 0

    @property
    def end(self) -> int:
        return self.start + self.rows * self.dim


_FIELDS = attrgetter(*(one.name for one in fields(Entry)))  # as a row of the table


class VectorStore:
    """Entries by their notes. Where the files cannot be written, what is added is kept for this process alone."""

    def __init__(self, path: Path) -> None:
        """`path`: of the table; the numbers lie beside it."""
        self._path, self._numbers_path = path, numbers_file(path)
        self.entries: dict[str, Entry] = {}
        self._numbers = np.empty(0, np.float32)
        self._state: tuple[int, ...] = ()
        self._holes = False  # whether the numbers hold what no entry accounts for
        self._load()

    def best(self, query: Vectors, among: Collection[Entry], limit: int) -> list[str]:
        """The paths of the entries whose best row is nearest to `query` (d,), nearest first; all have its length."""
        entries = sorted((one for one in among if one.rows), key=lambda one: one.start)
        if not entries:
            return []
        starts, ends = np.array([(one.start, one.end) for one in entries]).T
        breaks = [0, *np.flatnonzero(starts[1:] != ends[:-1]) + 1, len(entries)]
        spans = [self._numbers[starts[a] : ends[b - 1]] for a, b in pairwise(breaks)]
        scores = np.concatenate([span.reshape(-1, len(query)) @ query for span in spans])
        first = np.cumsum([0, *(one.rows for one in entries[:-1])])
        found = np.maximum.reduceat(scores, first).tolist()
        ranked = heapq.nsmallest(limit, zip((-score for score in found), (one.path for one in entries), strict=True))
        return [path for _, path in ranked]

    def update(self, added: Sequence[tuple[Entry, Vectors]], removed: Collection[str] = ()) -> None:
        """Adds entries, in place of those of the same notes, and removes others."""
        removed = {*removed, *(entry.note for entry, _ in added)}
        if not (added or self._holes or removed & self.entries.keys()):
            return
        try:
            private_folder(self._path.parent)
            with FileLock(self._path.with_suffix(".lock"), timeout=_WAIT, mode=0o600):
                if self._state != _state(self._path):
                    self._load()  # another process wrote
                self._write(added, removed & self.entries.keys())
        except (OSError, Timeout, NotImplementedError):
            end = len(self._numbers)
            self._numbers = np.concatenate([self._numbers, *(vectors.ravel() for _, vectors in added)])
            self._account(added, removed, end)

    def _write(self, added: Sequence[tuple[Entry, Vectors]], removed: Collection[str]) -> None:
        end = max((one.end for one in self.entries.values()), default=0)
        live = sum(one.end - one.start for note, one in self.entries.items() if note not in removed)
        if self._holes or len(self._numbers) != end or end - live > max(live, _SPARE) or not live:
            kept = [one for note, one in self.entries.items() if note not in removed]
            numbers = [self._numbers[one.start : one.end] for one in kept]
            starts = np.cumsum([0, *map(len, numbers)]).tolist()
            self.entries = {one.note: replace(one, start=at) for one, at in zip(kept, starts, strict=False)}
            write_whole(self._numbers_path, b"".join(part.tobytes() for part in numbers), private=True)
            self._holes, end, removed = False, starts[-1], ()
        descriptor = os.open(self._numbers_path, os.O_RDWR)
        with open(descriptor, "r+b", buffering=0) as file:
            # The numbers before the table: after a kill in between, a checksum or the file's length tells.
            for one in (self.entries[note] for note in removed):
                file.seek(4 * one.start)
                file.write(bytes(4 * (one.end - one.start)))
            file.seek(4 * end)
            file.write(b"".join(np.ascontiguousarray(vectors, np.float32).tobytes() for _, vectors in added))
        self._account(added, removed, end)
        table = json.dumps([_FIELDS(one) for one in self.entries.values()]).encode()
        write_whole(self._path, _HEAD.pack(_MAGIC, crc32c(table)) + table, private=True)
        self._numbers, self._state = _mapped(self._numbers_path), _state(self._path)
        self._holes = len(self._numbers) != max((one.end for one in self.entries.values()), default=0)

    def _account(self, added: Sequence[tuple[Entry, Vectors]], removed: Collection[str], end: int) -> None:
        for note in removed:
            self.entries.pop(note, None)
        for entry, vectors in added:
            content = np.ascontiguousarray(vectors, np.float32)
            self.entries[entry.note] = replace(entry, start=end, crc=crc32c(content.tobytes()))
            end += content.size

    def _load(self) -> None:
        self._state, table = _state(self._path), _table(self._path)
        self._numbers = numbers = _mapped(self._numbers_path)
        whole = [one for one in table or () if one.end <= len(numbers) and _checksum(numbers, one) == one.crc]
        self.entries = {one.note: one for one in whole}
        end = max((one.end for one in whole), default=0)
        self._holes = len(whole) != len(table or ()) or len(numbers) != end or (table is None and self._path.exists())


def numbers_file(path: Path) -> Path:
    """Where the numbers of the table at `path` lie."""
    return path.with_suffix(".f32")


def _table(path: Path) -> list[Entry] | None:
    """What a table holds; None when it is not, byte for byte, what was written."""
    try:
        content = path.read_bytes()
        magic, checksum = _HEAD.unpack_from(content)
        if magic != _MAGIC or checksum != crc32c(memoryview(content)[_HEAD.size :]):
            return None
        return [Entry(*row) for row in json.loads(content[_HEAD.size :])]
    except (OSError, ValueError, TypeError, struct.error):
        return None


def table_paths(path: Path) -> dict[str, str]:
    """Paths by note, of a table; its numbers are not looked at."""
    return {one.note: one.path for one in _table(path) or ()}


def _checksum(numbers: Vectors, one: Entry) -> int:
    return int(crc32c(numbers[one.start : one.end].data.cast("B"))) if one.rows else int(crc32c(b""))


def _mapped(path: Path) -> Vectors:
    with suppress(OSError, ValueError):
        if count := path.stat().st_size // 4:
            return np.memmap(path, np.float32, "r", shape=(count,))
    return np.empty(0, np.float32)


def _state(path: Path) -> tuple[int, ...]:
    """Another one after each write: a file that is replaced is another file."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns
