"""Chunks: exact spans, nothing lost but white space, no grapheme cut, sizes kept, breaks where a reader would pause."""

from __future__ import annotations

import re
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimemo.text.chunks import Chunk, split, with_token_spans

DATA = Path(__file__).parents[2] / "../shared/data/docs"


def words(text: str) -> np.ndarray:
    """Spans like an encoder's: words cut in pieces of at most 4 letters, CJK characters one by one, marks alone."""
    spans = [match.span() for match in re.finditer(r"[A-Za-z]{1,4}|\S", text)]
    return np.array(spans, np.int64).reshape(-1, 2)


def check(text: str, chunks: list[Chunk], offsets: np.ndarray, size: int) -> None:
    reached = 0
    for i, chunk in enumerate(chunks):
        assert chunk.index == i
        assert text[chunk.start : chunk.end] == chunk.text
        assert chunk.text.strip()
        count = int(((offsets[:, 0] >= chunk.start) & (offsets[:, 0] < chunk.end)).sum())
        assert count <= size or chunk.end - chunk.start == 1
        assert chunk.start >= reached
        assert not text[reached : chunk.start].strip()
        reached = chunk.end
    assert not text[reached:].strip()


PIECES = [
    *["a", "Word", " ", "  ", "\n", "\n\n", "\r\n", "\r\n\r\n", "\t", "\u3000", "\ufeff", "\x00", "x" * 50],
    *[". ", "! ", "。", "，", "”", "。" * 9, "." * 9, "Mr. B", "中文"],
    *["e\u0301", "\u0301", "👩‍👧", "🇫🇷", "👍🏽", "각", "\u1100\u1161\u11a8"],
]


@given(st.lists(st.sampled_from(PIECES), max_size=120).map("".join), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_any_text(text: str, size: int) -> None:
    offsets = words(text)
    chunks = split(text, offsets, size=size)
    check(text, chunks, offsets, size)
    assert chunks == split(text, offsets, size=size)


@given(st.text(max_size=200), st.integers(1, 9))
@settings(max_examples=120, deadline=None)
def test_any_characters(text: str, size: int) -> None:
    offsets = words(text)
    check(text, split(text, offsets, size=size), offsets, size)


@given(
    st.lists(
        st.sampled_from(["e\u0301", "o\u0323\u0302", "👩‍👧‍👦", "🇫🇷", "👍🏽", "1️⃣", "中", "ｶﾞ", "\u1112\u1161\u11ab"]),
        max_size=60,
    ),
    st.integers(6, 12),
)
@settings(max_examples=100, deadline=None)
def test_no_grapheme_is_cut(graphemes: list[str], size: int) -> None:
    """No space anywhere, so every cut is a hard one; no grapheme has more than 5 tokens, so each can be spared."""
    text = "".join(graphemes)
    borders = set(np.cumsum([0] + [len(grapheme) for grapheme in graphemes]).tolist())
    chunks = split(text, words(text), size=size)
    assert {chunk.start for chunk in chunks} | {chunk.end for chunk in chunks} <= borders
    assert "".join(chunk.text for chunk in chunks) == text


def test_a_grapheme_larger_than_a_chunk_is_cut_all_the_same() -> None:
    text = "e" + "\u0301" * 100
    chunks = split(text, words(text), size=7)
    assert "".join(chunk.text for chunk in chunks) == text
    assert max(len(chunk.text) for chunk in chunks) <= 7


@pytest.mark.parametrize("text", ["", " ", "\n\n\r\n\t \u3000"])
def test_nothing_to_cut(text: str) -> None:
    assert split(text, words(text), size=8) == []


def texts(text: str, size: int) -> list[str]:
    return [chunk.text for chunk in split(text, words(text), size=size)]


def test_paragraphs_are_packed() -> None:
    text = "One two.\n\nTwo two.\r\n\r\nThree two.\n\nFour two.\n"
    assert texts(text, 8) == ["One two.\n\nTwo two.", "Three two.\n\nFour two."]
    assert texts(text, 100) == [text.strip()]


def test_sentences_where_a_paragraph_is_too_long() -> None:
    assert texts("Dr. No met J. Doe at 3.5 km. He left. She did not! (Why?) Who knows.", 14) == [
        "Dr. No met J. Doe at 3.5 km.",
        "He left. She did not! (Why?)",
        "Who knows.",
    ]
    assert texts("他说：“你好。”她走了！真的吗？真是的。下一句很长很长很长很长。", 14) == [
        "他说：“你好。”她走了！",
        "真的吗？真是的。",
        "下一句很长很长很长很长。",
    ]


def test_a_wrapped_line_is_no_break_but_a_list_line_is() -> None:
    assert texts("the quick brown\nfox jumps over. The lazy\ndog sleeps now", 11) == [
        "the quick brown\nfox jumps over.",
        "The lazy\ndog sleeps now",
    ]
    assert texts("Bread and jam\nMilk and tea\nEggs and ham", 9) == ["Bread and jam\nMilk and tea", "Eggs and ham"]


def test_clauses_then_spaces_then_characters() -> None:
    assert texts("甲乙丙丁，戊己庚辛，壬癸子丑", 11) == ["甲乙丙丁，戊己庚辛，", "壬癸子丑"]
    assert texts("aa bb cc dd ee", 3) == ["aa bb cc", "dd ee"]
    assert texts("甲乙丙丁戊己庚辛壬癸", 4) == ["甲乙丙丁", "戊己庚辛", "壬癸"]


def test_a_title_stays_with_its_text() -> None:
    long = "Some words go on here. " * 20
    assert texts(f"Title\n\n{long}", 40)[0].startswith("Title\n\nSome words")


def test_a_token_of_very_many_characters_does_not_make_a_chunk_of_pages() -> None:
    """An unknown script may be one token for a whole page, and spaces are none at all."""
    text = "\u16a0" * 1000 + "a" + " " * 1000 + "b"
    offsets = np.array([[0, 1000], [1000, 1001], [2001, 2002]])
    chunks = split(text, offsets, size=8)
    assert max(len(chunk.text) for chunk in chunks) <= 8 * 16
    check(text, chunks, offsets, 8)


LONG = [
    *["." * 200_000 + "a", "\n" * 200_000 + "a", " " * 200_000 + "a", "\n " * 100_000, ". " * 100_000, '."' * 100_000],
    *["。" * 200_000, "a" * 200_000, "\u0301" * 50_000, "🇫" * 50_000],
]


@pytest.mark.parametrize("text", LONG, ids=[ascii(text[:2]) for text in LONG])
def test_no_text_takes_quadratic_time(text: str) -> None:
    offsets = np.stack([np.arange(len(text)), np.arange(1, len(text) + 1)], axis=1)
    begun = time.perf_counter()
    check_spans = split(text, offsets, size=256)
    assert time.perf_counter() - begun < 5
    assert all(text[chunk.start : chunk.end] == chunk.text for chunk in check_spans)


def test_token_spans() -> None:
    text = "aa bb\n\ncc 😀 dd"
    chunks = split(text, words(text), size=2)
    assert [chunk.text for chunk in chunks] == ["aa bb", "cc 😀", "dd"]
    # a decoder's tokens carry the space before them, and may need several tokens for one character
    decoder = np.array([[0, 2], [2, 5], [5, 7], [7, 9], [9, 11], [10, 11], [10, 11], [11, 14]])
    spans = [(chunk.token_start, chunk.token_end) for chunk in with_token_spans(chunks, decoder)]
    assert spans == [(0, 2), (3, 7), (7, 8)]
    assert all((chunk.token_start, chunk.token_end) == (-1, -1) for chunk in chunks)
    assert with_token_spans([], decoder) == []


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join), st.integers(1, 9))
@settings(max_examples=80, deadline=None)
def test_token_spans_cover_the_chunk(text: str, size: int) -> None:
    """The tokens of a span hold every visible character of the chunk, and its first and last touch the chunk."""
    decoder = np.array([match.span() for match in re.finditer(r"\s?\S{1,3}", text)], np.int64).reshape(-1, 2)
    for chunk in with_token_spans(split(text, words(text), size=size), decoder):
        part = decoder[chunk.token_start : chunk.token_end]
        assert len(part)
        assert part[0, 1] > chunk.start
        assert part[-1, 0] < chunk.end
        assert not text[chunk.start : max(chunk.start, part[0, 0])].strip()
        assert not text[min(chunk.end, part[-1, 1]) : chunk.end].strip()


