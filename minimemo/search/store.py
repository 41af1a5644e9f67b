"""The vectors of many documents, and the search among them: exact, or where there are hundreds of thousands of rows
and questions come one after the other, by a sketch in memory (sketch.py) that says which are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from minimemo.search.numbers import Entry, NumberStore

if TYPE_CHECKING:
    from minimemo.search.sketch import Sketch

Vectors = npt.NDArray[np.float32]

FROM = 100_000  # rows below which a comparison with all of them is quick enough: some 20 ms on one core
AFTER = 16  # questions after which a sketch pays: making one takes as long as fifteen comparisons with all rows


class VectorStore(NumberStore):
    """The vectors of documents, by their paths."""

    def __init__(self, path: Path | None, check: bool = True) -> None:
        self.moved()
        self._asked = 0
        super().__init__(path, check)

    def moved(self) -> None:
        self._sketch: Sketch | None = None
        self._sketched = self._asked_of = np.empty(0, np.int64)  # starts of entries: of the sketch, and asked last

    def scores(self, query: Vectors, entries: Sequence[Entry]) -> Vectors:
        """The product of `query` (d,) with the nearest row of each entry, which are `in_order` and have rows of its
        length; of an entry that is far from the nearest it may be -inf."""
        if self._derived.get("entries") is not entries:
            self._derived["entries"] = entries
            self._derived["starts"] = np.fromiter((one.start for one in entries), np.int64, len(entries))
            self._derived["rows"] = np.fromiter((one.rows for one in entries), np.int64, len(entries))
        starts, rows = self._derived["starts"], self._derived["rows"]
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
        return found

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
