"""Codecs by name: what a memory file says of itself -> the codec that reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from minimemo.errors import MemoError
from minimemo.memory.codec import Codec, ExactCodec, KVLayout
from minimemo.memory.int4 import Int4Codec
from minimemo.memory.transform import KltCodec

if TYPE_CHECKING:
    from minimemo.memory.profile import Profile

CODECS: dict[str, set[str]] = {  # name -> its own parameters
    ExactCodec.name: set(),
    Int4Codec.name: {"sinks", "key_group", "value_group"},
    KltCodec.name: {"profile", "key_step", "value_step", "sinks"},
}


def make_codec(name: str, params: Mapping[str, Any], find_profile: Callable[[str], Profile] | None = None) -> Codec:
    """The codec called `name`. Raises MemoError for unknown names and parameters: both may come from a file.

    find_profile: gives the Profile of a hash; the transform codec cannot be made without.
    """
    if not isinstance(name, str) or name not in CODECS:
        raise MemoError(f"codec {name!r} is unknown; known: {', '.join(CODECS)}")
    if not isinstance(params, Mapping):
        raise MemoError(f"codec {name!r}: parameters must be an object, got {params!r}")
    try:
        layout = KVLayout(*(params[key] for key in ("num_layers", "num_kv_heads", "head_dim", "dtype")))
    except KeyError as error:
        raise MemoError(f"codec {name!r}: parameter {error} is missing") from None
    options = {key: value for key, value in params.items() if key not in KVLayout.__dataclass_fields__}
    unknown = options.keys() - CODECS[name]
    if unknown:
        raise MemoError(f"codec {name!r}: unknown parameter {', '.join(sorted(map(repr, unknown)))}")
    if name == ExactCodec.name:
        return ExactCodec(layout)
    if name == Int4Codec.name:
        return Int4Codec(layout, **options)
    return _transform_codec(layout, options, find_profile)


def _transform_codec(layout: KVLayout, options: dict[str, Any], find_profile: Callable[[str], Profile] | None) -> Codec:
    missing = CODECS[KltCodec.name] - options.keys()
    if missing:
        raise MemoError(f"codec 'klt': parameter {', '.join(sorted(map(repr, missing)))} is missing")
    hash_ = options.pop("profile")
    if not isinstance(hash_, str) or find_profile is None:
        raise MemoError(f"codec 'klt': profile {hash_!r} cannot be looked up")
    return KltCodec.make(layout, find_profile(hash_), **options)
