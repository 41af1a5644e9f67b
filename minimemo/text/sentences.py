"""Where sentences end, in Chinese and in Latin scripts: what passages are cut at and what a document is quoted in."""

from __future__ import annotations

import re

from minimemo.text.words import terms

LEAST = 5  # terms of a sentence; a shorter one, a heading mostly, goes with the next. from 4 to 8 all are even

_CLOSERS = "[\"'”’」』）)】》〉\\]]*"
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")
_SENTENCE = re.compile(
    rf"[。！？｡]+…*{_CLOSERS}|……+{_CLOSERS}"  # CJK: nothing need follow
    # Latin: a space and no small letter must follow; abbreviations and initials do not end a sentence. The first
    # look-behind lets a run of dots match from its start only: without it long runs take quadratic time.
    rf"|(?<![.!?…])(?<!\b[A-Z])(?<!\b(?:Mr|Ms|Dr|St|No|vs|Jr|Sr|Co))(?<!\b(?:Mrs|Ltd|Inc|etc|Rev|Gen))(?<!\bProf)"
    rf"[.!?…]+{_CLOSERS}(?=\s)(?!\s+[a-z])"
)
_ITEM = re.compile(r"\n(?=[^\S\n]*(?:[-*•·|]|\d{1,3}[.)、]|[（(]\d{1,3}[)）])\s*\S)")  # of a list, a row of a table


def sentence_ends(text: str) -> list[int]:
    """Ascending places right behind the sentences of a text, closing quotes and brackets included.

    A sentence without a mark at its end, the last one for example, has none.
    """
    return [match.end() for match in _SENTENCE.finditer(text)]


def paragraph_starts(text: str) -> list[int]:
    """Ascending places behind blank lines."""
    return [match.end() for match in _BLANK_LINE.finditer(text)]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """The sentences [start, end) of a text, without white space around them; every letter is in one.

    Paragraphs and items of a list end sentences too. A heading goes with the sentence that follows it, what is short at
    the end of a paragraph with the one before.
    """
    paragraphs = paragraph_starts(text)
    cuts = sorted({*paragraphs, *sentence_ends(text), *(item.end() for item in _ITEM.finditer(text)), len(text)})
    spans: list[tuple[int, int]] = []
    start = 0
    for cut in cuts:
        if long := len(terms(text[start:cut])) >= LEAST:
            spans.append((start, cut))
        if long or not text[start:cut].strip():
            start = cut
    if text[start:].strip():  # what is left goes with the one before, but for a heading of what the passage has not
        alone = not spans or start in paragraphs
        spans.append((start if alone else spans.pop()[0], len(text)))
    return [(end - len(text[start:end].lstrip()), start + len(text[start:end].rstrip())) for start, end in spans]
