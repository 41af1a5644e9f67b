"""Vectors of texts, kept in minimemo's folder by what they were made of: a second run embeds nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from minimemo.files import cache_dir
from minimemo.memo.passages import GROUP
from minimemo.search.embedder import Embedder


def passage_vectors(embedder: Embedder, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """(n, dim), in the groups that a build embeds together, so that they are the build's own."""
    parts = [_vectors(embedder, texts[at : at + GROUP], "passages") for at in range(0, len(texts), GROUP)]
    return np.concatenate(parts) if parts else np.empty((0, embedder.dim), np.float32)


def query_vectors(embedder: Embedder, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """(n, dim)."""
    return _vectors(embedder, texts, "queries")


def _vectors(embedder: Embedder, texts: Sequence[str], kind: str) -> npt.NDArray[np.float32]:
    key = json.dumps([embedder.fingerprint(), str(embedder.encoder.dtype), kind, list(texts)])
    folder = cache_dir() / "bench" / "vectors"
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    if path.exists():
        kept: npt.NDArray[np.float32] = np.load(path)
        return kept
    made = embedder.embed_passages(texts) if kind == "passages" else embedder.embed_queries(texts)
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, made)
    part.replace(path)
    return made
