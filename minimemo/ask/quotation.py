"""Sentences of a document as an answer: its own words, in its order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from minimemo.ask.answer import Passage

if TYPE_CHECKING:
    from minimemo.text.chunks import Hit


def quotation(sentences: Sequence[Hit], documents: Sequence[str]) -> str:
    """The sentences, one a line; documents: the names of those that hits count through."""
    ordered = sorted(sentences, key=lambda one: (documents[one.document], one.chunk.start))
    return "\n".join(" ".join(one.chunk.text.split()) for one in ordered)


def quoted_first(
    passages: Sequence[Passage], sentences: Sequence[Hit], documents: Sequence[str]
) -> tuple[Passage, ...]:
    """The passages, those that hold one of the sentences cited and before all others."""
    places = [(documents[one.document], one.chunk.start) for one in sentences]
    marked = [
        replace(p, cited=any(p.document == document and p.start <= start < p.end for document, start in places))
        for p in passages
    ]
    return tuple(sorted(marked, key=lambda passage: not passage.cited))
