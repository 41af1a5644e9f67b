"""The quality card, on a tiny model: what it measures, what becomes of it, and that it changes nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minimemo
from minimemo.cli.arguments import main
from minimemo.memo import memorize as build_memory
from minimemo.memo.calibrate import calibrate
from minimemo.memo.manifest import Judged, Manifest, checksum
from minimemo.memo.memo import Memo
from minimemo.memo.quality import QualityCard, _load, places
from minimemo.memory.codec import ExactCodec, KVLayout
from minimemo.runtime import LanguageModel, OpenEmbedder
from tests.conftest import TinyModels
from tests.memories import all_ids

LINES = [f"The user number {i} said Hello world, be brief about room {i * 7}. 你好{i}。\n\n" for i in range(150)]
LONG, MIDDLE, SHORT = "".join(LINES), "".join(LINES[:60]), "".join(LINES[:9])


@pytest.fixture(scope="module")
def model(model: LanguageModel) -> LanguageModel:
    calibrate(model, [LONG[:6000], LONG[:6000][::-1]])
    return model


def build(text: str, path: Path, loaded: dict[str, Any], memory: str) -> Memo:
    return minimemo.build(minimemo.Document.of(text, "doc"), path, **loaded, memory=memory)


def test_places() -> None:
    assert [places(n) for n in (1, 2, 100, 200, 1087)] == [[0], [1], [50], [136], [1023]]
    assert places(1088) == places(4159) == [1024]
    assert places(70_000) == [1024, 4096, 16384, 65536]


@pytest.mark.parametrize("memory", ["exact", "int4", "small"])
def test_the_figures_are_those_of_a_plain_computation(
    memory: str, model: LanguageModel, loaded: dict[str, Any], tmp_path: Path
) -> None:
    """Prefill, code, decode, compare: by hand, with the log-probabilities in float64."""
    memo = build(LONG, tmp_path / "a.memo", loaded, memory)
    (reader, codec), engine = memo.memory_file(), model.engine
    ids = all_ids(reader).tolist()
    assert [(judged.end, judged.tokens) for judged in memo.manifest.quality] == [(1024, 64), (4096, 64)]
    (first, second), logits = memo.manifest.quality, []
    exact = engine.new_cache(1200)
    for piece in engine.read(exact, ids[:1024]):
        assert piece
    coded = engine.new_cache(1200)
    for index in range(4):
        keys, values = codec.decode(reader.payload(index), 256)
        coded.append(engine.decoder.rope.rotate(keys, 256 * index), values)
    for cache in (exact, coded):
        logits.append(engine.logits(cache, ids[1024:1088]).double().log_softmax(-1))
    divergence = float((logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean())
    same = float((logits[0].argmax(-1) == logits[1].argmax(-1)).double().mean())
    assert first.kl == pytest.approx(divergence, rel=0.01, abs=1e-6) and first.top1 == pytest.approx(same, abs=1e-4)
    if memory == "exact":
        assert (first.kl, first.top1, second.kl, second.top1) == (0, 1, 0, 1)
    else:
        assert first.kl > 0 and second.kl > 0
    reader.close()


def test_coarser_is_farther(loaded: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for memory in ("exact", "high", "balanced", "small"):
        quality = build(MIDDLE, tmp_path / f"{memory}.memo", loaded, memory).inspect()["quality"]
        assert quality["tokens"] == sum(place["tokens"] for place in quality["places"]) == 64
        found.append(quality["kl"])
    assert found == sorted(found) and found[0] == 0 < found[1] < found[-1]


@pytest.mark.parametrize("text", ["Hi.", SHORT, "".join(LINES[:15])], ids=["a word", "a block", "some blocks"])
@pytest.mark.parametrize("memory", ["int4", "balanced"])
def test_short_documents(text: str, memory: str, loaded: dict[str, Any], tmp_path: Path) -> None:
    memo = build(text, tmp_path / "a.memo", loaded, memory)
    (judged,) = memo.manifest.quality
    tokens = memo.inspect()["memory"]["tokens"]
    assert judged.end + judged.tokens == tokens and judged.tokens == min(64, tokens - tokens // 2)
    assert isfinite(judged.kl) and judged.kl >= 0 and 0 <= judged.top1 <= 1


def test_memory_bin_is_as_with_no_card(loaded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = build(LONG, tmp_path / "a.memo", loaded, "balanced")
    monkeypatch.setattr("minimemo.memo.quality.QualityCard._measure", lambda *_: None)
    plain = build(LONG, tmp_path / "b.memo", loaded, "balanced")
    assert measured.manifest.quality and not plain.manifest.quality
    assert replace(measured.manifest, quality=()) == plain.manifest  # sizes and hashes of all files among it


@pytest.mark.parametrize("text", [SHORT, LONG])
def test_a_whole_memory_without_figures_is_measured_once_more(
    text: str, model: LanguageModel, loaded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after memory.bin was whole, and the figures lost."""
    fresh = build(text, tmp_path / "fresh.memo", loaded, "int4")

    class Killed(BaseException):
        pass

    def die(folder: Path, *_: object) -> None:
        (folder.parent / build_memory.QUALITY).unlink()
        folder.parent.rename(tmp_path / "left")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", lambda _, folder: die(folder))
        with pytest.raises(Killed):
            build(text, tmp_path / "a.memo", loaded, "int4")
    (tmp_path / "left").rename(tmp_path / ".a.memo.building")
    read = model.engine.prefilled
    memo = build(text, tmp_path / "a.memo", loaded, "int4")
    assert memo.manifest.quality == fresh.manifest.quality[:1]
    assert model.engine.prefilled - read <= 1024 + 3 * 64
    assert replace(memo.manifest, quality=()) == replace(fresh.manifest, quality=())


