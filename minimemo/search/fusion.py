"""Scores by vectors and by words -> one: standard scores over the passages, words' ones saturated, weighted and added.

Cosines lie in a narrow band and BM25 has no scale of its own; what compares is how far a passage stands out from the
others (distribution-based score fusion). One rare word, though, stands out far more than any cosine can, and more so
the longer the document: towards LIMIT it counts ever less. And a passage that does not say the question's words would
lose to one that does, however near its meaning: the first CANDIDATES are scored again with the words of their nearest
passages. nDCG@10 (bench.search, multilingual-e5-small) without and with those: cranfield 0.545 and 0.568,
medquad 0.612 and 0.656, vcsum_headline 0.798 and 0.803, xquad and cmrc within 0.003. Ranks alone (reciprocal rank
fusion) lose how far a passage stands out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from minimemo.search.lexical import LexicalIndex

WEIGHT = 0.5  # of the vectors; 0.4 takes 0.008 from medquad, 0.6 takes 0.01 from cranfield and vcsum_headline
LIMIT = 6.0  # standard deviations
CANDIDATES = 100  # passages of a query; with all of them no set gains more than 0.003
NEIGHBOURS = 10  # of a passage, whose words it borrows; from 8 to 15 all sets are within 0.01
REGION = 2.0  # passages: standard deviation of the window of `over_regions`; 1.5 to 2.5 are within 0.02


def standard_scores(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(q, n) -> each row less its mean, in its standard deviations; zeros where all its scores are the same."""
    spread = scores.std(axis=1, keepdims=True)
    return (scores - scores.mean(axis=1, keepdims=True)) / np.where(spread > 1e-6, spread, np.inf)


def fuse(vectors: npt.NDArray[np.float32], words: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scores of the same passages by vectors and by words, (q, n) each -> fused scores (q, n), higher is better."""
    by_words = LIMIT * np.tanh(standard_scores(words) / LIMIT)
    return np.float32(WEIGHT) * standard_scores(vectors) + np.float32(1 - WEIGHT) * by_words


def fuse_expanded(
    vectors: npt.NDArray[np.float32],
    words: npt.NDArray[np.float32],
    lexical: LexicalIndex,
    queries: Sequence[str],
    nearest: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]],
) -> npt.NDArray[np.float32]:
    """`fuse`, then again with the words of the first CANDIDATES of each query expanded: (q, n) each -> (q, n).

    words: what `lexical` says of `queries`; nearest: passages (m,) -> their NEIGHBOURS most similar others (m, k).
    A query whose vector scores are all one, of words that the embedder does not know, is searched by words alone.
    """
    expanded = words.copy()
    first = np.argsort(-fuse(vectors, words), axis=1, kind="stable")[:, :CANDIDATES]
    named, places = np.unique(first, return_inverse=True)  # queries on one subject share most of them
    near = nearest(named)[places.reshape(first.shape)]
    for row in np.flatnonzero(np.ptp(vectors, axis=1) > 0).tolist():
        expanded[row, first[row]] = lexical.expanded_scores(queries[row], first[row], near[row])
    return fuse(vectors, expanded)


def with_phrases(
    queries: npt.NDArray[np.float32], phrases: npt.NDArray[np.float32], owners: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Scores (q, n) of queries, half of them those (p, n) of the phrases that they quote: phrase i is of query
    `owners[i]`. "Highlight the parts related to "Governing Law"" says its subject in two words of eight."""
    fused = queries.copy()
    for row in set(owners):
        own = [at for at, owner in enumerate(owners) if owner == row]
        fused[row] = (fused[row] + phrases[own].mean(axis=0)) / 2
    return fused


def over_regions(scores: npt.NDArray[np.float32], documents: Sequence[int]) -> npt.NDArray[np.float32]:
    """(q, n) -> the same smoothed over each document's passages, by a Gaussian window: a discussion that goes on for
    pages stands out as a whole, though many of its passages name its subject nowhere (TextTiling: Hearst 1997)."""
    reach = round(2 * REGION)
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / REGION) ** 2)
    window /= window.sum()
    starts = [0, *np.flatnonzero(np.diff(documents)) + 1, len(documents)]
    smooth = np.empty_like(scores)
    for start, end in pairwise(starts):
        padded = np.pad(scores[:, start:end], ((0, 0), (reach, reach)), mode="edge")
        smooth[:, start:end] = np.lib.stride_tricks.sliding_window_view(padded, len(window), axis=1) @ window
    return smooth
