"""Unit vectors and the search among them: an exact inner-product index of FAISS, and its file."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from minimemo.errors import InputError, MemoError
from minimemo.files import write_whole

# The header of a flat index as faiss writes it: kind, dimension, rows, two unused, trained, metric, numbers after it.
_HEAD = struct.Struct("<4siqqqBiQ")


class VectorIndex:
    """An IndexFlatIP: exact, so a search over a book's few thousand passages needs no tuning and takes under 1 ms."""

    def __init__(self, index: Any):
        """`index` is a faiss.IndexFlatIP; use build or open."""
        self._index = index

    @classmethod
    def build(cls, vectors: npt.NDArray[np.float32]) -> VectorIndex:
        """Index the rows of `vectors` (n, d); row numbers become the ids. InputError for other lengths than 1."""
        if len(vectors) and not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
            raise InputError("vectors: not all finite and of unit length; normalize them first")
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors))
        return cls(index)

    @classmethod
    def open(cls, path: Path, *, count: int | None = None) -> VectorIndex:
        """Read a saved index; `count`, where given, must match. Raises MemoError naming the file."""
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
        if count is not None and index.ntotal != count:
            raise MemoError(f"{path}: {index.ntotal} vectors for {count} chunks; build the memo again")
        return cls(index)

    @classmethod
    def joined(cls, indexes: Sequence[VectorIndex]) -> VectorIndex:
        """One index of all rows of several (at least one) of one dimension, in order."""
        return cls.build(np.concatenate([index.vectors() for index in indexes])) if len(indexes) > 1 else indexes[0]

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def vectors(self) -> npt.NDArray[np.float32]:
        """A copy of all rows, (n, d)."""
        rows: npt.NDArray[np.float32] = self._index.reconstruct_n(0, len(self))
        return rows

    def save(self, path: Path) -> None:
        """Write a file that faiss.read_index opens: whole or not at all. Raises OSError when it cannot be written."""
        write_whole(path, faiss.serialize_index(self._index).tobytes())

    def search(self, queries: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The k best rows (1 to n) for each of `queries` (q, d): scores (q, k), falling, and ids (q, k)."""
        scores, ids = self._index.search(queries, k)
        return scores, ids

    def nearest(self, rows: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
        """The k rows most similar to each of `rows` (m,), without itself: ids (m, k). k is clipped to n - 1."""
        k = min(k, len(self) - 1)
        if k < 1:
            return np.empty((len(rows), 0), np.int64)
        _, ids = self.search(self._index.reconstruct_batch(rows), k + 1)
        itself = ids == rows[:, None]
        itself[~itself.any(axis=1), -1] = True  # its twins have pushed it out
        return ids[~itself].reshape(len(rows), k)
