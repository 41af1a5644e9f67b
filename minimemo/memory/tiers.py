"""Tiers: what a user asks of a memory, in one word -> a codec with its parameters.

Rule of this file: nothing heavy is imported with it, the command line lists the tiers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimemo.files import profiles_dir

if TYPE_CHECKING:
    from minimemo.memory.codec import Codec, KVLayout
    from minimemo.memory.profile import Profile

# How many times smaller than fp16 a tier's memory.bin is to be, everything counted, on documents like those that the
# profile was made from; others come within a fifth.
RATIOS: Mapping[str, float] = {"high": 16.5, "balanced": 27, "small": 48, "tiny": 107}
FINEST, COARSEST = 8.0, 100.0  # ratios between which the transform codec is worth its name
# KL divergence (nats, next tokens) at a ratio: bench.memory, qwen2.5-coder-0.5b, means of ten documents. Other models
# and documents come within a factor of two.
MEASURED = ((15.25, 0.0083), (25.33, 0.0168), (45.43, 0.0418), (100.1, 0.129))
TIERS = ("exact", "int4", *RATIOS)
DEFAULT = "balanced"


def needs_profile(tier: str) -> bool:
    """Whether a tier is the transform codec's."""
    return tier in RATIOS


def recipe_of(tier: str, layout: KVLayout, profile: Profile | None = None) -> tuple[str, dict[str, Any]]:
    """(codec, parameters) of a tier; profile: of the model, for the tiers that need one."""
    from minimemo.memory.rate import steps_for
    from minimemo.memory.registry import make_codec

    if tier not in RATIOS:
        return tier, make_codec(tier, asdict(layout)).params()
    if profile is None:
        raise ValueError(f"tier {tier} needs a profile")
    return transform_recipe(layout, profile, steps_for(profile, layout.fp16_bytes / RATIOS[tier]))


def transform_recipe(layout: KVLayout, profile: Profile, steps: tuple[float, float]) -> tuple[str, dict[str, Any]]:
    """(codec, parameters) of the transform codec with these steps of keys and values."""
    from minimemo.memory.transform import SINKS, KltCodec

    named = {"key_step": steps[0], "value_step": steps[1]}
    return KltCodec.name, {**asdict(layout), "profile": profile.hash, **named, "sinks": SINKS}


def expected_quality(ratio: float) -> str:
    """What to expect of the transform codec at a ratio to fp16, in words and as a divergence."""
    nearest = min(RATIOS, key=lambda tier: abs(log(RATIOS[tier] / ratio)))
    off = ratio / RATIOS[nearest]
    words = f"about {nearest}" if 0.8 <= off <= 1.25 else f"{'coarser' if off > 1 else 'finer'} than {nearest}"
    return f"{words} (KL about {expected_divergence(ratio):.2g})"


def expected_divergence(ratio: float) -> float:
    """Between what was measured, a straight line of logarithms; beyond it, the nearest one goes on."""
    upper = next((at for at, (known, _) in enumerate(MEASURED[1:-1], 1) if ratio <= known), len(MEASURED) - 1)
    (low, low_kl), (high, high_kl) = MEASURED[upper - 1 : upper + 1]
    slope = log(high_kl / low_kl) / log(high / low)
    return float(low_kl * (ratio / low) ** slope)


def codec_of(name: str, params: Mapping[str, Any], *folders: Path) -> Codec:
    """The codec that a memo names; profiles are looked up in minimemo's folder, then in `folders`. Raises MemoError."""
    from minimemo.memory.profile import load_profile
    from minimemo.memory.registry import make_codec

    return make_codec(name, params, lambda hash_: load_profile(hash_, profiles_dir(), *folders))
