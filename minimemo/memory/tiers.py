"""Tiers: what a user asks of a memory, in one word -> a codec with its parameters.

Rule of this file: nothing heavy is imported with it, the command line lists the tiers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimemo.models.cachedir import profiles_dir

if TYPE_CHECKING:
    from minimemo.memory.codec import Codec, KVLayout
    from minimemo.memory.profile import Profile

# How many times smaller than fp16 a tier's memory.bin is to be, everything counted, on documents like those that the
# profile was made from; others come within a fifth.
RATIOS: Mapping[str, float] = {"high": 16.5, "balanced": 28, "small": 48}
TIERS = ("exact", "int4", *RATIOS)
DEFAULT = "balanced"


def needs_profile(tier: str) -> bool:
    """Whether a tier is the transform codec's."""
    return tier in RATIOS


def recipe_of(tier: str, layout: KVLayout, profile: Profile | None = None) -> tuple[str, dict[str, Any]]:
    """(codec, parameters) of a tier; profile: of the model, for the tiers that need one."""
    from minimemo.memory.codec import KLT, make_codec
    from minimemo.memory.klt import SINKS
    from minimemo.memory.rate import steps_for

    if tier not in RATIOS:
        return tier, make_codec(tier, asdict(layout)).params()
    if profile is None:
        raise ValueError(f"tier {tier} needs a profile")
    fp16 = 2 * 2 * layout.num_layers * layout.num_kv_heads * layout.head_dim
    key_step, value_step = steps_for(profile, fp16 / RATIOS[tier])
    steps = {"key_step": key_step, "value_step": value_step}
    return KLT, {**asdict(layout), "profile": profile.hash, **steps, "sinks": SINKS}


def codec_of(name: str, params: Mapping[str, Any], *folders: Path) -> Codec:
    """The codec that a memo names; profiles are looked up in minimemo's folder, then in `folders`. Raises MemoError."""
    from minimemo.memory.codec import make_codec
    from minimemo.memory.profile import load_profile

    return make_codec(name, params, lambda hash_: load_profile(hash_, profiles_dir(), *folders))
