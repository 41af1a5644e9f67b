"""How near to exact search is the sketch of a large library, and what does it take? Vectors as its passages lie."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from bench.common.data import questions
from bench.common.report import show
from bench.scale.picking import SETS, documents, embedded, embedder
from minimemo.search import sketch

COLUMNS = (("index", "<14"), ("setting", "7"), ("build_s", "8.1f"), ("ms", "7.1f"), ("recall", "7.3f"))
K, QUESTIONS = 10, 60


def run(data: Path, characters: int, count: int) -> dict[str, Any]:
    """Compares exact search and the sketch, each on one core."""
    faiss.omp_set_num_threads(1)
    vectors = synthetic(np.concatenate([*embedded(documents(data, characters), None).values()]), count)
    asked = [question.text for name in SETS for question in questions(data, name, 99999)]
    queries = embedder().embedder.embed_queries(asked[:: max(1, len(asked) // QUESTIONS)][:QUESTIONS])
    return {"vectors": count, "rows": show(COLUMNS, _rows(vectors, queries))}


def _rows(vectors: np.ndarray, queries: np.ndarray) -> Iterator[dict[str, Any]]:
    begun = time.process_time()
    nearest = [{*np.argpartition(-(vectors @ query), K)[:K].tolist()} for query in queries]
    milliseconds = 1e3 * (time.process_time() - begun) / len(queries)
    yield {"index": "exact", "setting": None, "build_s": None, "ms": milliseconds, "recall": 1.0}
    begun = time.process_time()
    made = sketch.Sketch([vectors])
    row = {"index": "sketch", "build_s": time.process_time() - begun}
    for compared in (400, 1000, 2000):
        sketch.COMPARED = compared
        begun, right = time.process_time(), 0
        for query, wanted in zip(queries, nearest, strict=True):
            some = made.nearest(query)
            right += len(wanted & {*some[np.argsort(-(vectors[some] @ query))[:K]].tolist()})
        milliseconds = 1e3 * (time.process_time() - begun) / len(queries)
        yield {**row, "setting": compared, "ms": milliseconds, "recall": right / K / len(queries)}


def synthetic(real: np.ndarray, count: int) -> np.ndarray:
    """Unit vectors (count, d): mixtures of two real ones with noise of their own covariance, 0.6 times as wide."""
    random = np.random.default_rng(0)
    _, spread, axes = np.linalg.svd(real - real.mean(0), full_matrices=False)
    made = np.empty((count, real.shape[1]), np.float32)
    for start in range(0, count, 50_000):
        rows = made[start : start + 50_000]
        share = random.uniform(0.5, 1, (len(rows), 1)).astype(np.float32)
        one, two = (real[random.integers(0, len(real), len(rows))] for _ in range(2))
        noise = random.normal(size=(len(rows), len(spread))).astype(np.float32) * (spread / np.sqrt(len(real)))
        rows[:] = share * one + (1 - share) * two + np.float32(0.6) * noise @ axes
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return made
