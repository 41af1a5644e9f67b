"""From a model and text to a profile, and memos that use it, on a tiny model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import minimemo
from minimemo.errors import InputError, MemoError, MinimemoError
from minimemo.events import Event
from minimemo.files import profiles_dir
from minimemo.memo.calibrate import _pieces, calibrate
from minimemo.memo.library import export, remove
from minimemo.memory.profile import load_profile
from minimemo.runtime import LanguageModel
from tests.memories import whole_memory

TEXT = "".join(f"The user number {i} said Hello world, be brief about room {i * 7}. 你好{i}。\n\n" for i in range(60))


@pytest.fixture
def texts() -> list[str]:
    return [TEXT, TEXT[::-1]]


def test_shares_of_the_texts() -> None:
    pieces = _pieces([list(range(9000)), list(range(10)), list(range(5000))], 6000)
    lengths = [len(ids) for _, ids in pieces]
    assert sum(lengths) == 6000 and max(lengths) == 2048
    assert [number for number, _ in pieces] == [0, 0, 1, 2, 2]
    assert lengths[2] == 10  # a short text whole, its rest to the others
    assert max(len(ids) for _, ids in _pieces([list(range(900))], 900, 200)) == 200


@pytest.mark.parametrize("tier", ["high", "balanced", "small"])
def test_a_calibrated_model_builds_and_opens(
    tier: str, model: LanguageModel, texts: list[str], loaded: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "doc.txt").write_text(TEXT[:1500], encoding="utf-8")

    def build(out: str) -> minimemo.Memo:
        return minimemo.build(tmp_path / "doc.txt", tmp_path / out, memory=tier, **loaded)

    profile = calibrate(model, texts)
    assert bool(torch.cat([half.weight for half in (*profile.keys, *profile.values)]).isfinite().all())
    memo = build("a.memo")
    assert memo.inspect()["memory"]["params"]["profile"] == profile.hash
    before = model.engine.prefilled
    cache = whole_memory(memo)
    assert model.engine.prefilled == before and cache.length == memo.inspect()["memory"]["tokens"]
    memo.verify()
    assert (build("b.memo").folder / "memory.bin").read_bytes() == (memo.folder / "memory.bin").read_bytes()


def test_the_first_build_measures_the_model(
    model: LanguageModel,
    texts: list[str],
    loaded: dict[str, Any],
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("minimemo.memo.calibrate.shipped_texts", lambda: texts)
    document = minimemo.Document.of(TEXT[:1500], "doc")
    for out, times in (("a.memo", 1), ("b.memo", 0)):
        events: list[Event] = []
        memo = minimemo.build(document, tmp_path / out, memory="balanced", on_event=events.append, **loaded)
        assert [event.stage for event in events].count(
            f"{model.located.source} is measured for small memories: minutes, once"
        ) == times
        assert memo.inspect()["memory"]["codec"] == "klt"


def test_a_model_whose_profile_the_package_has_is_not_measured(
    model: LanguageModel, texts: list[str], loaded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = calibrate(model, texts)
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path / "home"))
    asked: list[str] = []
    monkeypatch.setattr("minimemo.memory.shipped.shipped_profile", lambda model, folder: asked.append(model) or profile)
    events: list[Event] = []
    document = minimemo.Document.of(TEXT[:1500], "doc")
    memo = minimemo.build(document, tmp_path / "a.memo", on_event=events.append, **loaded)
    assert memo.inspect()["memory"]["params"]["profile"] == profile.hash and asked == [model.located.fingerprint]
    assert not any("measured" in event.stage or event.stage == "calibrate" for event in events)


def test_the_same_text_gives_the_same_profile(model: LanguageModel, texts: list[str]) -> None:
    first, second = calibrate(model, texts), calibrate(model, texts)
    assert first.hash == second.hash == load_profile(first.hash, profiles_dir()).hash


def test_a_memo_without_its_profile_says_which_and_an_exported_one_has_it(
    model: LanguageModel, texts: list[str], loaded: dict[str, Any], tmp_path: Path
) -> None:
    profile = calibrate(model, texts)
    (tmp_path / "doc.txt").write_text(TEXT[:1500], encoding="utf-8")
    memo = minimemo.build(tmp_path / "doc.txt", memory="high", **loaded)
    carried = export(memo.folder, tmp_path / "carried.memo")
    with pytest.raises(InputError, match="exists"):
        export(memo.folder, carried)
    for path in profiles_dir().glob("*"):
        path.unlink()
    with pytest.raises(MemoError, match=profile.hash):
        whole_memory(memo)
    with pytest.raises(MemoError, match=profile.hash):
        memo.verify()
    carried_profile = next(carried.glob("*.safetensors"))
    content = carried_profile.read_bytes()
    carried_profile.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(MemoError, match=r"safetensors: damaged \(checksum\)"):
        minimemo.open(carried).verify()
    carried_profile.write_bytes(content)
    minimemo.open(carried).verify()
    with pytest.raises(MemoError, match="export"):
        export(carried, tmp_path / "again.memo") and export(memo.folder, tmp_path / "late.memo")
    assert whole_memory(minimemo.open(carried, **loaded)).length > 0
    (carried / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds mine\.txt, which"):
        remove(carried)
    (carried / "mine.txt").unlink()
    assert remove(carried) > 0 and not carried.exists()


def test_what_a_kill_left_of_a_profile_goes_with_the_next(model: LanguageModel, texts: list[str], home: Path) -> None:
    profiles_dir().mkdir(parents=True)
    for name in (".999999999-ab.tmp", ".f768aa2a635da1f1.tmp", f".{os.getpid()}-ab.tmp"):
        (profiles_dir() / name).touch()
    profile = calibrate(model, texts)
    assert {path.name for path in profiles_dir().iterdir()} == {
        f".{os.getpid()}-ab.tmp", f"{profile.model[:16]}-{profile.hash}.safetensors",
    }  # fmt: skip


def test_a_folder_not_writable_is_told_before_measuring(model: LanguageModel, texts: list[str], home: Path) -> None:
    home.write_text("a file")
    events: list[Event] = []
    with pytest.raises(MinimemoError, match=r"home/profiles: cannot be written .* set MINIMEMO_HOME .*`memory=int4`"):
        calibrate(model, texts, on_event=events.append)
    assert not events


@pytest.mark.parametrize("text", ["", "Hello.", TEXT[:200]])
def test_too_little_text_is_refused(model: LanguageModel, text: str) -> None:
    with pytest.raises(InputError, match="`texts`"):
        calibrate(model, [text])
