"""What counts as right, as a refusal and as sure, in the sets that rules judge; and that the sets are what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.answers import __main__ as command
from bench.answers.verdicts import cites, figures, refuses, verdict
from bench.common.data import DATA, EVERYDAY, SETS, Question, document_text, questions, read_rows
from tests.conftest import TinyModels

NOT_HERE = pytest.mark.skipif(not EVERYDAY.exists(), reason="../shared is not here")


def judged(text: str, *answers: str, type: str = "held", supported: bool = True) -> str:
    question = Question("1", "doc", "?", answers, (), type=type)
    return verdict(question, {"text": text, "supported": supported})


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("It was Ruth Okafor.", ["Okafor"]),
        ("ruth okafor", ["Elin Haug", "Ruth Okafor"]),
        ("262,144 bytes", ["262144"]),
        ("14300 households", ["14,300"]),
        ("１９１２年", ["1912"]),
        ("由盐商沈万川出资。", ["沈万川"]),
        ("404 Not Found", ["404"]),
        ("The crack was not provided with a seal.", ["not provided with a seal"]),
    ],
)
def test_right_answers(text: str, answers: list[str]) -> None:
    assert judged(text, *answers) == "right"
    assert judged(text, *answers, supported=False) == "right, doubted"


@pytest.mark.parametrize(
    ("text", "answers"),
    [("18", ["8"]), ("1,200", ["200"]), ("三百八十元", ["三百元"]), ("沈万山", ["沈万川"]), ("Ruth", ["Ruth Okafor"])],
)
def test_wrong_answers(text: str, answers: list[str]) -> None:
    assert judged(text, *answers) == "wrong, sure"
    assert judged(text, *answers, supported=False) == "wrong, doubted"


@pytest.mark.parametrize(
    "text",
    [
        "Not found", "Not found.", "", " \n", "The document does not say.", "The passages don't mention the cost.",
        "It is not mentioned in the text.", "Unknown", "No information is given.", "I do not know.",
        "This cannot be determined from the passages.", "未提及", "文中没有提到石桥的长度。", "无法确定。",
        "文档未说明。", "原文並未提到。", "不知道", "文档没有说。", "Not in the document.", "It is unknown.",
    ],
)  # fmt: skip
def test_refusals(text: str) -> None:
    assert refuses(text)
    assert judged(text) == "said no" and judged(text, "^No", type="pattern") == judged(text, "Okafor") == "refused"


@pytest.mark.parametrize("text", ["No, it did not.", "No.", "不是。", "没有通过", "404 Not Found", "Unknown Pleasures"])
def test_what_is_no_refusal(text: str) -> None:
    assert not refuses(text)
    assert judged(text) == "wrong, sure" and judged(text, supported=False) == "wrong, doubted"


def test_patterns() -> None:
    """Lines count as one; ^ is the answer's beginning."""
    assert judged("- Tank A\n- Tank D", r"^(?=.*A)(?=.*Tank D)(?!.*Tank [BC])", type="pattern") == "right"
    assert judged("It was yes", "^Yes", type="pattern") == "wrong, sure"
    assert judged("It costs 18,450 euro.", "18450", type="pattern") == "right"


def test_figures() -> None:
    """Two thirds right of what is answered, a third of them doubted; one wrong and sure of all five."""
    answered, other = Question("1", "doc", "?", ("Oslo",), ()), Question("2", "doc", "?", (), (), why="year")
    rows = [(answered, "right", 1.0, True), (answered, "right, doubted", 2.0, None), (answered, "refused", 9.0, False)]
    table = figures([*rows, (other, "said no", 3.0, None), (other, "wrong, sure", 3.0, False)])
    shares = {row["figure"]: (row["n"], round(row["mean"], 1)) for row in table}
    assert shares == {
        "right": (3, 66.7), "right, doubted": (3, 33.3), "wrong, doubted": (5, 0.0), "wrong, sure": (5, 20.0),
        "refuses wrongly": (3, 33.3), "citation holds it": (1, 100.0), "says no": (2, 50.0), "says no: year": (2, 50.0),
    }  # fmt: skip
    assert all(row["low"] <= row["mean"] <= row["high"] and row["s"] == 3.0 for row in table)


@pytest.mark.parametrize(
    ("answer", "span", "cited"),
    [("1852", (109, 133), True), ("1852.", (109, 133), True), ("1852", (134, 149), False), ("1852", None, False),
     ("1853", (109, 133), None), ("", None, None)],
)  # fmt: skip
def test_what_is_cited_holds_the_answer(answer: str, span: tuple[int, int] | None, cited: bool | None) -> None:
    passages = [
        {"start": 0, "text": "Ann was born.", "span": None},
        {"start": 109, "text": "The mill burned in  1852. It made paper.", "span": span},
    ]
    assert cites({"text": answer, "passages": passages}) is cited


@NOT_HERE
def test_recorded_answers_are_judged_as_they_were() -> None:
    for row in read_rows(EVERYDAY / "questions.jsonl"):
        if row["right"] is not None:
            each = judged(row["got_4bd9641"], row["right"], type="pattern", supported=not row["flagged_then"])
            assert each.startswith("right") == row["right_then"], row


