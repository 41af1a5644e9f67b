"""Numbers of many documents in two files: a table of whose they are, and the numbers, which are mapped into memory.

What is added goes behind the numbers that are there and at the end of the table (journal.py), what is removed is
overwritten with zeros, and a file of numbers that is half empty, or holds what no entry accounts for, is written anew
without the holes. So one document costs the same among thousands as alone. A checksum covers the numbers of each entry:
an entry that is damaged is left out, as if it had never been added.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from minimemo.files import write_whole
from minimemo.journal import Journal, locked

Numbers: TypeAlias = npt.NDArray[Any]

_SPARE = 1 << 18  # numbers that may be holes, however few others there are: 1 MB


@dataclass(frozen=True, slots=True)
class Entry:
    """A document's numbers: `rows` of `dim` from `start` on. path: its key; stamp: what they were read from; model,
    embedder: fingerprints."""

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


_FIELDS = attrgetter(*(one.name for one in fields(Entry)[1:]))  # as the table has them, by path


class NumberStore:
    """Entries by their paths; numbers of 4 bytes. Where the files cannot be written, or there is no path, what is added
    is kept for this process alone."""

    KIND: ClassVar[type[np.generic]] = np.float32

    def __init__(self, path: Path | None, check: bool = True) -> None:
        """`path`: of the table; the numbers lie beside it. check: whether every entry is compared with its checksum."""
        self._path, self._check = path, check
        self.entries: dict[str, Entry] = {}
        self._numbers: Numbers = np.empty(0, self.KIND)
        self._holes = False  # whether the numbers hold what no entry accounts for
        self._derived: dict[str, Any] = {}  # of the entries, until they change
        self._file = 0
        self._table: Journal | None = None
        if path is not None:
            self._table = Journal(path)
            self._take_in(self._table.values, {})

    def in_order(self) -> list[Entry]:
        """The entries that have numbers, as those lie in the file."""
        if "in order" not in self._derived:
            some = (one for one in self.entries.values() if one.rows)
            self._derived["in order"] = sorted(some, key=attrgetter("start"))
        order: list[Entry] = self._derived["in order"]
        return order

    def update(self, added: Sequence[tuple[Entry, Numbers]], removed: Collection[str] = ()) -> None:
        """Adds entries, in place of those of the same paths, and removes others."""
        sweep, removed = bool(removed), {*removed, *(entry.path for entry, _ in added)}
        if not (added or self._holes or removed & self.entries.keys()):
            return
        try:
            if self._table is None or self._path is None:
                raise FileNotFoundError
            with locked(self._path):
                self._catch_up()
                self._write(added, removed & self.entries.keys(), sweep)
        except (OSError, NotImplementedError):  # a lock that did not come in time is an OSError too
            end = len(self._numbers)
            self._numbers = np.concatenate([self._numbers, *(numbers.ravel() for _, numbers in added)])
            for path in removed:
                self.entries.pop(path, None)
            self.entries |= {one.path: one for one in _placed(added, end)}
            self._derived = {}

    def _write(self, added: Sequence[tuple[Entry, Numbers]], removed: Collection[str], sweep: bool) -> None:
        assert self._table is not None and self._path is not None
        end = max((one.end for one in self.entries.values()), default=0)
        live = sum(one.end - one.start for path, one in self.entries.items() if path not in removed)
        changes: dict[str, Sequence[int | str] | None] = dict.fromkeys(removed)
        file = numbers_file(self._path)
        if self._holes or len(self._numbers) != end or end - live > max(live, _SPARE) or not live:
            kept = [one for path, one in self.entries.items() if path not in removed]
            numbers = [self._numbers[one.start : one.end] for one in kept]
            starts = np.cumsum([0, *map(len, numbers)]).tolist()
            moved = [replace(one, start=at) for one, at in zip(kept, starts, strict=False)]
            write_whole(file, b"".join(part.tobytes() for part in numbers), private=True)
            changes |= dict.fromkeys(self._table.values.keys() - self.entries.keys())
            changes |= {one.path: _FIELDS(one) for one in moved}
            end, removed = starts[-1], ()
        placed = _placed(added, end)
        with file.open("r+b", buffering=0) as numbers_at:
            # The numbers before the table: after a kill in between, a checksum or the file's length tells.
            for one in (self.entries[path] for path in removed):
                numbers_at.seek(4 * one.start)
                numbers_at.write(bytes(4 * (one.end - one.start)))
            numbers_at.seek(4 * end)
            numbers_at.write(b"".join(np.ascontiguousarray(numbers).tobytes() for _, numbers in added))
        self._take_in(self._table.write(changes | {one.path: _FIELDS(one) for one in placed}, sweep), self.entries)

    def moved(self) -> None:
        """Is told that the numbers lie elsewhere than before."""

    def refresh(self) -> None:
        """Takes in what other processes wrote."""
        if self._table is not None and (changes := self._table.read()):
            self._take_in(changes, self.entries)

    def _catch_up(self) -> None:
        """Under the lock: nobody is between the numbers and the table."""
        assert self._table is not None
        if (changes := self._table.read()) or self._holes:
            self._take_in({**dict.fromkeys(self.entries), **self._table.values, **changes}, {})

    def _take_in(self, changes: dict[str, Sequence[int | str] | None], entries: dict[str, Entry]) -> None:
        """Makes entries of changes to the table, those that are as they were written."""
        assert self._table is not None and self._path is not None
        self._numbers = numbers = _mapped(numbers_file(self._path), self.KIND)
        written, self._file = self._file, _identity(numbers_file(self._path))
        if written != self._file:
            self.moved()
        self._holes, self._derived = self._table.damaged, {}
        for path, row in changes.items():
            entries.pop(path, None)
            if row is None:
                continue
            try:
                one = Entry(path, *row)  # type: ignore[arg-type]
                whole = one.end <= len(numbers) and (not self._check or _checksum(numbers, one) == one.crc)
            except (TypeError, ValueError):
                whole = False
            if whole:
                entries[path] = one
            else:
                self._holes = True
        self.entries = entries
        self._holes |= len(numbers) != max((one.end for one in entries.values()), default=0)


def _placed(added: Sequence[tuple[Entry, Numbers]], end: int) -> list[Entry]:
    """Entries as they stand when their numbers are written behind `end` others."""
    placed = []
    for entry, numbers in added:
        content = np.ascontiguousarray(numbers)
        placed.append(replace(entry, start=end, crc=crc32c(content.tobytes())))
        end += content.size
    return placed


def numbers_file(path: Path) -> Path:
    """Where the numbers of the table at `path` lie."""
    return path.with_suffix(".numbers")


def _identity(path: Path) -> int:
    """Another one after each writing anew: while the file is mapped its number is not given to another."""
    return path.stat().st_ino if path.exists() else 0


def _checksum(numbers: Numbers, one: Entry) -> int:
    return int(crc32c(numbers[one.start : one.end].data.cast("B"))) if one.rows else int(crc32c(b""))


def _mapped(path: Path, kind: type[np.generic]) -> Numbers:
    with suppress(OSError, ValueError):
        if count := path.stat().st_size // 4:
            return np.memmap(path, kind, "r", shape=(count,)).view(np.ndarray)  # whose slices are quicker
    return np.empty(0, kind)