def test_what_is_not_whole_is_not_believed(model: LanguageModel, embedder: OpenEmbedder, tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    body = {"judged": [{"end": 1024, "tokens": 64, "kl": 0.5, "top1": 0.75}]}
    whole = json.dumps({**body, "checksum": checksum(body)}).encode()
    path.write_bytes(whole)
    assert _load(path) == [Judged(1024, 64, 0.5, 0.75)]
    for at in range(len(whole)):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            path.write_bytes(damaged)
            assert _load(path) == []
    path.unlink()
    assert _load(path) == []


def test_inspect_and_build_tell(
    tiny_models: TinyModels, model: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "doc.txt").write_text(MIDDLE, encoding="utf-8")
    assert main(["build", str(tmp_path / "doc.txt"), "--memory", "exact", *tiny_models.options]) == 0
    quality = "100.0% of next tokens as from the exact cache, KL 0 (64 tokens at 1 place)"
    assert f"quality: {quality}" in capsys.readouterr().out
    memo = str(tmp_path / "doc.memo")
    assert main(["inspect", memo]) == 0
    assert f"quality   {quality}" in capsys.readouterr().out
    assert main(["inspect", memo, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quality"] == {
        "kl": 0.0, "top1": 1.0, "tokens": 64, "places": [{"end": 1024, "tokens": 64, "kl": 0.0, "top1": 1.0}],
    }  # fmt: skip


def test_a_manifest_of_times_without_a_card_opens(
    loaded: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memo = build(MIDDLE, tmp_path / "a.memo", loaded, "int4")
    path = memo.folder / "manifest.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    del body["checksum"], body["quality"]
    path.write_text(json.dumps({**body, "checksum": checksum(body)}), encoding="utf-8")
    old = minimemo.open(memo.folder, **loaded)
    old.verify()
    assert old.manifest.quality == () and old.inspect()["quality"] is None
    assert old.ask("Who said Hello?", max_tokens=4).text is not None
    assert main(["inspect", str(memo.folder)]) == 0
    assert "not measured" in capsys.readouterr().out
    assert build(MIDDLE, memo.folder, loaded, "int4").manifest == old.manifest  # already there


def test_which_blocks_a_place_needs(model: LanguageModel, tmp_path: Path) -> None:
    """The opening's and those of the context, whole ones."""
    sequence = np.arange(4096 + 64, dtype=np.int32) % 200
    for opening, expected in ((20, [0, 12, 13, 14, 15]), (300, [0, 1, 12, 13, 14, 15])):
        card = QualityCard(tmp_path / "q", sequence, opening, ExactCodec(KVLayout(2, 2, 16, "float32")), model.engine)
        assert card._needed(4096) == expected and card._start(4096) == 3072
        assert (card._needed(1024), card._start(1024)) == ([0, 1, 2, 3], 0)
