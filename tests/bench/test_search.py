"""bench.search: measures against worked examples, and a run over a collection of a few texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import search
from bench.search import gain_of, ranked, read_collection
from minimemo.runtime import open_embedder
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
    found = ranked(scores, {0: {4: 1.0, 7: 1.0}, 1: {0: 1.0, 11: 1.0}})
    assert found["recall"] == pytest.approx((1 + 1 / 2) / 2), "the twelfth is past the tenth"
    assert found["ndcg"] == pytest.approx((1 + 1 / (1 + 1 / np.log2(3))) / 2)


def test_a_collection(data: Path, tiny_models: TinyModels) -> None:
    few = read_collection(data / "embed" / "few")
    assert len(few.queries) == 3 and few.judged == {0: {0: 1}, 1: {1: 4, 0: 1}, 2: {3: 1}}
    passages, owner = search.cut(few, open_embedder(tiny_models.embedder).embedder)
    assert owner.tolist() == sorted(owner) and set(owner) == {0, 1, 2, 3}
    assert (owner == 0).sum() > 1, "a text longer than the encoder sees is several passages"
    whole = ["".join(p for p, o in zip(passages, owner, strict=True) if o == n) for n in range(4)]
    for text, (title, body) in zip(whole, TEXTS, strict=True):
        assert "".join(text.split()) == "".join(f"{title}{body}".split())


def test_a_run(data: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--sets", "few", "--embedders", str(tiny_models.embedder), "--data", str(data)]
    assert search.main(command) == 0
    *table, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["collections"]
    assert [row["ranking"] for row in rows] == ["dense", "bm25", "fused"] and len(table) == 4
    assert (rows[1]["ndcg"], rows[1]["recall"], rows[1]["texts"], rows[1]["queries"]) == (1, 1, 4, 3)
    assert all(0 <= row[measure] <= 1 for row in rows for measure in ("ndcg", "recall"))
    assert search.main([*command, "--sets", "none"]) == 2
    assert "no such set" in capsys.readouterr().err


def test_evidence_by_ranking(tmp_path: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]) -> None:
    text = "Ann was born in Oslo. Ben sold herrings in Bergen.\n\nThe mill burned in 1852."
    for folder in ("docs", "qa"):
        (tmp_path / folder).mkdir()
    (tmp_path / "docs/doc.txt").write_text(text, encoding="utf-8")
    asked = [
        {"id": a, "doc_id": "doc", "question": q, "answers": [a], "evidence": [[0, 50] if a == "Oslo" else [52, 76]],
         "answer_span": [text.index(a), text.index(a) + len(a)]}
        for q, a in (("Where was Ann born?", "Oslo"), ("When did the mill burn?", "1852"))
    ]  # fmt: skip
    (tmp_path / "qa/set.jsonl").write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")
    command = ["--passages", "--sets", "set", "--data", str(tmp_path), "--embedders", str(tiny_models.embedder)]
    assert search.main(command) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["passages"]
    assert [row["ranking"] for row in rows] == ["vectors", "words", "places", "regions"]
    for row in rows:
        held = [row[f"held_{k}"] for k in search.FIRST]
        assert row["n"] == 2 and held == sorted(held) and held[-1] == 1
        shown = [row[f"tokens_{n}"] for n in search.TOKENS]
        assert shown == pytest.approx([1, 1, 1], abs=0.05), "all of it fits, but for white space between passages"
    assert search.main(["--passages", "--sets", "none", *command[3:]]) == 2
