"""Packs a model's newest profile into the file that the package carries (minimemo/memory/shipped.py has its format).

    python -m tools.ship_profile qwen2.5-coder-0.5b

How much of a profile a tier needs was measured, not guessed: docs/decisions/19-groups-of-tokens-as-frequencies.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import zstandard
from safetensors.torch import save
from torch import Tensor

from minimemo.files import profiles_dir
from minimemo.memory.profile import Profile, Transform, load_profile, profile_of
from minimemo.memory.shipped import ENDING
from minimemo.runtime import locate_model

FOLDER = Path(__file__).parents[1] / "minimemo" / "memory"
KEPT = {"keys": 0.6, "values": 0.65}  # share of the components
LEVELS = {"keys": 44.0, "values": 18.0}  # steps to the root mean square of a row of the basis


def packed(profile: Profile, kept: dict[str, float] = KEPT, levels: dict[str, float] = LEVELS) -> bytes:
    tensors: dict[str, Tensor] = {}
    for kind, halves in (("keys", profile.keys), ("values", profile.values)):
        for at, half in enumerate(halves):
            tensors |= {f"{kind}.{at}.{name}": x for name, x in _coded(half, kept[kind], levels[kind]).items()}
    for at, opening in enumerate(profile.openings):
        tensors |= {f"openings.{at}.ids": opening.ids, f"openings.{at}.kv": opening.kv.half()}
    return zstandard.ZstdCompressor(level=19).compress(save(tensors, {"model": profile.model}))


def _coded(half: Transform, kept: float, levels: float) -> dict[str, Tensor]:
    count = math.ceil(kept * len(half.deviation))
    basis = half.basis[:count].float()
    step = basis.pow(2).mean(1).sqrt() / levels
    whole = (basis / step[:, None]).round().to(torch.int16)
    codes = whole.clamp(-128, 127)
    at = (whole != codes).view(-1).nonzero()[:, 0].int()
    return {
        "mean": half.mean, "weight": half.weight, "deviation": half.deviation[:count].clone(), "step": step,
        "codes": (codes + 128).to(torch.uint8), "at": at, "beyond": (whole - codes).view(-1)[at.long()],
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser("tools.ship_profile", description=__doc__.splitlines()[0])
    made.add_argument("model", help="name in the catalogue")
    name = made.parse_args(arguments).model
    model = locate_model(name).fingerprint
    hash_ = profile_of(model, profiles_dir())
    if hash_ is None:
        print(f"{name} has no profile; make one: minimemo calibrate {name}", file=sys.stderr)
        return 1
    content = packed(load_profile(hash_, profiles_dir()))
    (FOLDER / f"{name}{ENDING}").write_bytes(content)
    print(f"{name}{ENDING}: {len(content) / 1e6:.1f} MB, of profile {hash_}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