def test_everyday_is_asked(tmp_path: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]) -> None:
    """From a folder of files and patterns; another model may write."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files/mill.txt").write_text("The mill burned in 1852. It made paper.")
    rows: list[dict[str, Any]] = [
        {"file": "mill.txt", "question": "When did the mill burn?", "right": "1852"},
        {"file": "mill.txt", "question": "Who owned the mill?", "right": None},
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out, model = tmp_path / "out.jsonl", str(tiny_models.decoder)
    asked = ["--sets", "everyday", "--cases", str(tmp_path), "--mode", "rag,memorag", "--max-tokens", "4"]
    asked += ["--model", model, "--embedder", str(tiny_models.embedder), "--out", str(out)]
    assert command.main(asked) == 0
    table = json.loads(capsys.readouterr().out.splitlines()[-1])["sets"]["everyday"]
    assert list(table) == ["rag", "memorag", "memorag_minus_rag"]
    assert {row["figure"]: row["n"] for row in table["memorag"]}["wrong, sure"] == 2
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["question"], row["mode"], row["expected"]) for row in written[:2]] == [
        ("When did the mill burn?", "rag", ["1852"]), ("When did the mill burn?", "memorag", ["1852"]),
    ]  # fmt: skip
    assert written[2]["expected"] is None and written[0].keys() >= {"answer", "verdict", "supported", "passages"}
    assert command.main([*asked, "--generator", model]) == 0
    assert capsys.readouterr().out


def documents(rows: list[Question]) -> dict[str, str]:
    return {q.doc_id: document_text(DATA, q.doc_id) for q in rows}


@NOT_HERE
def test_unanswerable_questions_have_no_answer() -> None:
    """What would answer one, where words can tell, is not in its document; the answers of the others are."""
    rows = questions(DATA, "unanswerable", 999)
    texts = {doc: text.lower() for doc, text in documents(rows).items()}
    absent = {row["id"]: row.get("absent", []) for row in read_rows(SETS / "unanswerable.jsonl")}
    others = [q for q in rows if not q.answers]
    assert len(others) >= 160 and len(rows) - len(others) >= 80 and len(texts) >= 30
    assert len({q.id for q in rows}) == len({q.text for q in rows}) == len(rows)
    for q in rows:
        assert bool(q.answers) != bool(q.why) and q.type == "held"
        assert any(answer.lower() in texts[q.doc_id] for answer in q.answers) == bool(q.answers), q.text
        assert not [word for word in absent[q.id] if word.lower() in texts[q.doc_id]], q.text
    chinese = sum(any("一" <= char <= "龥" for char in q.text) for q in others)
    assert chinese >= 70 and len(others) - chinese >= 90
    assert {q.why for q in others} == {"year", "name", "unit", "negation", "untold", "elsewhere"}


@NOT_HERE
def test_follow_ups_have_one_right_passage() -> None:
    rows = questions(DATA, "followups", 999)
    texts = documents(rows)
    assert sum(q.why != "alone" for q in rows) >= 64 and sum(q.why == "alone" for q in rows) >= 16
    assert {q.why for q in rows} == {"pronoun", "name", "ellipsis", "other", "subject", "alone"}
    for q in rows:
        at = texts[q.doc_id].index(q.held)
        near = texts[q.doc_id][max(0, at - 250) : at + 250]
        assert texts[q.doc_id].count(q.held) == 1 and any(answer in near for answer in q.answers), q.text
        assert q.first and q.first != q.text and q.type == "followup"


def test_follow_ups_are_retrieved_alone_and_in_a_conversation(
    tmp_path: Path, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["Ann sold herrings in Bergen. ", "The mill burned in 1852. ", "Paper came from Oslo by ship. "]
    for folder in ("docs", "sets"):
        (tmp_path / folder).mkdir()
    (tmp_path / "docs/doc.txt").write_text("\n\n".join(40 * place for place in places), encoding="utf-8")
    row = {"doc_id": "doc", "type": "followup", "first": "Who sold herrings?", "first_answer": "Ann", "answers": ["x"]}
    rows = [
        {**row, "id": "1", "question": "When did the mill burn?", "held": "mill burned", "why": "pronoun"},
        {**row, "id": "2", "question": "When did the mill burn?", "held": "not there", "why": "alone"},
    ]
    (tmp_path / "sets/followups.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr("bench.common.data.SETS", tmp_path / "sets")
    asked = ["--sets", "followups", "--data", str(tmp_path), "--modes", "closed,rag,search", "--fresh"]
    asked += ["--model", str(tiny_models.decoder), "--embedder", str(tiny_models.embedder)]

    def shown() -> dict[str, float]:
        assert command.main(asked) == 0
        table = json.loads(capsys.readouterr().out.splitlines()[-1])["sets"]["followups"]
        assert list(table) == ["rag", "search"], "nothing is retrieved in mode closed"
        means = {mode: {row["figure"]: row["mean"] for row in rows} for mode, rows in table.items()}
        assert means["rag"] == means["search"], "who writes changes no passage here"
        return means["rag"]

    assert shown() == {
        "follow-ups, alone": 100, "follow-ups, conversation": 100, "others, alone": 0, "others, conversation": 0,
    }  # fmt: skip
