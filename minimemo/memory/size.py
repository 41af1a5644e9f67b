"""Bytes of a memory.bin before anything is coded: the steps that a tier or a size takes, and what a budget buys.

Components of keys and values are close to Laplacian (that of most transform coefficients; Lam and Goodman, IEEE Trans.
Image Processing 9(10), 2000); the entropy of a Laplacian number rounded to a grid has a closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import log
from typing import Any

import numpy as np

from minimemo.errors import InputError
from minimemo.files import size
from minimemo.memory.codec import KVLayout
from minimemo.memory.frequencies import MAX_GROUP, loudness
from minimemo.memory.profile import Profile, Transform
from minimemo.memory.tiers import RATIOS, make_codec
from minimemo.memory.transform import FINER, KEYS_UP, SINKS, TAIL, VALUES_UP

ABOVE_ENTROPY = 1.0  # what coded symbols take, times the entropy of as many Laplacian ones
VALUE_STEP = 1.4  # times the keys' step: KL at 31x is 0.027 with it, 0.034 with 2, 0.048 with 2.8
LONG_FROM = 75.0  # ratio to fp16 from which groups of tokens are the longest
OVERHEAD = 3.0  # bytes a token: ids, checksums, index
HEADER = 600.0  # bytes of a file: header and footer
LARGEST_STEPS = 1e5, 1e5
FINEST, COARSEST = 8.0, 100.0  # ratios to fp16 between which the transform codec is worth its name
# By how much documents may pass what is expected of one like the profile's texts, at a ratio to fp16. Measured on three
# blocks of each of ten documents of bench.memory, 0.5B: 1.06 to 1.16 times at 15, 1.04 to 1.14 at 26, 1.04 to 1.12 at
# 46, 1.04 to 1.10 at 101; where neighbouring tokens are not alike at all, 0.08 more.
MARGINS = ((15.0, 1.24), (45.0, 1.17))
# KL divergence (nats, next tokens) at a ratio: bench.memory, qwen2.5-coder-0.5b, means of ten documents. Other models
# and documents come within a factor of two.
MEASURED = ((15.75, 0.0051), (26.16, 0.0122), (46.08, 0.0279), (101.4, 0.0895))


def recipe_of(tier: str, layout: KVLayout, profile: Profile | None = None) -> tuple[str, dict[str, Any]]:
    """(codec, parameters) of a tier; profile: of the model, for the tiers that need one."""
    if tier not in RATIOS:
        return tier, make_codec(tier, asdict(layout)).params()
    if profile is None:
        raise ValueError(f"tier {tier} needs a profile")
    goal, time = layout.fp16_bytes / RATIOS[tier], time_of(RATIOS[tier])
    steps = _steps(goal, lambda keys, values: bytes_per_token(profile, keys, values, time))
    return _transform(layout, profile, steps, time)


def time_of(ratio: float) -> int:
    """Tokens of a group that are coded as frequencies, in a memory so many times smaller than fp16."""
    return MAX_GROUP if ratio >= LONG_FROM else 16


def entropy(spread: np.ndarray, up: float = 0.5) -> np.ndarray:
    """Bits a symbol of Laplacian numbers with standard deviations `spread`, in steps, rounded to whole steps, away from
    zero from the fraction `up` on."""
    decay = np.sqrt(2.0) / np.maximum(spread, 1e-3)  # a step's worth of it
    nonzero, next_one = np.exp(-decay * up), np.exp(-decay)
    # which symbols are zero; of the others a sign and, geometric, how far out
    return _binary(nonzero) + nonzero * (1 + _binary(next_one) / (1 - next_one))


def step_for(half: Transform, bits: float) -> float:
    """The step at which the components of a Transform take about `bits` a token together."""
    return _where_it_falls_to(bits, lambda step: _bits(half, step))


def bytes_per_token(profile: Profile, key_step: float, value_step: float, time: int = 1) -> float:
    """Bytes that a token is expected to take, everything in memory.bin counted, in a document like the profile's."""
    kinds = (profile.keys, key_step, KEYS_UP), (profile.values, value_step, VALUES_UP)
    bits = sum(_bits(half, step, up, time) for halves, step, up in kinds for half in halves)
    return bits / 8 * ABOVE_ENTROPY + OVERHEAD


def memory_bytes(profile: Profile, key_step: float, value_step: float, time: int, tokens: int) -> float:
    """Bytes that a whole memory.bin of `tokens` coded tokens is expected to take: the last ones take more
    (transform.TAIL), which shows in a short memory."""
    near = min(TAIL, tokens)
    finer = bytes_per_token(profile, key_step / FINER, value_step / FINER)
    return HEADER + (tokens - near) * bytes_per_token(profile, key_step, value_step, time) + near * finer


