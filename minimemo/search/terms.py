"""Which words many documents hold: what tells a document apart that vectors blur, a name, a number, an order's code.

Of each document the 32-bit hashes of its terms are kept, rising. A term of a question is looked up in all documents at
once, by halving: some steps for any length. A document's score is the sum of how rare the terms are that it holds
(inverse document frequency: Sparck Jones 1972); how often it holds them tells little of whole documents.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from minimemo.search.numbers import NumberStore
from minimemo.text.words import terms


class TermStore(NumberStore):
    """The terms of documents, by their paths."""

    KIND: ClassVar[type[np.generic]] = np.uint32

    def scores(self, question: str, paths: Sequence[str]) -> npt.NDArray[np.float32]:
        """How much of a question's terms, the rarer the more, the documents hold (n,)."""
        sought = hashes([question])
        if not len(sought) or not len(self._numbers):
            return np.zeros(len(paths), np.float32)
        if self._derived.get("paths") is not paths:
            spans = [(one.start, one.end) if (one := self.entries.get(path)) else (0, 0) for path in paths]
            starts, ends = np.ascontiguousarray(np.array(spans, np.int64).T)
            self._derived |= {"paths": paths, "before": starts - 1, "last": ends - 1}
        before, last = self._derived["before"], self._derived["last"]
        largest = 1 << int((last - before).max()).bit_length() >> 1
        scores = np.zeros(len(paths), np.float32)
        at, values, less = np.empty_like(before), np.empty(len(paths), np.uint32), np.empty(len(paths), np.bool_)
        for term in sought:  # one by one: what is worked on stays in the cache
            low, step = before.copy(), largest  # the last place of each document whose hash is less
            while step:
                np.minimum(np.add(low, step, out=at), last, out=at)
                self._numbers.take(at, out=values, mode="wrap")  # of a document without terms it may be any place
                np.copyto(low, at, where=np.less(values, term, out=less))
                step >>= 1
            holds = (low < last) & (self._numbers.take(low + 1, mode="clip") == term)
            if holders := int(holds.sum()):
                scores[holds] += math.log1p((len(paths) - holders + 0.5) / (holders + 0.5))
        return scores


def hashes(texts: Iterable[str]) -> npt.NDArray[np.uint32]:
    """The hashes of the terms of some texts (n,), each once, rising."""
    held: set[str] = set()
    for text in texts:
        held.update(terms(text))
    return np.unique(np.array([zlib.crc32(term.encode(errors="surrogatepass")) for term in held], np.uint32))
