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
            self._derived |= {"paths": paths, "spans": np.array(spans, np.int64)}
        starts, ends = self._derived["spans"].T
        steps, last = int((ends - starts).max()).bit_length(), len(self._numbers) - 1
        scores = np.zeros(len(paths), np.float32)
        for term in sought:  # one by one: what is worked on stays in the cache
            low, size = starts.copy(), ends - starts
            for _ in range(steps):
                half = size >> 1
                below = (self._numbers.take(low + half, mode="clip") < term) & (size > 0)
                low += np.where(below, half + 1, 0)
                size = np.where(below, size - half - 1, half)
            holds = (low < ends) & (self._numbers[np.minimum(low, last)] == term)
            if holders := int(holds.sum()):
                scores[holds] += math.log1p((len(paths) - holders + 0.5) / (holders + 0.5))
        return scores


def hashes(texts: Iterable[str]) -> npt.NDArray[np.uint32]:
    """The hashes of the terms of some texts (n,), each once, rising."""
    held = {zlib.crc32(term.encode(errors="surrogatepass")) for text in texts for term in terms(text)}
    return np.array(sorted(held), np.uint32)
