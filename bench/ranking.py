"""How good a ranking is: nDCG and recall at k (Järvelin and Kekäläinen 2002, gains as judged), means over queries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minimemo.errors import InputError

K = 10


@dataclass(frozen=True, slots=True)
class Collection:
    """Texts, queries and judgements: query number -> {text number: gain}."""

    titles: tuple[str, ...]
    texts: tuple[str, ...]
    queries: tuple[str, ...]
    judged: Mapping[int, Mapping[int, float]]


def read_collection(folder: Path) -> Collection:
    """corpus.jsonl, queries.jsonl and qrels.tsv, as BEIR has them. Queries without a judgement are left out."""
    if not (folder / "corpus.jsonl").is_file():
        raise InputError(f"{folder}: no such set")
    corpus, asked = (
        [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        for name in ("corpus.jsonl", "queries.jsonl")
    )
    place = {row["id"]: number for number, row in enumerate(corpus)}
    gains: dict[str, dict[int, float]] = {}
    for line in (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, text, gain = line.split("\t")
        if float(gain) > 0:
            gains.setdefault(query, {})[place[text]] = float(gain)
    kept = [row for row in asked if row["id"] in gains]
    return Collection(
        tuple(row.get("title", "") for row in corpus),
        tuple(row["text"] for row in corpus),
        tuple(row["text"] for row in kept),
        {number: gains[row["id"]] for number, row in enumerate(kept)},
    )


def measured(scores: npt.NDArray[np.float32], judged: Mapping[int, Mapping[int, float]]) -> dict[str, float]:
    """{"ndcg", "recall"} at K of score rows (queries, texts)."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    ndcg = [gain_of([gains.get(int(i), 0.0) for i in order[q]], gains) for q, gains in judged.items()]
    recall = [sum(int(i) in gains for i in order[q]) / len(gains) for q, gains in judged.items()]
    return {"ndcg": float(np.mean(ndcg)), "recall": float(np.mean(recall))}


def gain_of(found: Sequence[float], judged: Mapping[int, float]) -> float:
    """nDCG at K of one query: gains in the order found against the best order of all judged."""
    best = sorted(judged.values(), reverse=True)[:K]
    return _discounted(found) / _discounted(best)


def _discounted(gains: Sequence[float]) -> float:
    return float(sum(gain / np.log2(rank + 2) for rank, gain in enumerate(gains[:K])))
