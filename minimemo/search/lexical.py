"""BM25 over passages (Robertson and Zaragoza 2009) finds the names and numbers that vectors blur.

A passage often says "it" or "NASH" where its neighbours say the name that a question uses: it may borrow their words
(document expansion: Singhal and Pereira 1999; Tao et al. 2006).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from minimemo.text.words import terms

K1 = 1.2  # how soon a term said again counts no more
B = 0.75  # how much a long passage is discounted
BORROWED = 0.15  # of each neighbour's words; with ten from 0.1 to 0.2 all sets are even but for 0.01


class LexicalIndex:
    """An inverted index in memory: term -> the passages that hold it, and how often each does."""

    def __init__(self, texts: Sequence[str]) -> None:
        counted = [Counter(terms(text)) for text in texts]
        lengths = np.array([counts.total() for counts in counted], np.float32)
        self._lengths = lengths / max(1.0, float(lengths.sum())) * len(texts)  # of the mean
        postings: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for row, counts in enumerate(counted):
            for term, count in counts.items():
                postings[term].append((row, count))
        self._rows = len(texts)
        self._postings = {
            term: (np.array([row for row, _ in rows], np.int64), np.array([count for _, count in rows], np.float32))
            for term, rows in postings.items()
        }

    def __contains__(self, term: str) -> bool:
        return term in self._postings

    def only_holders(self, sought: Iterable[str]) -> list[int]:
        """The passages that alone hold one of some terms, each once."""
        rows = (self._postings[term][0] for term in sought if term in self._postings)
        return list(dict.fromkeys(int(holders[0]) for holders in rows if len(holders) == 1))

    def scores(self, query: str) -> npt.NDArray[np.float32]:
        """The score of every passage (n,), 0 where it shares no term with the query."""
        scores = np.zeros(self._rows, np.float32)
        for rows, counts in self._matches(query):
            scores[rows] += self._weights(counts, self._lengths[rows], len(rows))
        return scores

    def expanded_scores(
        self, query: str, rows: npt.NDArray[np.int64], near: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """The scores (m,) of the passages `rows` (m,), each with the words of its neighbours `near` (m, k) beside its
        own: BORROWED of each one's counts. How rare a term is stays as the passages' own words have it."""
        scores = np.zeros(len(rows), np.float32)
        share = np.float32(BORROWED)
        lengths = (self._lengths[rows] + share * self._lengths[near].sum(axis=1)) / (1 + share * near.shape[1])
        for holders, counts in self._matches(query):
            all_counts = np.zeros(self._rows, np.float32)
            all_counts[holders] = counts
            expanded = all_counts[rows] + share * all_counts[near].sum(axis=1)
            scores += self._weights(expanded, lengths, len(holders))
        return scores

    def _matches(self, query: str) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """For each term of a query that any passage has, the passages that have it, and how often."""
        return [self._postings[term] for term in dict.fromkeys(terms(query)) if term in self._postings]

    def _weights(
        self, counts: npt.NDArray[np.float32], lengths: npt.NDArray[np.float32], holders: int
    ) -> npt.NDArray[np.float32]:
        """What a term that `holders` passages hold adds to the scores of passages with such counts and lengths."""
        rarity = np.float32(math.log1p((self._rows - holders + 0.5) / (holders + 0.5)))
        scale = counts + np.float32(K1) * (np.float32(1 - B) + B * lengths)
        return np.asarray(rarity * np.float32(K1 + 1) * counts / scale, np.float32)
