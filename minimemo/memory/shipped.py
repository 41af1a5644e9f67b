"""Profiles that come with the package, of models that most people begin with: the first build need not measure.

A file MODEL.profile is one zstd frame over safetensors. Of each Transform it has `mean`, `weight` and `deviation` as
a profile has them; `codes` (r, C) uint8, `beyond` (k,) int16 at the flat places `at` (k,) int32, and `step` (r,): row
i of the basis is ((codes - 128) + beyond) * step. Components that no tier needs are left out. Openings are as in a
profile, in float16. Its metadata names the model's fingerprint: of another file of that model, the profile is not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch
import zstandard
from safetensors.torch import load
from torch import Tensor

from minimemo.memory.profile import Opening, Profile, Transform, load_profile, profile_of, save_profile

ENDING = ".profile"


def profile_at_hand(model: str, folder: Path) -> Profile | None:
    """The newest profile of a model (by fingerprint) in `folder`; where there is none, the one that the package has,
    which is written there; else None. Raises MemoError for a damaged one, InputError if it cannot be written."""
    hash_ = profile_of(model, folder)
    return load_profile(hash_, folder) if hash_ is not None else shipped_profile(model, folder)


def shipped_profile(model: str, folder: Path) -> Profile | None:
    """Writes the profile that the package has of a model (by fingerprint) into `folder`; None where it has none.
    Raises InputError if it cannot be written. The same package gives the same profile everywhere."""
    for file in resources.files("minimemo.memory").iterdir():
        if file.name.endswith(ENDING):
            content = zstandard.ZstdDecompressor().decompress(file.read_bytes())
            if described(content)["model"] == model:
                keys, values, openings = unpacked(load(content))
                return save_profile(model, keys, values, folder, openings)
    return None


def described(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + length])["__metadata__"])


def unpacked(tensors: Mapping[str, Tensor]) -> tuple[list[Transform], list[Transform], list[Opening]]:
    """Keys, values and openings of a profile from what a file holds."""
    keys, values = (
        [_transform(tensors, f"{kind}.{at}.") for at in _numbers(tensors, kind)] for kind in ("keys", "values")
    )
    openings = [
        Opening(tensors[f"openings.{at}.ids"], tensors[f"openings.{at}.kv"]) for at in _numbers(tensors, "openings")
    ]
    return keys, values, openings


def _numbers(tensors: Mapping[str, Tensor], kind: str) -> range:
    return range(len({name.split(".")[1] for name in tensors if name.startswith(f"{kind}.")}))


def _transform(tensors: Mapping[str, Tensor], prefix: str) -> Transform:
    mean, weight, deviation, codes, step, at, beyond = (
        tensors[prefix + name] for name in ("mean", "weight", "deviation", "codes", "step", "at", "beyond")
    )
    whole = codes.to(torch.int16) - 128
    whole.view(-1)[at.long()] += beyond
    return Transform(mean, weight, (whole * step[:, None]).half(), deviation)
