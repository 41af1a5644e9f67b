"""Needles are hidden at even depths, at most as much of them as of hay, and each is asked for once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.common.needles import DEPTHS, HAYSTACKS, _forms, needle_questions
from minimemo.errors import InputError

HAY = 2_000
NEEDLE = (
    "The {}th lamp was lit by keeper number {} of the lighthouse, who came over the cold sea in a boat of oak with one "
    "brown sail, and slept."
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path / "home"))
    hay = "\n".join(f"Line {n} of the hay is dry." for n in range(HAY))
    rows = [{"needle": NEEDLE.format(n, n), "question": f"Who lit lamp {n}?", "answers": [str(n)]} for n in range(22)]
    pair = [{**rows[0], "needle": f"Part {n}.", "group": "pair"} for n in (1, 2)]
    for folder in ("docs", "needle"):
        (tmp_path / folder).mkdir()
    for language, (name, _) in HAYSTACKS.items():
        (tmp_path / f"docs/{name}.txt").write_text(hay, encoding="utf-8")
        lines = [{"id": f"n{i}", **row} for i, row in enumerate([*pair, *rows])]
        (tmp_path / f"needle/needles_{language}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["needles_1k", "needles_10k", "needles_10k_zh"])
def test_needles_stand_at_even_depths_of_documents_that_are_mostly_hay(name: str, data: Path) -> None:
    asked = needle_questions(data, name, 99)
    assert asked is not None and len(asked) == DEPTHS == len({q.text for q in asked})
    for path in {q.path for q in asked}:
        text, here = path.read_text(encoding="utf-8"), [q for q in asked if q.path == path]
        needles = [NEEDLE.format(*2 * [q.answers[0]]) for q in here]
        depths = [text.index(needle) / len(text) for needle in needles]
        assert depths == pytest.approx([(n + 0.5) / len(here) for n in range(len(here))], abs=0.06)
        assert sum(map(len, needles)) <= 0.55 * len(text) and "Part" not in text
    assert len({q.path for q in asked}) == (1 if "10k" in name else 2)


def test_other_sets_are_none_and_short_hay_is_named(data: Path) -> None:
    assert needle_questions(data, "xquad_en", 9) is None
    with pytest.raises(InputError, match="characters, not 4,600,000; ask for fewer tokens"):
        needle_questions(data, "needles_1000k", 9)


def test_an_answer_may_be_said_in_several_ways() -> None:
    assert {"common rules", "with common rules"} <= {*_forms("with common rules")}
    assert {"ctDNA", "cpDNA"} <= {*_forms("ctDNA, or cpDNA")} and "2" in _forms("two")
    assert _forms("Oslo") == ["Oslo"]
