"""Tokens of a block along time: groups of a few, each component in the frequencies of a discrete cosine transform.

Neighbouring tokens are alike, so the low frequencies of a component are louder and the high ones quieter than its
numbers (JPEG's reason, Ahmed et al., IEEE Trans. Computers 23, 1974), and coding by entropy takes the difference. What
follows a block averages over many of its tokens, and sees the low frequencies most.

Letters: r components, n tokens, g tokens of a group. The last n mod g tokens are a group of their own.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from minimemo.kernels.transform import MAX_GROUP, along_tokens

# Standard deviation of the frequencies of 64 tokens over that of a component's numbers: the first four, then means of
# four each. Keys and values, loud and quiet components differ by less than a tenth; a novel and a meeting, 0.5B.
_FIRST = (2.75, 1.54, 1.45, 1.38)
_FOURS = (1.25, 1.14, 1.05, 1.0, 0.95, 0.91, 0.87, 0.84, 0.81, 0.8, 0.79, 0.78, 0.77, 0.76, 0.76)


@lru_cache(maxsize=2 * MAX_GROUP)
def loudness(group: int) -> np.ndarray:
    """(g,) standard deviation of each frequency of a group over that of the component's numbers, float64."""
    squares = np.square((*_FIRST, *np.repeat(_FOURS, 4)))
    whole = np.concatenate(([0.0], np.cumsum(squares / squares.mean())))
    edges = np.interp(np.linspace(0, MAX_GROUP, group + 1), np.arange(MAX_GROUP + 1), whole)
    return np.sqrt(np.diff(edges) * group / MAX_GROUP)


@lru_cache(maxsize=2 * MAX_GROUP)
def _cosines(group: int) -> Tensor:
    """(g, g) orthonormal DCT-II: row k is a cosine of k half turns in g tokens."""
    k, t = np.arange(group)[:, None], np.arange(group)[None]
    matrix = np.cos(np.pi / group * (t + 0.5) * k) * np.sqrt(2 / group)
    matrix[0] = np.sqrt(1 / group)
    return torch.from_numpy(matrix.astype(np.float32))


def to_frequencies(x: Tensor, group: int, *, inverse: bool = False) -> None:
    """x (planes, n, columns) float32, in place: every group of tokens becomes its frequencies, the lowest first;
    inverse: frequencies become tokens again."""
    whole = x.shape[1] // group * group
    for part, size in ((x[:, :whole], group), (x[:, whole:], x.shape[1] - whole)):
        if part.numel():
            matrix = _cosines(size).T if inverse else _cosines(size)
            if part.is_cpu:
                along_tokens(matrix, part)
            else:
                grouped = part.unflatten(1, (-1, size))
                grouped.copy_(matrix.to(part.device) @ grouped)


def order(steps: np.ndarray, tokens: int, group: int, least: float) -> tuple[np.ndarray, np.ndarray]:
    """The symbols of a block of n tokens that are coded, the loudest first: where each lies in (r, n), and its standard
    deviation in steps, falling, (N,) each. steps (r,): standard deviations of the components in steps, falling; least:
    what is quieter is not coded. Equally loud ones stand by component, frequency and time."""
    times, rest = divmod(tokens, group)
    starts, spreads, counts = [], [], []
    for first, size, count in ((0, group, times), (times * group, rest, 1)):
        if size and count:
            loud = np.outer(steps, loudness(size))
            component, frequency = np.nonzero(loud >= least)
            starts.append(component * tokens + first + frequency)
            spreads.append(loud[component, frequency])
            counts.append(np.full(len(component), count))
    start, spread, many = (np.concatenate([*parts, []]) for parts in (starts, spreads, counts))
    sorted_ = np.argsort(-spread, kind="stable")
    times_of = many[sorted_].astype(np.int64)
    within = np.arange(times_of.sum()) - np.repeat(np.cumsum(times_of) - times_of, times_of)
    places = np.repeat(start[sorted_].astype(np.int64), times_of) + within * group
    return places, np.repeat(spread[sorted_], times_of)
