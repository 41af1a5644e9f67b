"""Needles in haystacks, by length and depth: sets of `bench.answers` that are made, not read.

`needles_4k`, `needles_16k`, `needles_64k`, `needles_150k`, or another number of thousand tokens, and `needles_4k_zh` in
Chinese: DEPTHS needles of the data folder at even depths of one document, the beginning of a haystack; of several where
they would be more than half of it. Documents are kept in minimemo's cache folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

from bench.common.data import HAY_SHARE, Question, document_text, hide, needle_groups, spread_over
from minimemo.ask.wording import in_figures
from minimemo.errors import InputError
from minimemo.files import cache_dir

DEPTHS = 20
HAYSTACKS = {"en": ("haystack_the_federalist_papers", 4.6), "zh": ("zhnovel_xiyouji", 1.4)}  # and characters a token
_LITTLE = re.compile(r"^(?:(?:a|an|the|at|by|for|from|in|of|on|to|with)\s+)+", re.IGNORECASE)
_NAME = re.compile(r"needles_([1-9]\d*)k(?:_(zh))?")


def needle_questions(data: Path, name: str, limit: int) -> list[Question] | None:
    """`limit` questions of a set of needles; None for another set.

    Raises InputError where the haystack is too short.
    """
    if not (match := _NAME.fullmatch(name)):
        return None
    language = match[2] or "en"
    hay, characters = HAYSTACKS[language]
    length = int(1000 * int(match[1]) * characters)
    text = document_text(data, hay, length)
    if len(text) < length:
        raise InputError(f"{name}: {hay} has {len(text):,} characters, not {length:,}; ask for fewer tokens")
    groups = sorted(needle_groups(data, language), key=len)[:DEPTHS]
    size = sum(len(needle["needle"]) for group in groups for needle in group)
    parts = ceil(size / (length * (1 - HAY_SHARE)))
    rows = [row for part in range(parts) for row in _haystack(f"{name}_{part}", text, groups[part::parts])]
    return spread_over(rows, limit)


def _haystack(name: str, hay: str, groups: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Writes one document and gives its questions."""
    needles = ["\n".join(needle["needle"] for needle in group) for group in groups]
    straw = hay[: len(hay) - sum(map(len, needles))]
    places = [int(len(straw) * (number + 0.5) / len(needles)) for number in range(len(needles))]
    path = cache_dir() / "bench" / "needles" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(hide(straw, 0, places, needles), encoding="utf-8", newline="")
    rows = [of for of, *_ in groups]
    return [
        {"id": f"{name}/{n}", "doc_id": name, "path": path, "type": "held", "question": row["question"],
         "answers": [form for answer in row["answers"] for form in _forms(answer)]}
        for n, row in enumerate(rows)
    ]  # fmt: skip


def _forms(answer: str) -> list[str]:
    """An answer, each of those that it joins by "or", without the little words that it begins with, in figures."""
    parts = [answer, *re.split(r",? or ", answer)]
    bare = [_LITTLE.sub("", part) for part in parts]
    return list(dict.fromkeys([*parts, *bare, *map(in_figures, bare)]))
