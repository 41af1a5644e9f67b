"""BM25 over passages (Robertson and Zaragoza 2009): finds the names and numbers that vectors blur."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from minimemo.retrieval.words import terms

K1 = 1.2  # how soon a term said again counts no more
B = 0.75  # how much a long passage is discounted


class LexicalIndex:
    """An inverted index in memory: term -> the passages that hold it, with the weight it has in each."""

    def __init__(self, texts: Sequence[str]) -> None:
        counted = [Counter(terms(text)) for text in texts]
        lengths = [counts.total() for counts in counted]
        mean = sum(lengths) / max(1, len(lengths)) or 1.0
        postings: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        for row, (counts, length) in enumerate(zip(counted, lengths, strict=True)):
            discount = K1 * (1 - B + B * length / mean)
            for term, count in counts.items():
                postings[term].append((row, count * (K1 + 1) / (count + discount)))
        self._rows = len(texts)
        self._postings = {
            term: (
                np.array([row for row, _ in found], np.int64),
                np.array([weight for _, weight in found], np.float32)
                * np.float32(math.log1p((len(texts) - len(found) + 0.5) / (len(found) + 0.5))),
            )
            for term, found in postings.items()
        }

    def __len__(self) -> int:
        return self._rows

    def scores(self, query: str) -> npt.NDArray[np.float32]:
        """The score of every passage (n,), 0 where it shares no term with the query."""
        scores = np.zeros(self._rows, np.float32)
        for term in dict.fromkeys(terms(query)):
            if term in self._postings:
                rows, weights = self._postings[term]
                scores[rows] += weights
        return scores
