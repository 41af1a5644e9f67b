"""What bench.answers asks and judges, on sets of two paragraphs; scores and intervals against known values."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from bench.answers import __main__ as command
from bench.answers import runner
from bench.answers.measures import Row, covered
from bench.common.data import Question, questions
from bench.common.intervals import interval
from bench.common.scores import exact_match, f1, rouge_l
from minimemo.errors import InputError
from tests.conftest import TinyModels

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
    (tmp_path / "docs/larger.txt").write_text(2 * text, encoding="utf-8")
    lines = [
        {"id": str(i), "doc_id": "doc", "question": q, "answers": [a], "type": "extractive", "lang": "en",
         "evidence": [span], "answer_span": [text.index(a), text.index(a) + len(a)]}
        for i, (q, a, span) in enumerate(rows)
    ]  # fmt: skip
    gist = {"question": "What happened?", "answers": ["The mill burned.", "A fire."], "type": "gist", "lang": "en"}
    long = [{"id": f"g{i}", "doc_id": doc, **gist} for i, doc in enumerate(("larger", "doc"))]
    for name, content in (("set", lines), ("squality", long)):
        (tmp_path / f"qa/{name}.jsonl").write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
    return tmp_path


def test_a_smaller_limit_asks_some_of_the_same(data: Path) -> None:
    asked = [[q.id for q in questions(data, "set", limit)] for limit in (1, 2, 3, 9)]
    assert [len(ids) for ids in asked] == [1, 2, 3, 3]
    for fewer, more in itertools.pairwise(asked):
        assert set(fewer) <= set(more) and more == sorted(more)


def test_small_documents_first(data: Path) -> None:
    assert [q.doc_id for q in questions(data, "squality", 9)] == ["larger", "doc"]
    assert [q.doc_id for q in questions(data, "squality", 9, documents=1)] == ["doc"]
    asked = {name: questions(data, name, 9) for name in ("squality", "set")}
    assert [(name, q.id) for name, q in command.in_order(asked)] == [
        ("squality", "g1"), ("squality", "g0"), ("set", "0"), ("set", "1"), ("set", "2"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="no such set"):
        questions(data, "sett", 9)


def test_scores() -> None:
    assert exact_match("The Oslo.", ["Bergen", "oslo"]) == 1 and exact_match("in Oslo", ["Oslo"]) == 0
    assert f1("in Oslo", ["Oslo"]) == pytest.approx(2 / 3)
    assert f1("黑鼠的跳蚤", ["跳蚤"]) == pytest.approx(4 / 7), "characters"
    # longest common subsequences: "cat sat" of 3 and 5 words, stems counted as equal; 3 of 5 and 4 characters
    assert rouge_l("the cats sat", ["a dog", "cat and dog sat here"]) == pytest.approx(2 * 2 / (3 + 5))
    assert rouge_l("报告归咎天", ["报告咎天上"]) == pytest.approx(2 * 4 / (5 + 5))
    assert rouge_l("天上归咎", ["归咎天上"]) == pytest.approx(0.5), "order counts"


def test_intervals() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    mean, low, high = interval(values.tolist()).values()
    error = 1.96 * values.std() / 400**0.5
    assert mean == pytest.approx(values.mean())
    assert (low, high) == (pytest.approx(mean - error, abs=0.03), pytest.approx(mean + error, abs=0.03))
    assert tuple(interval(values.tolist()).values()) == (mean, low, high), "seeded"
    assert interval([3.0] * 7) == {"mean": 3, "low": 3, "high": 3}

    with pytest.raises(ValueError, match="no values"):
        interval([])


def test_evidence() -> None:
    early, late = {"start": 0, "end": 15}, {"start": 16, "end": 40}
    assert covered([(10, 20), (50, 60)], [early, late]) == pytest.approx(9 / 20)
    assert covered([], [early]) is None
    question = Question("1", "doc", "Where?", ("Oslo",), ((0, 20),))
    for mode, evidence in (("rag", 0.95), ("gold", None)):  # the offsets of gold passages are not the document's
        assert Row(question, mode, {"text": "Oslo", "passages": [early, late]}).evidence() == evidence


def run(data: Path, models: TinyModels, *more: str) -> list[str]:
    files = ["--model", str(models.decoder), "--embedder", str(models.embedder), "--data", str(data)]
    return [*files, "--sets", "set,squality", "--max-tokens", "4", *more]


def test_a_run(
    data: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(command.ROOM, "gist", 6)
    asked = run(data, tiny_models, "--modes", "gold,rag,memorag", "--out", str(data / "out.jsonl"))
    assert command.main(asked) == 0
    printed = capsys.readouterr().out
    told = json.loads(printed.splitlines()[-1])
    assert told["unanswered"] == 0 and list(told["sets"]) == ["set", "squality"]
    raw = [json.loads(line) for line in (data / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(raw) == 3 * 3 + 2 * 2, "a gist has no gold passage"
    for name, metric, count in (("set", "f1", 3), ("squality", "rouge_l", 2)):
        for mode in told["sets"][name]:
            shown = told["sets"][name][mode]
            if mode.endswith("_minus_rag"):
                one, rag = told["sets"][name][mode.removesuffix("_minus_rag")], told["sets"][name]["rag"]
                assert shown["mean"] == pytest.approx(one["mean"] - rag["mean"])
                continue
            mine = [r for r in raw if (r["set"], r["mode"]) == (name, mode)]
            assert (shown["metric"], shown["n"], len(mine)) == (metric, count, count)
            assert shown["mean"] == pytest.approx(100 * statistics.fmean(r["scores"][metric] for r in mine))
            assert shown["low"] <= shown["mean"] <= shown["high"]
            assert all(r["generated_tokens"] <= (4 if name == "set" else 6) for r in mine)
    assert 0 < told["sets"]["set"]["rag"]["evidence"] <= 1
    assert {told["sets"][name][mode]["evidence"] for name, mode in (("set", "gold"), ("squality", "rag"))} == {None}

    def refuse(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(runner.Session, "ask", refuse)  # type: ignore[attr-defined]
    assert command.main(asked) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["sets"] == told["sets"], "from what was kept"
    with pytest.raises(AssertionError, match="asked again"):
        command.main([*asked, "--fresh"])


def test_a_run_that_is_stopped_goes_on(
    data: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = run(data, tiny_models, "--modes", "closed,rag", "--max-tokens", "3")
    asked: list[str] = []
    ask = runner.Session.ask  # type: ignore[attr-defined]

    def fourth_is_interrupted(self: object, question: str, *rest: object) -> object:
        asked.append(question)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return ask(self, question, *rest)

    monkeypatch.setattr(runner.Session, "ask", fourth_is_interrupted)  # type: ignore[attr-defined]
    assert command.main(arguments) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["unanswered"] == 4 and told["sets"]["set"]["rag"]["n"] == 1, "only what all modes answered counts"
    assert command.main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["unanswered"] == 0
    assert len(asked) == 2 * 5 + 1, "nothing was answered twice"


def test_mistakes_are_one_line(data: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(run(data, tiny_models, "--modes", "graph")) == 2
    assert "choose from closed,gold" in capsys.readouterr().err
