"""Sentences: where they end, and what a passage is quoted in."""

from __future__ import annotations

import pytest

from minimemo.text.sentences import sentence_ends, sentence_spans


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Dr. No met J. Doe at 3.5 km. He left! ", ["Dr. No met J. Doe at 3.5 km.", " He left!", " "]),
        ("他说：“你好。”她走了！真的……", ["他说：“你好。”", "她走了！", "真的……", ""]),
        ("Wait... no. (Why?) Who", ["Wait... no.", " (Why?)", " Who"]),
        ("no mark", ["no mark"]),
        ("", [""]),
    ],
)
def test_sentence_ends(text: str, parts: list[str]) -> None:
    ends = sentence_ends(text)
    assert [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)] == parts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Term. The contract ends after five long years. The parties may renew it by written notice.",
         ["Term. The contract ends after five long years.", "The parties may renew it by written notice."]),
        ("One fat mouse ate red cheese. So.", ["One fat mouse ate red cheese. So."]),
        ("灯塔建于一八五二年。船长老了。女儿在港口卖鱼。", ["灯塔建于一八五二年。", "船长老了。女儿在港口卖鱼。"]),
        ("One fat mouse ate red cheese.\n\nII", ["One fat mouse ate red cheese.", "II"]),
        ("Rules:\n- fat mice eat ripe red cheese\n- old cats eat fat mice\n2. dogs eat no cats or mice today",
         ["Rules:\n- fat mice eat ripe red cheese", "- old cats eat fat mice", "2. dogs eat no cats or mice today"]),
        ("\n\n  Short  \n\n", ["Short"]),
        ("…", ["…"]),
        (" \n", []),
        ("", []),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: list[str]) -> None:
    """A heading goes with what follows it, the short end of a paragraph with what stands before it."""
    assert [text[start:end] for start, end in sentence_spans(text)] == expected
