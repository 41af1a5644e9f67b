"""The vectors of many documents in two files: a table of whose they are, and the numbers, which are mapped into memory.

What is added goes behind the numbers that are there and at the end of the table (journal.py), what is removed is
overwritten with zeros, and a file of numbers that is half empty, or holds what no entry accounts for, is written anew
without the holes. So one document costs the same among thousands as alone. A checksum covers the numbers of each entry:
an entry that is damaged is left out, as if it had never been added. Where there are hundreds of thousands of rows, and
questions come one after the other, a sketch in memory (sketch.py) says which are compared.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from minimemo.files import write_whole
from minimemo.journal import Journal, locked

if TYPE_CHECKING:
    from minimemo.search.sketch import Sketch

Vectors = npt.NDArray[np.float32]

FROM = 100_000  # rows below which a comparison with all of them is quick enough: some 20 ms on one core
AFTER = 16  # questions after which a sketch pays: making one takes as long as twenty comparisons with all rows
_SPARE = 1 << 18  # numbers that may be holes, however few others there are: 1 MB


@dataclass(frozen=True, slots=True)
class Entry:
    """A document's vectors: `rows` of `dim` numbers from `start` on. path: its key; stamp: what they were read from;
    model, embedder: fingerprints."""

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


class VectorStore:
    """Entries by their paths. Where the files cannot be written, or there is no path, what is added is kept for this
    process alone."""

    def __init__(self, path: Path | None, check: bool = True) -> None:
        """`path`: of the table; the numbers lie beside it. check: whether every entry is compared with its checksum."""
        self._path, self._check = path, check
        self.entries: dict[str, Entry] = {}
        self._numbers = np.empty(0, np.float32)
        self._holes = False  # whether the numbers hold what no entry accounts for
        self._sorted: list[Entry] | None = None  # by where their numbers are
        self._sketch: Sketch | None = None
        self._sketched = self._asked_of = np.empty(0, np.int64)  # starts of entries: of the sketch, and asked last
        self._asked, self._file = 0, 0
        self._table: Journal | None = None
        if path is not None:
            self._table = Journal(path)
            self._take_in(self._table.values, {})

    def best(self, query: Vectors, limit: int, fits: Callable[[Entry], bool]) -> list[str]:
        """The paths of the entries whose best row is nearest to `query` (d,), nearest first, of those that fit; all of
        those have its length."""
        if self._sorted is None:
            self._sorted = sorted((one for one in self.entries.values() if one.rows), key=attrgetter("start"))
        if not (entries := [one for one in self._sorted if fits(one)]):
            return []
        starts = np.fromiter((one.start for one in entries), np.int64, len(entries))
        rows = np.fromiter((one.rows for one in entries), np.int64, len(entries))
        covered = self._covered(starts, rows, len(query))
        found = np.full(len(entries), -np.inf, np.float32)
        if covered and self._sketch is not None:
            first = np.cumsum(rows) - rows
            near = self._sketch.nearest(query)
            owners = np.searchsorted(first[:covered], near, "right") - 1
            at = starts[owners] + (near - first[owners]) * len(query)
            exact = self._numbers[at[:, None] + np.arange(len(query))] @ query
            np.maximum.at(found, owners, exact)
        if covered < len(entries):
            scores = [span @ query for span in self._spans(starts[covered:], rows[covered:], len(query))]
            firsts = np.cumsum(rows[covered:]) - rows[covered:]
            found[covered:] = np.maximum.reduceat(np.concatenate(scores), firsts)
        some = np.argpartition(-found, limit - 1)[:limit].tolist() if limit < len(found) else range(len(found))
        best = heapq.nsmallest(limit, ((-float(found[at]), entries[at].path) for at in some))
        return [path for score, path in best if score < np.inf]

    def _spans(self, starts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], dim: int) -> list[Vectors]:
        """The rows of entries that lie in this order, (n, dim) each run of neighbours."""
        ends = starts + rows * dim
        breaks = [0, *(np.flatnonzero(starts[1:] != ends[:-1]) + 1).tolist(), len(starts)]
        return [self._numbers[starts[a] : ends[b - 1]].reshape(-1, dim) for a, b in pairwise(breaks)]

    def _covered(self, starts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], dim: int) -> int:
        """How many of the entries, the first ones, a sketch tells of; it is made where many are asked for again."""
        if (total := int(rows.sum())) < FROM:
            return 0
        count = len(self._sketched)
        if self._sketch is not None and np.array_equal(starts[:count], self._sketched):
            if total < 1.25 * self._sketch.rows:
                return count
        else:
            self._asked = self._asked + 1 if np.array_equal(starts, self._asked_of) else 1
            self._asked_of = starts
            if self._asked < AFTER:
                return 0
        from minimemo.search.sketch import Sketch

        self._sketch, self._sketched = Sketch(self._spans(starts, rows, dim)), starts
        return len(starts)

    def update(self, added: Sequence[tuple[Entry, Vectors]], removed: Collection[str] = ()) -> None:
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
            self._numbers = np.concatenate([self._numbers, *(vectors.ravel() for _, vectors in added)])
            for path in removed:
                self.entries.pop(path, None)
            self.entries |= {one.path: one for one in _placed(added, end)}
            self._sorted = None

    def _write(self, added: Sequence[tuple[Entry, Vectors]], removed: Collection[str], sweep: bool) -> None:
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
            numbers_at.write(b"".join(np.ascontiguousarray(vectors, np.float32).tobytes() for _, vectors in added))
        self._take_in(self._table.write(changes | {one.path: _FIELDS(one) for one in placed}, sweep), self.entries)

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
        self._numbers = numbers = _mapped(numbers_file(self._path))
        written, self._file = self._file, _identity(numbers_file(self._path))
        if written != self._file:
            self._sketch, self._asked_of = None, np.empty(0, np.int64)  # the rows lie elsewhere
        self._holes, self._sorted = self._table.damaged, None
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


def _placed(added: Sequence[tuple[Entry, Vectors]], end: int) -> list[Entry]:
    """Entries as they stand when their numbers are written behind `end` others."""
    placed = []
    for entry, vectors in added:
        content = np.ascontiguousarray(vectors, np.float32)
        placed.append(replace(entry, start=end, crc=crc32c(content.tobytes())))
        end += content.size
    return placed


def numbers_file(path: Path) -> Path:
    """Where the numbers of the table at `path` lie."""
    return path.with_suffix(".f32")


def _identity(path: Path) -> int:
    """Another one after each writing anew: while the file is mapped its number is not given to another."""
    return path.stat().st_ino if path.exists() else 0


def _checksum(numbers: Vectors, one: Entry) -> int:
    return int(crc32c(numbers[one.start : one.end].data.cast("B"))) if one.rows else int(crc32c(b""))


def _mapped(path: Path) -> Vectors:
    with suppress(OSError, ValueError):
        if count := path.stat().st_size // 4:
            return np.memmap(path, np.float32, "r", shape=(count,))
    return np.empty(0, np.float32)
