"""A memory.bin of at most so many bytes: steps of the transform codec that fit, and what to expect of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Any

from minimemo.errors import InputError
from minimemo.files import size
from minimemo.memory.tiers import COARSEST, FINEST, expected_quality, transform_recipe

if TYPE_CHECKING:
    from minimemo.memory.codec import KVLayout
    from minimemo.memory.profile import Profile

# By how much documents may pass what is expected of one like the profile's texts, at a ratio to fp16. Measured on ten
# documents of bench.memory, 0.5B: 1.03 to 1.16 times at 15, 1.00 to 1.12 at 26, 0.99 to 1.09 at 45, 0.99 to 1.07 at 93.
MARGINS = ((15.0, 1.16), (45.0, 1.09))


@dataclass(frozen=True, slots=True)
class Fit:
    """The codec with its parameters, and a line that says what to expect."""

    codec: str
    params: dict[str, Any]
    note: str


def fit(budget: int, layout: KVLayout, profile: Profile, opening: Sequence[int], tokens: int) -> Fit:
    """For a document of `tokens` tokens behind an opening (ids). Raises InputError, with the smallest budget that
    works, when this one is too small."""
    from minimemo.memory.rate import LARGEST_STEPS, memory_bytes, steps_for_memory
    from minimemo.memory.transform import SINKS

    fp16 = layout.fp16_bytes
    known = any(found.ids.tolist() == list(opening[: len(found.ids)]) for found in profile.openings)
    exact = len(opening) if known else SINKS  # tokens that the codec leaves out, or stores as they are
    coded = max(1, len(opening) + tokens - exact)
    stored = 0 if known else exact * fp16 * layout.torch_dtype.itemsize // 2
    whole = fp16 * (len(opening) + tokens)
    bare = memory_bytes(profile, *LARGEST_STEPS, coded)  # what a file takes that holds nothing
    least = _margin(COARSEST) * max(whole / COARSEST, 2 * bare) + stored
    if budget < least:
        raise InputError(
            f"budget {size(budget)}: too small for {tokens:,} tokens; the smallest that works is {_rounded_up(least)}"
        )
    room = budget - stored
    steps = steps_for_memory(profile, min(room / _margin(whole / room), whole / FINEST), coded)
    least = memory_bytes(profile, *steps, coded)
    expected = least * (1 + _margin(whole / least)) / 2 + stored
    ratio = whole / expected
    codec, params = transform_recipe(layout, profile, steps)
    note = f"budget {size(budget)}: memory.bin of about {size(expected)}, {ratio:.0f}x smaller than fp16 KV, "
    return Fit(codec, params, note + expected_quality(ratio))


def over(budget: int, taken: int) -> str:
    """Says that a memory took more than its budget, and which one to try."""
    smaller = size(0.98 * budget * budget / taken).replace(" ", "")
    return f"memory.bin came to {size(taken)}, above the budget of {size(budget)}; try --budget {smaller}"


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