def fit(
    budget: int, layout: KVLayout, profile: Profile, opening: Sequence[int], tokens: int
) -> tuple[str, dict[str, Any], str]:
    """The transform codec whose memory.bin takes at most `budget` bytes, for `tokens` tokens behind an opening (ids):
    its name, its parameters, and a line that says what to expect.

    Raises InputError, with the smallest budget that works, when this one is too small.
    """
    fp16 = layout.fp16_bytes
    in_profile = any(held.ids.tolist() == list(opening[: len(held.ids)]) for held in profile.openings)
    exact = len(opening) if in_profile else SINKS  # tokens that the codec leaves out, or stores as they are
    coded = max(1, len(opening) + tokens - exact)
    stored = 0 if in_profile else exact * fp16 * layout.torch_dtype.itemsize // 2
    whole = fp16 * (len(opening) + tokens)
    bare = memory_bytes(profile, *LARGEST_STEPS, 1, coded)  # what a file takes that holds nothing
    least = _margin(COARSEST) * max(whole / COARSEST, 2 * bare) + stored
    if budget < least:
        raise InputError(
            f"budget {size(budget)}: too small for {tokens:,} tokens; the smallest that works is {_rounded_up(least)}"
        )
    room = budget - stored
    goal = min(room / _margin(whole / room), whole / FINEST)
    time = time_of(whole / goal)
    steps = _steps(goal, lambda keys, values: memory_bytes(profile, keys, values, time, coded))
    least = memory_bytes(profile, steps[0], steps[1], time, coded)
    expected = least * (1 + _margin(whole / least)) / 2 + stored
    ratio = whole / expected
    note = f"budget {size(budget)}: memory.bin of about {size(expected)}, {ratio:.0f}x smaller than fp16 KV, "
    return *_transform(layout, profile, steps, time), note + expected_quality(ratio)


def over(budget: int, taken: int) -> str:
    """A note that a memory took more than its budget, and which budget to try."""
    smaller = size(0.98 * budget * budget / taken).replace(" ", "")
    return f"memory.bin came to {size(taken)}, above the budget of {size(budget)}; try `budget={smaller}`"


def expected_quality(ratio: float) -> str:
    """What to expect of the transform codec at a ratio to fp16, in words and as a divergence."""
    nearest = min(RATIOS, key=lambda tier: abs(log(RATIOS[tier] / ratio)))
    off = ratio / RATIOS[nearest]
    words = f"about {nearest}" if 0.8 <= off <= 1.25 else f"{'coarser' if off > 1 else 'finer'} than {nearest}"
    return f"{words} (KL about {expected_divergence(ratio):.2g})"


def expected_divergence(ratio: float) -> float:
    """KL at a ratio: a straight line of logarithms between those measured; beyond them, the nearest line goes on."""
    upper = next((at for at, (measured, _) in enumerate(MEASURED[1:-1], 1) if ratio <= measured), len(MEASURED) - 1)
    (low, low_kl), (high, high_kl) = MEASURED[upper - 1 : upper + 1]
    slope = log(high_kl / low_kl) / log(high / low)
    return float(low_kl * (ratio / low) ** slope)


def _transform(layout: KVLayout, profile: Profile, steps: tuple[float, float], time: int) -> tuple[str, dict[str, Any]]:
    """(codec, parameters) of the transform codec with these steps of keys and values."""
    named = {"key_step": steps[0], "value_step": steps[1]}
    return "klt", {**asdict(layout), "profile": profile.hash, **named, "sinks": SINKS, "time": time, "ranges": 1}


def _bits(half: Transform, step: float, up: float = 0.5, time: int = 1) -> float:
    """Bits that the components of a Transform take a token."""
    loud, counts = np.unique(loudness(time).round(9), return_counts=True)
    return float(counts @ entropy(np.outer(loud, half.deviation.double().numpy() / step), up).sum(1)) / time


def _steps(goal: float, weigh: Callable[[float, float], float]) -> tuple[float, float]:
    """Steps of keys and values at which `weigh` gives about `goal` bytes."""
    key_step = _where_it_falls_to(goal, lambda step: weigh(step, VALUE_STEP * step))
    return float(f"{key_step:.6g}"), float(f"{VALUE_STEP * key_step:.6g}")


def _where_it_falls_to(value: float, falling: Callable[[float], float]) -> float:
    low, high = -46.0, 46.0  # logarithms
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(float(np.exp(middle))) > value else (low, middle)
    return float(np.exp(high))


def _binary(p: np.ndarray) -> np.ndarray:
    """Entropy of a choice with probability p, in bits."""
    inside = np.clip(p, 1e-15, 1 - 1e-15)
    return -inside * np.log2(inside) - (1 - inside) * np.log2(1 - inside)


def _margin(ratio: float) -> float:
    (low, most), (high, least) = MARGINS
    share = min(1.0, max(0.0, log(ratio / low) / log(high / low)))
    return most + share * (least - most)


def _rounded_up(count: float) -> str:
    """Bytes with two digits, in a form that can be given back."""
    scale = 10 ** max(0, len(str(int(count))) - 2)
    whole = -int(-count // scale) * scale
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if whole >= factor:
            return f"{whole / factor:g}{unit}"
    return str(whole)
