"""A passage -> its sentences, as exact spans: what a document's own words are quoted in."""

from __future__ import annotations

import re

from minimemo.text.chunks import BLANK_LINE, SENTENCE, Chunk
from minimemo.text.words import terms

_ITEM = re.compile(r"\n(?=[^\S\n]*(?:[-*•·|]|\d{1,3}[.)、]|[（(]\d{1,3}[)）])\s*\S)")  # of a list, a row of a table
LEAST = 5  # terms of a sentence; a shorter one, a heading mostly, goes with the next. 4 to 8 are even (LOG.md)


def sentences(chunk: Chunk, first: int = 0) -> list[Chunk]:
    """The sentences of a passage, without white space around them, numbered from `first`; every letter is in one."""
    text = chunk.text
    paragraphs = {match.end() for match in BLANK_LINE.finditer(text)}
    ends = {match.end() for kind in (SENTENCE, _ITEM) for match in kind.finditer(text)}
    cuts = sorted({len(text)} | paragraphs | ends)
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
    found: list[Chunk] = []
    for start, end in spans:
        start += len(text[start:end]) - len(text[start:end].lstrip())
        own = text[start:end].rstrip()
        at = chunk.start + start
        found.append(Chunk(first + len(found), at, at + len(own), own))
    return found
