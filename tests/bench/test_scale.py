"""The bench of libraries on a few memos."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bench.common.data import DATA
from bench.scale import answers, jobs, library, nearest, picking


def test_a_row_has_every_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path))
    row = library.row(4, 2)
    assert row.keys() == {name for name, _ in library.COLUMNS}
    assert row["passages"] == 8 and all(value > 0 for value in row.values())


def test_words_that_are_asked_for_are_of_one_document_alone() -> None:
    texts = {"a": "The harbour report 20241107 names nobody.", "b": "The harbour of Lisbon has a lighthouse."}
    asked = picking._words(texts)
    assert asked["number"] == [("a", "What is said about 20241107?")]
    assert {name for name, _ in asked["word"]} == {"a", "b"} and "harbour" not in str(asked)


def test_synthetic_vectors_lie_as_real_ones() -> None:
    real = library.unit(np.random.default_rng(0), 40)
    made = nearest.synthetic(real, 300)
    assert made.shape == (300, 384) and np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    assert (made @ real.T).max(1).mean() > 0.5


def test_questions_are_spread_and_one_is_of_each_document() -> None:
    asked = [("a", "1"), ("b", "2"), ("a", "3"), ("a", "4"), ("a", "5")]
    assert picking._at_most(2, asked) == [("a", "1"), ("a", "4"), ("b", "2")]
    assert picking._at_most(8, asked) == [("a", "1"), ("a", "3"), ("a", "4"), ("a", "5"), ("b", "2")]
    rows = picking._by_language({"asked": [("a", "Who is it?"), ("b", "\u8fd9\u662f\u8c01\uff1f")]})
    assert [(language, len(some)) for _, language, some in rows] == [("en", 1), ("zh", 1), ("all", 2)]


@pytest.mark.skipif(not (DATA / "qa" / "xquad_zh.jsonl").exists(), reason="the data is not here")
def test_articles_hold_the_answers_to_their_questions() -> None:
    texts, asked = answers.articles(DATA, 20, 2)
    assert len(texts) == 20 and {name[:2] for name in texts} == {"en", "zh"}
    for name, some in asked.items():
        assert len(some) == 2 and all(answer in texts[name] for one in some for answer in one.answers)


def test_answers_are_compared_in_pairs() -> None:
    texts = {"alone": "a", "f1_alone": 0.5}
    rows = [
        {**texts, "document": f"en_{n}", "f1_over_all": n / 2, "over_all": "ba"[n], "picked": n == 1} for n in (0, 1)
    ]
    told = answers.figures("en", rows)
    assert (told["n"], told["difference"], told["same"], told["picked"]) == (2, -25.0, 1, 1)
    assert told["low"] == -50 and told["high"] == 0 and answers.figures("zh", rows)["n"] == 0


def test_memory_of_a_process_is_read_and_one_that_ended_has_none() -> None:
    own = jobs._memory(os.getpid())
    assert own["Rss"] >= own["Pss"] > 1 and not any(jobs._memory(2**22 + 1).values())
