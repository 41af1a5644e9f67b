"""Which words many documents hold: what tells a document apart that vectors blur, a name, a number, an order's code.

Of each document the 32-bit hashes of its terms are kept, rising. A term of a question is looked up in all documents at
once, by halving: some steps for any length. A document's score is the sum of how rare the terms are that it holds
(inverse document frequency: Sparck Jones 1972); how often it holds them tells little of whole documents.
"""

from __future__ import annotations

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
        entries = [self.entries.get(path) for path in paths]
        if not len(sought) or not len(self._numbers):
            return np.zeros(len(paths), np.float32)
        starts = np.array([one.start if one else 0 for one in entries], np.int64)[:, None]
        ends = starts + np.array([one.rows if one else 0 for one in entries], np.int64)[:, None]
        low, high = np.broadcast_to(starts, (len(paths), len(sought))).copy(), np.broadcast_to(ends, (len(paths), 1))
        high = np.repeat(high, len(sought), axis=1)
        last = len(self._numbers) - 1
        for _ in range(int((ends - starts).max()).bit_length()):
            middle = (low + high) // 2
            below = (self._numbers[np.minimum(middle, last)] < sought) & (low < high)
            low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
        holds = (low < ends) & (self._numbers[np.minimum(low, last)] == sought)
        holders = holds.sum(axis=0)
        rarity = np.where(holders > 0, np.log1p((len(paths) - holders + 0.5) / (holders + 0.5)), 0)
        return (holds @ rarity).astype(np.float32)


def hashes(texts: Iterable[str]) -> npt.NDArray[np.uint32]:
    """The hashes of the terms of some texts (n,), each once, rising."""
    held = {zlib.crc32(term.encode(errors="surrogatepass")) for text in texts for term in terms(text)}
    return np.array(sorted(held), np.uint32)
