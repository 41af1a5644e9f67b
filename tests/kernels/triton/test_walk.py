"""Build and ask on a GPU as one walk: what torch is asked to compute on the CPU besides, and what crosses the bus."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

import minimemo
from minimemo import RunOptions
from minimemo.memo import build as building
from minimemo.memory.codec import KVLayout
from minimemo.memory.profile import Profile
from minimemo.memory.transform import TransformCodec
from minimemo.models.tokenizer import Tokenizer
from tests.conftest import TinyModels
from tests.kernels.triton.apart import apart

# Numbers that the CPU computes: those of files on their way to the device, and tables of a few numbers, once a run.
ON_CPU = {
    "minimemo/models/weights", "minimemo/models/rope:inverse_frequencies", "minimemo/memory/profile",
    "minimemo/memory/transform:_on", "minimemo/memory/transform:_exact",
}  # fmt: skip
TO_DEVICE = {
    "minimemo/models/weights", "minimemo/models/encoder:<lambda>", "minimemo/models/rope:_reach",
    "minimemo/search/embedder:_vectors", "minimemo/memory/codec:brought", "minimemo/memory/transform",
    "minimemo/memory/frequencies:to_frequencies", "minimemo/memo/quality:_kept", "minimemo/memo/quality:<genexpr>",
    "minimemo/engine/steps:follow", "minimemo/engine/engine:_forward", "minimemo/engine/engine:likelihoods",
    "minimemo/models/places:of", "minimemo/models/rope:of_spans", "minimemo/engine/reading:_taken",
    "minimemo/models/decoder",
}  # fmt: skip
# Vectors of texts, exact keys and values for a build that is killed, symbols, tokens, whether a number was refused.
TO_CPU = {
    "kernels/triton/pack:pack_into",
    "minimemo/search/embedder:_vectors", "minimemo/memory/tail:put", "minimemo/memory/transform:_encode",
    "minimemo/memory/codec:byte_planes", "minimemo/engine/steps:_take", "minimemo/engine/engine:_likeliest",
}  # fmt: skip


def _recipe(tier: str, layout: KVLayout, profile: Profile | None) -> tuple[str, dict[str, object]]:
    """Any of the transform codec's, in place of a search for the one of a tier."""
    assert profile is not None
    return "klt", TransformCodec(layout, profile, 0.5, 0.5, time=8, ranges=1).params()


def test_the_whole_walk(tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device computes all of it but tokens, zstd, symbols and text."""
    monkeypatch.setattr(building, "recipe_of", _recipe)
    stop = max(Tokenizer(tiny_models.decoder).stop_ids)
    with apart(stop) as walk:
        memo = minimemo.build(
            text="The lamp was lit in 1874. " * 24, out=tmp_path / "a.memo", model=tiny_models.decoder,
            embedder=tiny_models.embedder,
        )  # fmt: skip
        assert walk.launched.keys() >= {"_rms_norm", "_rope_qkv", "_attend", "_gate"}
        memo.ask("When was the lamp lit?", max_tokens=4)
        packed = minimemo.open(tmp_path / "a.memo", options=RunOptions(kv_dtype="int8"))
        packed.ask("When was the lamp lit?", mode="memory", max_tokens=4)
    assert walk.launched.keys() >= {"_rope_store", "_pack", "attend_packed", "_merge_parts", "_largest", "_advance"}
    assert not {name for name in _askers(walk.on_cpu) if not _within(name, ON_CPU)}, walk.on_cpu
    assert not {name for way, name in walk.moved if way == "to" and not _within(name, TO_DEVICE)}, walk.moved
    assert not {name for way, name in walk.moved if way == "from" and not _within(name, TO_CPU)}, walk.moved


def _askers(found: Iterable[tuple[str, str]]) -> set[str]:
    return {name for _, name in found}


def _within(name: str, places: set[str]) -> bool:
    return name in places or name.partition(":")[0] in places
