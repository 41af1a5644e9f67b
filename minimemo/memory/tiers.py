"""Tiers and codecs by name: the words that a user asks for a memory with, and the codec that a memory names.

Rule of this file: nothing heavy is imported with it, the command line lists the tiers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimemo.errors import MemoError
from minimemo.files import profiles_dir

if TYPE_CHECKING:
    from minimemo.memory.codec import Codec
    from minimemo.memory.profile import Profile

# How many times smaller than fp16 a tier's memory.bin is to be, everything counted, on documents like those that the
# profile was made from; others come within a fifth.
RATIOS: Mapping[str, float] = {"high": 17.5, "balanced": 28.55, "small": 49.5, "tiny": 107.7}
TIERS = ("exact", "int4", *RATIOS)
DEFAULT = "balanced"
# Parameters of each codec, as files name them, besides those of the layout.
_LAYOUT = ("num_layers", "num_kv_heads", "head_dim", "dtype")
_OPTIONS: Mapping[str, set[str]] = {
    "exact": set(),
    "int4": {"sinks", "key_group", "value_group", "key_levels", "value_levels"},
    "klt": {"profile", "key_step", "value_step", "sinks", "time", "ranges"},
}


def needs_profile(tier: str) -> bool:
    """Whether a tier is the transform codec's."""
    return tier in RATIOS


def codec_of(name: str, params: Mapping[str, Any], *folders: Path) -> Codec:
    """The codec that a memo names; profiles are looked up in minimemo's folder, then in `folders`. Raises MemoError."""
    from minimemo.memory.profile import load_profile

    return make_codec(name, params, lambda hash_: load_profile(hash_, profiles_dir(), *folders))


def make_codec(name: str, params: Mapping[str, Any], find_profile: Callable[[str], Profile] | None = None) -> Codec:
    """The codec called `name`. Raises MemoError for unknown names and parameters: both may come from a file.

    find_profile: gives the Profile of a hash; the transform codec cannot be made without.
    """
    from minimemo.memory.codec import ExactCodec, KVLayout
    from minimemo.memory.int4 import Int4Codec
    from minimemo.memory.transform import TransformCodec

    if not isinstance(name, str) or name not in _OPTIONS:
        raise MemoError(f"codec {name!r} is unknown; known: {', '.join(_OPTIONS)}")
    if not isinstance(params, Mapping):
        raise MemoError(f"codec {name!r}: parameters must be an object, got {params!r}")
    options = {key: value for key, value in params.items() if key not in _LAYOUT}
    needed = {*_LAYOUT, *(_OPTIONS[name] - {"time", "ranges"} if name == "klt" else ())}
    if missing := needed - params.keys():
        raise MemoError(f"codec {name!r}: parameter {', '.join(sorted(map(repr, missing)))} is missing")
    if unknown := options.keys() - _OPTIONS[name]:
        raise MemoError(f"codec {name!r}: unknown parameter {', '.join(sorted(map(repr, unknown)))}")
    layout = KVLayout(**{key: params[key] for key in _LAYOUT})
    if name == "exact":
        return ExactCodec(layout)
    if name == "int4":
        if options:  # of a file, where 16 levels are not named
            options = {"key_levels": 16, "value_levels": 16, **options}
        return Int4Codec(layout, **options)
    hash_ = options.pop("profile")
    if not isinstance(hash_, str) or find_profile is None:
        raise MemoError(f"codec 'klt': profile {hash_!r} cannot be looked up")
    return TransformCodec(layout, find_profile(hash_), **options)
