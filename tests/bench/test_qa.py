"""What bench.qa asks and bench.support judges, on sets of two paragraphs; scores and intervals against known values."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from bench import answering, passage_recall, qa
from bench.answering import meaning
from bench.bootstrap import interval
from bench.measures import Row, covered
from bench.questions import Question, questions
from bench.scores import exact_match, f1, rouge_l
from bench.support import shares
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
    assert [(name, q.id) for name, q in qa.in_order(data, asked)] == [
        ("squality", "g1"), ("squality", "g0"), ("set", "0"), ("set", "1"), ("set", "2"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="no such set"):
        questions(data, "sett", 9)


def test_own_answers_are_supported_and_those_of_other_questions_are_not(data: Path) -> None:
    own, n, others, m = shares(data, "set")
    assert (own, n, m) == (1.0, 3, 2)
    assert others < 1, "Oslo stands in a sentence that says nothing of herrings"


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
    mean, low, high = interval(values.tolist())
    error = 1.96 * values.std() / 400**0.5
    assert mean == pytest.approx(values.mean())
    assert (low, high) == (pytest.approx(mean - error, abs=0.03), pytest.approx(mean + error, abs=0.03))
    assert interval(values.tolist()) == (mean, low, high), "seeded"
    assert interval([3.0] * 7) == (3, 3, 3)
    mean, low, high = interval([1.0] * 90, values.tolist())
    assert mean == pytest.approx((1 + values.mean()) / 2), "groups count alike, whatever their size"
    assert high - low == pytest.approx(error, abs=0.03)
    with pytest.raises(ValueError, match="no values"):
        interval([])


def row(text: str, passages: list[dict[str, object]], mode: str = "rag", **question: object) -> Row:
    fields = {"answers": ("Oslo",), "evidence": ((0, 20),), "answer_span": (16, 20), "type": "extractive", **question}
    record = {"text": text, "passages": passages, "seconds": 1.0}
    return Row(Question("1", "doc", "Where?", **fields), mode, record)  # type: ignore[arg-type]


def test_evidence_and_citations() -> None:
    early = {"start": 0, "end": 15, "text": "Ann was born in", "cited": True}
    late = {"start": 16, "end": 40, "text": "Oslo. Her brother Ben so", "cited": False}
    assert covered([(10, 20), (50, 60)], [early, late]) == pytest.approx(9 / 20)
    assert covered([], [early]) is None
    both = row("Oslo", [early, late])
    assert (both.evidence(), both.held(), both.shown(), both.cited()) == (0.95, 1, 1, 0)
    assert row("Oslo", [early]).held() == row("Oslo", [early]).shown() == 0
    assert row("Not found", [early]).shown() is None, "a refusal is no answer"
    assert row("Oslo", [late], mode="gold").evidence() is None, "its offsets are not the document's"
    assert row("Oslo", [{**early, "text": "Oslos"}]).shown() == 0, "whole words"


def test_code_is_the_same_when_its_meaning_is() -> None:
    code = 'def f(x):\n    """Doc."""\n    return x + 1\n'
    assert meaning(code) == meaning('"""File."""\n\ndef f(x):\n    # why\n    return (x + 1)\n')
    assert meaning(code) != meaning(code.replace("1", "2"))


def run(data: Path, models: TinyModels, *more: str) -> list[str]:
    files = ["--model", str(models.decoder), "--embedder", str(models.embedder), "--data", str(data)]
    return [*files, "--sets", "set,squality", "--max-tokens", "4", *more]


def test_a_run(
    data: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(qa.ROOM, "gist", 6)
    command = run(data, tiny_models, "--modes", "gold,rag,gold_clue,memorag", "--out", str(data / "out.jsonl"))
    assert qa.main(command) == 0
    printed = capsys.readouterr().out
    told = json.loads(printed.splitlines()[-1])
    assert told["unanswered"] == 0 and list(told["sets"]) == ["set", "squality"]
    raw = [json.loads(line) for line in (data / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(raw) == 3 * 4 + 2 * 3, "a gist has no gold passage"
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
    clues = [[c["text"] for c in r["clues"]] for r in raw if (r["set"], r["mode"]) == ("set", "gold_clue")]
    assert clues == [["Oslo"] * 2, ["Bergen"] * 2, ["1852"] * 2], "recalled and drafted"
    gain = told["sets"]["squality"]["memorag_minus_rag"]
    assert told["guided"] == {"sets": ["squality"], **gain}

    def refuse(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(answering.Session, "ask", refuse)  # type: ignore[attr-defined]
    assert qa.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told, "from what was kept"
    with pytest.raises(AssertionError, match="asked again"):
        qa.main([*command, "--fresh"])


def test_a_run_that_is_stopped_goes_on(
    data: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = run(data, tiny_models, "--modes", "closed,rag", "--json", "--max-tokens", "3")
    asked: list[str] = []
    ask = answering.Session.ask  # type: ignore[attr-defined]

    def fourth_is_interrupted(self: object, question: str, *rest: object) -> object:
        asked.append(question)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return ask(self, question, *rest)

    monkeypatch.setattr(answering.Session, "ask", fourth_is_interrupted)  # type: ignore[attr-defined]
    assert qa.main(command) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["unanswered"] == 4 and told["sets"]["set"]["rag"]["n"] == 1, "only what all modes answered counts"
    assert qa.main(command) == 0
    assert json.loads(capsys.readouterr().out)["unanswered"] == 0
    assert len(asked) == 2 * 5 + 1, "nothing was answered twice"
    assert qa.main([*command, "--minutes", "0.0000001"]) == 1
    assert json.loads(capsys.readouterr().out)["sets"] == {}


def test_mistakes_are_one_line(data: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]) -> None:
    assert qa.main(run(data, tiny_models, "--modes", "graph")) == 2
    assert "known are" in capsys.readouterr().err


def test_evidence_by_ranking(data: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--sets", "set", "--data", str(data), "--embedder", str(tiny_models.embedder)]
    assert passage_recall.main(command) == 0
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)["results"]["set"]
    assert len(table) == 1 + len(found) and list(found) == [
        "vectors",
        "words",
        "ranks",
        *(f"fused {w}" for w in passage_recall.WEIGHTS),
        "places",
        "regions",
    ]
    for row in found.values():
        assert row["n"] == 3 and row["held"] == sorted(row["held"]) and row["held"][-1] == 1
        assert row["evidence"] == pytest.approx([1, 1, 1], abs=0.05), (
            "all of it fits, but for white space between passages"
        )
    assert passage_recall.main(["--sets", "none", *command[2:]]) == 2
