"""Which ranking finds the answer? Share of questions whose answer lies whole in the first k passages, by ranking.

    python -m bench.passage_recall [--data DIR]

Vectors alone, words alone (BM25), reciprocal rank fusion of both, and their standard scores added with several weights.
Prints a table and one JSON line. Needs ../shared/data and the default embedder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.questions import DATA
from bench.vectors import passage_vectors, query_vectors
from minimemo.retrieval.chunks import split
from minimemo.retrieval.fusion import fuse
from minimemo.retrieval.lexical import LexicalIndex
from minimemo.runtime import open_embedder

SETS = {
    "xquad_en": "xquad_en",
    "xquad_zh": "xquad_zh",
    "cmrc_60k": "cmrc",
    "drcd_100k": "drcd",
}  # document -> questions
FIRST = (1, 2, 3, 5)
WEIGHTS = (0.3, 0.5, 0.6, 0.7)  # of the vectors


def reciprocal_ranks(rankings: list[npt.NDArray[np.float32]], constant: int = 60) -> npt.NDArray[np.float32]:
    """The sum of 1 / (constant + rank) over rankings (q, n)."""
    ranks = [np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) for scores in rankings]
    return np.sum([1 / (constant + rank) for rank in ranks], axis=0, dtype=np.float32)


def recalls(scores: npt.NDArray[np.float32], holds: npt.NDArray[np.bool_]) -> list[float]:
    """Share of rows whose first k passages by `scores` (q, n) hold the answer, for each k of FIRST."""
    found = np.take_along_axis(holds, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    return [float(found[:, :k].any(axis=1).mean()) for k in FIRST]


def main() -> None:
    parser = argparse.ArgumentParser(description="recall by ranking")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--embedder")
    args = parser.parse_args()
    embedder = open_embedder(args.embedder).embedder
    results: dict[str, dict[str, list[float]]] = {}
    print(f"{'document':<12}{'ranking':<12}" + "".join(f"{f'first {k}':>9}" for k in FIRST))
    for document, name in SETS.items():
        text = (args.data / "docs" / f"{document}.txt").read_bytes().decode()
        rows = [json.loads(line) for line in (args.data / "qa" / f"{name}.jsonl").open(encoding="utf-8")]
        rows = [row for row in rows if row["doc_id"] == document and "answer_span" in row]
        chunks = split(text, embedder.offsets(text))
        bounds = np.array([(chunk.start, chunk.end) for chunk in chunks])
        spans = np.array([row["answer_span"] for row in rows])
        holds = (bounds[None, :, 0] <= spans[:, :1]) & (spans[:, 1:] <= bounds[None, :, 1])
        questions = [row["question"] for row in rows]
        vectors = query_vectors(embedder, questions) @ passage_vectors(embedder, [chunk.text for chunk in chunks]).T
        index = LexicalIndex([chunk.text for chunk in chunks])
        words = np.stack([index.scores(question) for question in questions])
        rankings = {"vectors": vectors, "words": words, "ranks": reciprocal_ranks([vectors, words])}
        rankings |= {f"fused {w}": fuse([vectors, words], [w, 1 - w]) for w in WEIGHTS}
        results[document] = {ranking: recalls(scores, holds) for ranking, scores in rankings.items()}
        for ranking, found in results[document].items():
            print(f"{document:<12}{ranking:<12}" + "".join(f"{share:>9.3f}" for share in found), flush=True)
    print(json.dumps({"bench": "passage_recall", "first": FIRST, "results": results}))


if __name__ == "__main__":
    main()
