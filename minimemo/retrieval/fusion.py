"""Scores of several rankings -> one: standard scores over the document's passages, weighted and added.

Cosines lie in a narrow band and BM25 has no scale of its own; what compares is how far a passage stands out from the
others of its document (distribution-based score fusion). Ranks alone (reciprocal rank fusion) lose how far that is:
bench/passage_recall.py, four documents, 1,431 questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def standard_scores(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(q, n) -> each row less its mean, in its standard deviations; zeros where all its scores are the same."""
    spread = scores.std(axis=1, keepdims=True)
    return (scores - scores.mean(axis=1, keepdims=True)) / np.where(spread > 1e-6, spread, np.inf)


def fuse(rankings: Sequence[npt.NDArray[np.float32]], weights: Sequence[float]) -> npt.NDArray[np.float32]:
    """Rankings of the same passages, (q, n) each, and their weights -> fused scores (q, n), higher is better."""
    fused = np.zeros_like(rankings[0])
    for scores, weight in zip(rankings, weights, strict=True):
        fused += np.float32(weight) * standard_scores(scores)
    return fused
