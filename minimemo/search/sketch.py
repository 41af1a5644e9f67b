"""Rows of numbers in few bits: what narrows a search among hundreds of thousands of them down to some that are compared
exactly.

A row is told by its products with the main directions of all rows (principal components: Jegou et al. 2010), in 8 bits
each. For the same recall in the same time IVF takes twenty times as long to make (docs/decisions/24).
"""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np
import numpy.typing as npt

DIRECTIONS, COMPARED = 128, 1000  # numbers that tell of a row; rows that are compared exactly
_SAMPLE, _AT_ONCE = 20_000, 1 << 16  # rows


class Sketch:
    """Rows in the order of some spans (n, d), d numbers each. rows: how many."""

    def __init__(self, spans: Sequence[npt.NDArray[np.float32]]) -> None:
        self.rows = sum(map(len, spans))
        step = max(1, self.rows // _SAMPLE)
        sample = np.concatenate([span[::step] for span in spans])
        directions = np.linalg.eigh(np.cov(sample.T))[1][:, : -DIRECTIONS - 1 : -1]
        self._directions = np.ascontiguousarray(directions, np.float32)
        count = self._directions.shape[1]
        self._index = faiss.IndexScalarQuantizer(count, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        self._index.train(sample @ self._directions)
        for span in spans:
            for at in range(0, len(span), _AT_ONCE):
                self._index.add(span[at : at + _AT_ONCE] @ self._directions)

    def nearest(self, query: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """The rows (m,) that may be among the nearest to a query (d,), COMPARED at most, rising."""
        _, (rows,) = self._index.search((query @ self._directions)[None], min(COMPARED, self.rows))
        found: npt.NDArray[np.int64] = np.sort(rows)
        return found
