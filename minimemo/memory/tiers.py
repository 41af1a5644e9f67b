"""Tiers: what a user asks of a memory, in one word -> a codec with its parameters.

Rule of this file: nothing heavy is imported with it, the command line lists the tiers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from minimemo.models.cachedir import profiles_dir

if TYPE_CHECKING:
    from minimemo.memory.codec import Codec, KVLayout

# What rounding may cost in keys and in values: KL divergence of the next token, as the layers' weights predict it for
# small steps. Real divergence is below it, since quiet components are off by less than a step's rounding.
COSTS: Mapping[str, tuple[float, float]] = {
    "high": (0.04, 0.035),
    "balanced": (0.1, 0.1),
    "small": (0.25, 0.25),
}
TIERS = ("exact", "int4", *COSTS)


def needs_profile(tier: str) -> bool:
    """Whether a tier is the transform codec's."""
    return tier in COSTS


def recipe_of(tier: str, layout: KVLayout, profile: str | None = None) -> tuple[str, dict[str, Any]]:
    """(codec, parameters) of a tier; profile: the hash of one, for the tiers that need it."""
    from minimemo.memory.codec import KLT, make_codec
    from minimemo.memory.klt import SINKS

    if tier not in COSTS:
        return tier, make_codec(tier, asdict(layout)).params()
    key_step, value_step = (math.sqrt(12 * cost / layout.num_layers) for cost in COSTS[tier])
    steps = {"key_step": round(key_step, 6), "value_step": round(value_step, 6)}
    return KLT, {**asdict(layout), "profile": profile, **steps, "sinks": SINKS}


def codec_of(name: str, params: Mapping[str, Any]) -> Codec:
    """The codec that a memo names; profiles are looked up in minimemo's folder. Raises MemoError."""
    from minimemo.memory.codec import make_codec
    from minimemo.memory.profile import load_profile

    return make_codec(name, params, lambda hash_: load_profile(hash_, profiles_dir()))