def document_keeps_its_text(path: Path, variant: int) -> None:
    """Also with Windows line ends, decomposed accents and no final newline."""
    text = path.read_text("utf-8")
    if variant == 1:
        text = text.replace("\n", "\r\n")
    elif variant == 2:
        text = unicodedata.normalize("NFD", text).rstrip("\n")
    offsets = words(text)
    size = (192, 64, 256)[variant]
    chunks = split(text, offsets, size=size)
    bounds = np.searchsorted(offsets[:, 0], [(chunk.start, chunk.end) for chunk in chunks])
    assert np.diff(bounds, axis=1).max() <= size
    assert len(offsets) / len(chunks) > size / 2
    reached = 0
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text
        assert not text[reached : max(reached, chunk.start)].strip()
        assert not unicodedata.combining(chunk.text[0])
        reached = chunk.end
    assert not text[reached:].strip()


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")
@pytest.mark.parametrize("variant", [0, 1, 2])
def test_a_document_of_each_kind(variant: int) -> None:
    for name in ("xquad_en", "xquad_zh", "contract_00", "meeting_val_19", "zhmeeting_dev_96", "story_63473"):
        document_keeps_its_text(DATA / f"{name}.txt", variant)


@pytest.mark.real
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")
def test_every_document() -> None:
    paths = sorted(DATA.glob("*.txt"))
    assert len(paths) == 94
    for i, path in enumerate(paths):
        document_keeps_its_text(path, i % 3)


@pytest.mark.real
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")
def test_speed() -> None:
    """1.1 M characters in under 2 s once they are tokens; the best of three, since other work may share the machine."""
    text = (DATA / "haystack_the_federalist_papers.txt").read_text("utf-8")
    offsets = words(text)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        split(text, offsets, size=192)
        times.append(time.perf_counter() - begun)
    assert len(text) > 1_100_000
    assert min(times) < 2
