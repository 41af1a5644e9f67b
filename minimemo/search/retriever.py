"""Texts -> passages: a query is looked up by its vector and by its words, since each finds what the other misses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import numpy as np
import numpy.typing as npt

from minimemo.errors import InputError
from minimemo.search.embedder import Embedder
from minimemo.search.fusion import NEIGHBOURS, fuse_expanded, over_regions, with_phrases
from minimemo.search.lexical import LexicalIndex
from minimemo.search.vectors import VectorIndex
from minimemo.text.cells import Tables
from minimemo.text.chunks import Chunk
from minimemo.text.figures import Figured, figured
from minimemo.text.sentences import sentence_spans
from minimemo.text.tables import headers
from minimemo.text.words import is_blob, is_code, quoted, terms

QUOTED = 0.9  # of the best sentence's score: what is quoted beside it


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage for a query, with its score (higher is better), the names of the rankings that have it among their
    first, which of the documents searched it is from, and the header of the table that it begins inside of."""

    chunk: Chunk
    score: float
    sources: tuple[str, ...]
    document: int = 0
    header: str = ""


class Retriever:
    """Searches the passages of one or several documents, by vectors and by words, and fuses the two."""

    def __init__(self, index: VectorIndex, chunks: Sequence[Chunk], embedder: Embedder, documents: Sequence[int] = ()):
        """index: the vectors of the chunks, made by `embedder`. documents: which of several documents each chunk is
        from; none given: all are from one."""
        self._index = index
        self._chunks = chunks
        self._documents = documents or [0] * len(chunks)
        self._embedder = embedder
        by_document = groupby(zip(self._documents, chunks, strict=True), key=lambda pair: pair[0])
        self._headers = [line for _, some in by_document for line in headers([chunk.text for _, chunk in some])]
        texts = [f"{header}\n{chunk.text}" for header, chunk in zip(self._headers, chunks, strict=True)]
        self._lexical = LexicalIndex(texts)
        blobs = np.array([is_blob(chunk.text) for chunk in chunks], bool)
        self._blobs = np.flatnonzero(blobs & ~blobs.all())  # searched only where there is nothing else

    def holds(self, word: str) -> bool:
        """Whether a passage has this word, whatever its case; of several, each. True of one that is not searched by."""
        return all(term in self._lexical for term in terms(word))

    def retrieve(self, queries: Sequence[str], k: int = 3, *, regions: bool = False) -> list[list[Hit]]:
        """The k best passages of each query, best first; fewer when the document has fewer.

        Scores are fused standard scores: how far a passage stands out from all others for that query, to half by what
        it quotes, if anything. regions: for what a document tells at length rather than in one place, see
        `over_regions`.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, not {k}")
        if not queries or not self._chunks:
            return [[] for _ in queries]
        phrases = [(row, phrase) for row, query in enumerate(queries) for phrase in quoted(query)]
        texts = [*queries, *(phrase for _, phrase in phrases)]
        cosines = self._cosines(texts)
        words = np.stack([self._lexical.scores(text) for text in texts])
        scores = fuse_expanded(cosines, words, self._lexical, texts, lambda rows: self._index.nearest(rows, NEIGHBOURS))
        fused = with_phrases(scores[: len(queries)], scores[len(queries) :], [row for row, _ in phrases])
        if regions:
            fused = over_regions(fused, self._documents)
        fused[:, self._blobs] = fused.min()
        for row, query in enumerate(queries):
            fused[row, self._lexical.only_holders(filter(is_code, terms(query)))] = fused[row].max() + 0.01
        rankings = {"embedding": cosines, "lexical": words}
        tops = {name: np.argsort(-scores, axis=1, kind="stable")[:, :k] for name, scores in rankings.items()}

        def hit(row: int, i: int) -> Hit:
            sources = [name for name, top in tops.items() if i in top[row] and rankings[name][row, i] > 0]
            # a passage that is among the first of neither is there by both together, or by what it stands beside
            document, header = self._documents[i], self._headers[i]
            return Hit(self._chunks[i], float(fused[row, i]), tuple(sources or tops), document, header)

        best = np.argsort(-fused, axis=1, kind="stable")[:, :k]
        return [[hit(row, i) for i in best[row]] for row in range(len(queries))]

    def characters(self, document: int, start: int, end: int) -> tuple[int, int]:
        """About which characters of a document its tokens [start, end) are: exact at the edges of passages, in
        proportion between them."""
        chunks = [chunk for chunk, of in zip(self._chunks, self._documents, strict=True) if of == document]
        tokens = np.maximum.accumulate([token for chunk in chunks for token in (chunk.token_start, chunk.token_end)])
        places = [place for chunk in chunks for place in (chunk.start, chunk.end)]
        first, past = np.interp([start, end], tokens, places) if chunks else (0, 0)
        return int(first), int(past)

    def figured(self, question: str) -> tuple[Figured, list[Hit]] | None:
        """What a question asks to count, to list or to compare, where the words and numbers of the one document that is
        searched settle it (see text.cells and text.figures), and the passages that it was computed from."""
        if len(set(self._documents)) != 1:
            return None
        if not (found := self._tables.told(question) or figured(self._text, question)):
            return None
        holding = (at for start, _ in found.spans for at, c in enumerate(self._chunks) if c.start <= start < c.end)
        return found, [self._hit(at) for at in dict.fromkeys(holding)]

    def whole(self, most: int) -> str:
        """The text of the one document that is searched, where it has at most so many characters; else nothing."""
        return self._text if len(set(self._documents)) == 1 and self._chunks[-1].end <= most else ""

    def every(self) -> list[Hit]:
        """All passages, in order."""
        return [self._hit(at) for at in range(len(self._chunks))]

    @cached_property
    def _text(self) -> str:
        """The text of the one document, where its passages stand in it."""
        ends = [0, *(chunk.end for chunk in self._chunks[:-1])]
        return "".join("\n" * (c.start - end) + c.text for c, end in zip(self._chunks, ends, strict=True))

    @cached_property
    def _tables(self) -> Tables:
        return Tables(self._text)

    def _hit(self, at: int) -> Hit:
        return Hit(self._chunks[at], 1.0, ("lexical",), self._documents[at], self._headers[at])

    def _cosines(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(texts, passages); 0 for a text of words that the embedder does not know."""
        cosines = np.empty((len(texts), len(self._chunks)), np.float32)
        scores, ids = self._index.search(self._embedder.embed_queries(texts), len(self._chunks))
        np.put_along_axis(cosines, ids, scores, axis=1)
        cosines[~self._embedder.reads(texts)] = 0
        return cosines

    def quote(self, query: str, hits: Sequence[Hit], k: int = 3) -> list[Hit]:
        """The sentences of retrieved passages that say best what the query asks for, best first, at most k, as chunks:
        the best, and those that come within QUOTED of it. A sentence weighs its own score among the others and its
        passage's."""
        sentences: list[Chunk] = []
        passages: list[Hit] = []  # of each sentence
        for hit in hits:
            for start, end in sentence_spans(hit.chunk.text):
                at, text = hit.chunk.start + start, hit.chunk.text[start:end]
                sentences.append(Chunk(len(sentences), at, at + len(text), text))
                passages.append(hit)
        vectors = self._embedder.embed_passages([chunk.text for chunk in sentences])
        retriever = Retriever(VectorIndex.build(vectors), sentences, self._embedder)
        (ranked,) = retriever.retrieve([query], max(1, len(sentences)))
        pairs = [(hit, passages[hit.chunk.index]) for hit in ranked]
        weighed = [replace(hit, score=hit.score + of.score, document=of.document) for hit, of in pairs]
        weighed.sort(key=lambda hit: -hit.score)
        best = weighed[0].score if weighed else 0.0
        return [*weighed[:1], *(hit for hit in weighed[1:k] if hit.score > best - (1 - QUOTED) * abs(best))]
