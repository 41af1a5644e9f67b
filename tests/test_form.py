"""Which questions ask for a paragraph, and what the loop does for them."""

from __future__ import annotations

import pytest

from minimemo.loop import Settings
from minimemo.loop.form import wants_paragraph

from .test_session import House


@pytest.mark.parametrize(
    "question",
    [
        "Summarize the discussion about the keeper's pay.",
        "Please describe the lamp room.",
        "Could you give me a short overview of the first year?",
        "What did the doctors say about the planets?",
        "What was Anna's opinion on the new road?",
        "What were the main points of the report?",
        "What is the relationship between Ann and Ben?",
        "Who is Ann, and what happens to her?",
    ],
)
def test_a_paragraph(question: str) -> None:
    assert wants_paragraph(question)


@pytest.mark.parametrize(
    "question",
    [
        "When was the light lit for the first time?",
        "Which steamer passed the Point that night, and who was her captain?",
        "Who wrote the summary of 1852?",
        "What is the name of the plot's owner?",
        "Why did the mill burn?",
        "What happens to the keeper's money?",
        "How many planets had met?",
        "灯塔是哪一年第一次点亮的？",
        "大沙地站在哪里？",
        "关于灯塔的维修，会议上讨论了哪些内容？",
        "",
    ],
)
def test_a_phrase(question: str) -> None:
    assert not wants_paragraph(question)


@pytest.mark.parametrize("mode", ["rag", "memorag"])
def test_a_paragraph_is_written_from_all_that_fits(mode: str) -> None:
    house = House(script={"in one paragraph": "Plague, fleas.", "or short explanation": "A guess."})
    answer = house.session.ask("Describe what the report said about the planets.", mode)  # type: ignore[arg-type]
    assert answer.text == "Plague, fleas." and answer.draft == ""
    assert len(answer.passages) == 5, "the whole document is fewer passages than asked for"
    assert "short phrase" not in house.engine.prompts[-1]
    few = House(settings=Settings(paragraph_hits=2)).session.ask("Describe the report.", "rag")
    assert len(few.passages) == 2
