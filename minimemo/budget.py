"""A memory.bin of at most so many bytes: steps of the transform codec that fit, and what to expect of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minimemo.errors import InputError
from minimemo.memory.tiers import COARSEST, FINEST, expected_quality, transform_recipe
from minimemo.sizes import size

if TYPE_CHECKING:
    from minimemo.memory.codec import KVLayout
    from minimemo.memory.profile import Profile

MARGIN = 1.1  # a document may take that many times what is expected of one like the profile's texts


@dataclass(frozen=True, slots=True)
class Fit:
    """The codec with its parameters, the bytes that it may come to, and a line that says what to expect."""

    codec: str
    params: dict[str, Any]
    bytes: int
    note: str


def fit(budget: int, layout: KVLayout, profile: Profile, opening: Sequence[int], tokens: int) -> Fit:
    """For a document of `tokens` tokens behind an opening (ids). Raises InputError, with the smallest budget that
    works, when this one is too small."""
    from minimemo.memory.klt import SINKS
    from minimemo.memory.rate import LARGEST_STEPS, memory_bytes, steps_for_memory

    fp16 = 2 * 2 * layout.num_layers * layout.num_kv_heads * layout.head_dim
    known = any(found.ids.tolist() == list(opening[: len(found.ids)]) for found in profile.openings)
    exact = len(opening) if known else SINKS  # tokens that the codec leaves out, or stores as they are
    coded = max(1, len(opening) + tokens - exact)
    stored = 0 if known else exact * fp16 * layout.torch_dtype.itemsize // 2
    whole = fp16 * (len(opening) + tokens)
    bare = memory_bytes(profile, *LARGEST_STEPS, coded)  # what a file takes that holds nothing
    least = MARGIN * max(whole / COARSEST, 2 * bare) + stored
    if budget < least:
        raise InputError(
            f"budget {size(budget)}: too small for {tokens:,} tokens; the smallest that works is {_rounded_up(least)}"
        )
    wanted = min((budget - stored) / MARGIN, whole / FINEST)
    steps = steps_for_memory(profile, wanted, coded)
    expected = memory_bytes(profile, *steps, coded) + stored
    ratio = whole / expected
    codec, params = transform_recipe(layout, profile, steps)
    note = f"budget {size(budget)}: memory.bin of about {size(expected)}, {ratio:.0f}x smaller than fp16 KV, "
    return Fit(codec, params, round(MARGIN * expected), note + expected_quality(ratio))


def _rounded_up(count: float) -> str:
    """Bytes with two digits, in a form that can be given back."""
    scale = 10 ** max(0, len(str(int(count))) - 2)
    whole = -int(-count // scale) * scale
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if whole >= factor:
            return f"{whole / factor:g}{unit}"
    return str(whole)
