"""Unit vectors -> ranked passages: an exact inner-product index in FAISS, and the retriever that speaks text.

The retriever ranks by vectors and by words together: each finds what the other misses.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from minimemo.errors import InputError, MemoError
from minimemo.files import put
from minimemo.search.embedder import Embedder
from minimemo.search.fusion import NEIGHBOURS, fuse_expanded, over_regions, with_phrases
from minimemo.search.lexical import LexicalIndex
from minimemo.text.chunks import Chunk, Hit
from minimemo.text.sentences import sentences
from minimemo.text.words import quoted, terms

QUOTED = 0.9  # of the best sentence's score: what is quoted beside it
# The header of a flat index as faiss writes it: kind, dimension, rows, two unused, trained, metric, numbers after it.
_HEAD = struct.Struct("<4siqqqBiQ")


class VectorIndex:
    """An IndexFlatIP: exact, so a search over a book's few thousand passages needs no tuning and takes under 1 ms."""

    def __init__(self, index: Any):
        """`index` is a faiss.IndexFlatIP; use build or open."""
        self._index = index

    @classmethod
    def build(cls, vectors: npt.NDArray[np.float32]) -> VectorIndex:
        """Index the rows of `vectors` (n, d), float32 and of unit length; row numbers become the ids."""
        if vectors.ndim != 2 or vectors.dtype != np.float32 or not vectors.shape[1]:
            raise InputError(f"vectors: shape {vectors.shape} of {vectors.dtype}, not (n, d) of float32")
        if len(vectors) and not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
            raise InputError("vectors: not all finite and of unit length; normalize them first")
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors))
        return cls(index)

    @classmethod
    def open(cls, path: Path, *, dim: int | None = None, count: int | None = None) -> VectorIndex:
        """Read a saved index; `dim` and `count`, where given, must match. Raises MemoError naming the file."""
        if not path.is_file():
            raise MemoError(f"{path}: no such file; build the memo again")
        try:
            # faiss believes the sizes in a header and may reserve gigabytes for a damaged one: look first
            with path.open("rb") as file:
                head = file.read(_HEAD.size)
                rest = file.read()
            kind, width, rows, _, _, _, metric, numbers = _HEAD.unpack(head)
            whole = len(rest) == 4 * numbers and numbers == width * rows
            if kind != b"IxFI" or metric != faiss.METRIC_INNER_PRODUCT or width < 1 or rows < 0 or not whole:
                raise MemoError(f"{path}: damaged, or not a flat inner-product FAISS index; build the memo again")
            index = faiss.deserialize_index(np.frombuffer(head + rest, np.uint8))
        except (struct.error, RuntimeError) as error:
            raise MemoError(f"{path}: damaged, or not a FAISS index; build the memo again") from error
        except OSError as error:
            raise MemoError(f"{path}: cannot be read ({error.strerror})") from error
        if dim is not None and index.d != dim:
            raise MemoError(f"{path}: vectors of {index.d} numbers, the embedder makes {dim}; use the memo's embedder")
        if count is not None and index.ntotal != count:
            raise MemoError(f"{path}: {index.ntotal} vectors for {count} chunks; build the memo again")
        return cls(index)

    @classmethod
    def joined(cls, indexes: Sequence[VectorIndex]) -> VectorIndex:
        """One index of all rows, in order. Raises InputError for none, and for different dimensions."""
        if len({index.dim for index in indexes}) != 1:
            raise InputError(f"indexes of dimensions {[index.dim for index in indexes]} cannot be searched together")
        return cls.build(np.concatenate([index.vectors() for index in indexes])) if len(indexes) > 1 else indexes[0]

    @property
    def dim(self) -> int:
        return int(self._index.d)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def vectors(self, count: int | None = None) -> npt.NDArray[np.float32]:
        """(n, d), a copy; or the first `count` rows."""
        rows = len(self) if count is None else min(count, len(self))
        found: npt.NDArray[np.float32] = self._index.reconstruct_n(0, rows)
        return found

    def save(self, path: Path) -> None:
        """Write a file that faiss.read_index opens: whole or not at all. Raises OSError when it cannot be written."""
        data = faiss.serialize_index(self._index)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            part.write_bytes(data.tobytes())
            put(part, path)
        finally:
            part.unlink(missing_ok=True)

    def search(self, queries: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Best k rows for each of `queries` (q, d): scores (q, k), falling, and ids (q, k). k is clipped to n."""
        if k < 1:
            raise InputError(f"k must be at least 1, not {k}")
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise InputError(f"queries: shape {queries.shape}, not (q, {self.dim})")
        k = min(k, len(self))
        if not k or not len(queries):
            return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        scores, ids = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        return scores, ids

    def nearest(self, rows: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
        """The k rows most similar to each of `rows` (m,), without itself: ids (m, k). k is clipped to n - 1."""
        k = min(k, len(self) - 1)
        if k < 1 or not len(rows):
            return np.empty((len(rows), max(0, k)), np.int64)
        _, ids = self.search(self._index.reconstruct_batch(rows), k + 1)
        itself = ids == rows[:, None]
        itself[~itself.any(axis=1), -1] = True  # its twins have pushed it out
        return ids[~itself].reshape(len(rows), k)


class Retriever:
    """Texts in, passages out: looks a query up by its vector and by its words, and fuses the two."""

    def __init__(self, index: VectorIndex, chunks: Sequence[Chunk], embedder: Embedder, documents: Sequence[int] = ()):
        """documents: which of several documents each chunk is from; none given: all are from one."""
        if len(index) != len(chunks):
            raise MemoError(f"index of {len(index)} vectors for {len(chunks)} chunks; build the memo again")
        if index.dim != embedder.dim:
            raise MemoError(
                f"index of dimension {index.dim}, the embedder makes {embedder.dim}; use the memo's embedder"
            )
        self._index = index
        self._chunks = chunks
        self._documents = documents or [0] * len(chunks)
        self._embedder = embedder
        self._lexical = LexicalIndex([chunk.text for chunk in chunks])

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
        cosines = np.empty((len(texts), len(self._chunks)), np.float32)
        found, ids = self._index.search(self._embedder.embed_queries(texts), len(self._chunks))
        np.put_along_axis(cosines, ids, found, axis=1)
        cosines[~self._embedder.reads(texts)] = 0
        words = np.stack([self._lexical.scores(text) for text in texts])
        scores = fuse_expanded(cosines, words, self._lexical, texts, lambda rows: self._index.nearest(rows, NEIGHBOURS))
        fused = with_phrases(scores[: len(queries)], scores[len(queries) :], [row for row, _ in phrases])
        if regions:
            fused = over_regions(fused, self._documents)
        rankings = {"embedding": cosines, "lexical": words}
        tops = {name: np.argsort(-scores, axis=1, kind="stable")[:, :k] for name, scores in rankings.items()}
        best = np.argsort(-fused, axis=1, kind="stable")[:, :k]
        return [
            [
                # a passage that is among the first of neither is found by both together, or by what it stands beside
                Hit(
                    self._chunks[i],
                    float(fused[row, i]),
                    tuple(name for name, top in tops.items() if i in top[row] and rankings[name][row, i] > 0)
                    or tuple(tops),
                    self._documents[i],
                )
                for i in best[row]
            ]
            for row in range(len(queries))
        ]

    def quote(self, query: str, hits: Sequence[Hit], k: int = 3) -> list[Hit]:
        """The sentences of found passages that say best what the query asks for, best first, at most k, as chunks: the
        best, and those that come within QUOTED of it. A sentence weighs its own score among the others and its
        passage's."""
        own: list[Chunk] = []
        passages: list[Hit] = []
        for hit in hits:
            own += sentences(hit.chunk, len(own))
            passages += [hit] * (len(own) - len(passages))
        vectors = self._embedder.embed_passages([chunk.text for chunk in own])
        (ranked,) = Retriever(VectorIndex.build(vectors), own, self._embedder).retrieve([query], max(1, len(own)))
        pairs = [(hit, passages[hit.chunk.index]) for hit in ranked]
        found = [replace(hit, score=hit.score + of.score, document=of.document) for hit, of in pairs]
        found.sort(key=lambda hit: -hit.score)
        best = found[0].score if found else 0.0
        return [*found[:1], *(hit for hit in found[1:k] if hit.score > best - (1 - QUOTED) * abs(best))]
