"""What bench.qa asks and bench.support judges, on a set of two paragraphs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from bench.qa import questions
from bench.support import shares

PARAGRAPHS = [
    "Ann was born in Oslo. Her brother Ben sold herrings in Bergen.",
    "The mill burned in 1852. It made paper.",
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    text = "\n\n".join(PARAGRAPHS)
    first, second = (0, len(PARAGRAPHS[0])), (len(PARAGRAPHS[0]) + 2, len(text))
    rows = [
        ("Where was Ann born?", "Oslo", first),
        ("Where did Ben sell herrings?", "Bergen", first),
        ("When did the mill burn?", "1852", second),
    ]
    for folder in ("docs", "qa"):
        (tmp_path / folder).mkdir()
    (tmp_path / "docs/doc.txt").write_text(text, encoding="utf-8")
    lines = [
        json.dumps({"id": str(i), "doc_id": "doc", "question": q, "answers": [a], "evidence": [span]})
        for i, (q, a, span) in enumerate(rows)
    ]
    (tmp_path / "qa/set.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_a_smaller_limit_asks_some_of_the_same(data: Path) -> None:
    asked = [[q.id for q in questions(data, "set", limit)] for limit in (1, 2, 3, 9)]
    assert [len(ids) for ids in asked] == [1, 2, 3, 3]
    for fewer, more in itertools.pairwise(asked):
        assert set(fewer) <= set(more) and more == sorted(more)


def test_own_answers_are_supported_and_those_of_other_questions_are_not(data: Path) -> None:
    own, n, others, m = shares(data, "set")
    assert (own, n, m) == (1.0, 3, 2)
    assert others < 1, "Oslo stands in a sentence that says nothing of herrings"
