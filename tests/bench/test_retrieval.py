"""bench.retrieval: measures against worked examples, and a run over a collection of a few texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import retrieval
from bench.ranking import gain_of, measured, read_collection
from minimemo.runtime import open_embedder
from minimemo.search.embedder import Embedder
from tests.conftest import TinyModels

TEXTS = [
    ("Herrings", "Ben sold herrings in Bergen, be brief. " * 6),
    ("", "The mill burned in 1852. It made paper."),
    ("A lone title", ""),
    ("", "安娜在奥斯陆出生。"),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "embed" / "few"
    folder.mkdir(parents=True)
    rows = [{"id": f"t{i}", "title": title, "text": text} for i, (title, text) in enumerate(TEXTS)]
    asked = ["What did Ben sell?", "When did the mill burn?", "nobody knows", "安娜在哪里出生？"]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "queries.jsonl").write_text(
        "\n".join(json.dumps({"id": f"q{i}", "text": text}) for i, text in enumerate(asked)), encoding="utf-8"
    )
    judged = "q0\tt0\t1\nq1\tt1\t4\nq1\tt0\t1\nq3\tt3\t1\nq3\tt1\t0\n"
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return tmp_path


def test_measures() -> None:
    # worked by hand: (3 + 2/log2(3) + 0 + 1/log2(5)) of (3 + 2/log2(3) + 1/2)
    best = 3 + 2 / np.log2(3) + 1 / 2
    assert gain_of([3, 2, 0, 1], {0: 3, 1: 2, 2: 1}) == pytest.approx((3 + 2 / np.log2(3) + 1 / np.log2(5)) / best)
    scores = np.zeros((2, 30), np.float32)
    scores[0, [4, 7]] = 2, 1
    scores[1, :12] = np.arange(12, 0, -1)
    found = measured(scores, {0: {4: 1.0, 7: 1.0}, 1: {0: 1.0, 11: 1.0}})
    assert found["recall"] == pytest.approx((1 + 1 / 2) / 2), "the twelfth is past the tenth"
    assert found["ndcg"] == pytest.approx((1 + 1 / (1 + 1 / np.log2(3))) / 2)


def test_a_collection(data: Path, tiny_models: TinyModels) -> None:
    few = read_collection(data / "embed" / "few")
    assert len(few.queries) == 3 and few.judged == {0: {0: 1}, 1: {1: 4, 0: 1}, 2: {3: 1}}
    passages, owner = retrieval.cut(few, open_embedder(tiny_models.embedder).embedder)
    assert owner.tolist() == sorted(owner) and set(owner) == {0, 1, 2, 3}
    assert (owner == 0).sum() > 1, "a text longer than the encoder sees is several passages"
    whole = ["".join(p for p, o in zip(passages, owner, strict=True) if o == n) for n in range(4)]
    for text, (title, body) in zip(whole, TEXTS, strict=True):
        assert "".join(text.split()) == "".join(f"{title}{body}".split())


def test_a_run(
    data: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--sets", "few", "--embedders", str(tiny_models.embedder), "--data", str(data)]
    assert retrieval.main(command) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = told["embedders"][str(tiny_models.embedder)]["few"]
    assert found["bm25"] == {"ndcg": 1, "recall": 1}
    assert all(0 <= found[way][measure] <= 1 for way in ("dense", "fused") for measure in ("ndcg", "recall"))

    def refuse(*_: object) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr(Embedder, "_embed", refuse)
    assert retrieval.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told
    assert retrieval.main([*command, "--sets", "none"]) == 2
    assert "no such set" in capsys.readouterr().err


@pytest.mark.real
def test_speed_beside_sentence_transformers() -> None:
    from bench.embed import side_by_side

    speed = side_by_side("all-minilm-l6-v2", ["The user said Hello world.", "Be brief."] * 4, rounds=1)
    assert speed["minimemo"] > 0 and speed["sentence_transformers"] > 0
    assert speed["least_cosine"] > 0.99
