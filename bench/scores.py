"""How close an answer is to the right ones: exact match and token F1 (SQuAD, arXiv 1606.05250), characters for CJK."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_ARTICLES = {"a", "an", "the"}


def units(text: str) -> list[str]:
    """Words without punctuation, case and articles; every CJK character is a unit of its own."""
    plain = unicodedata.normalize("NFKC", text).lower()
    plain = "".join(char if unicodedata.category(char)[0] in "LNM" else " " for char in plain)
    words = _CJK.sub(lambda match: f" {match.group()} ", plain).split()
    return [word for word in words if word not in _ARTICLES]


def exact_match(found: str, answers: Sequence[str]) -> float:
    return float(any(units(found) == units(answer) for answer in answers))


def f1(found: str, answers: Sequence[str]) -> float:
    """The best F1 over the right answers, 0 to 1."""
    return max((_f1(units(found), units(answer)) for answer in answers), default=0.0)


def _f1(found: list[str], right: list[str]) -> float:
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right)) if common else 0.0
