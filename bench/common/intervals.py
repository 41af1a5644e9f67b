"""Percentile bootstrap intervals (Efron and Tibshirani 1993, ch. 13): 95 %, 10,000 resamples, seeded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
TAIL = 2.5  # percent on each side


def interval(*groups: Sequence[float], seed: int = 0) -> dict[str, float]:
    """The mean of the groups' means, and its interval when each group is resampled on its own: mean, low, high.

    One group: the mean of its values. Paired differences: give the differences. No group may be empty.
    """
    random = np.random.default_rng(seed)
    means = np.stack([_resampled(np.asarray(group, np.float64), random) for group in groups])
    low, high = np.percentile(means.mean(axis=0), [TAIL, 100 - TAIL])
    return {"mean": float(np.mean([np.mean(group) for group in groups])), "low": float(low), "high": float(high)}


def _resampled(values: npt.NDArray[np.float64], random: np.random.Generator) -> npt.NDArray[np.float64]:
    """(RESAMPLES,): the mean of as many values as there are, drawn with replacement."""
    if not len(values):
        raise ValueError("no values to resample")
    rows = max(1, 2**22 // len(values))
    parts = (
        values[random.integers(0, len(values), (min(rows, RESAMPLES - at), len(values)))].mean(axis=1)
        for at in range(0, RESAMPLES, rows)
    )
    return np.concatenate(list(parts))
