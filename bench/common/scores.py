"""How close an answer is to the right ones, 0 to 1: exact match and token F1 (SQuAD, arXiv 1606.05250), ROUGE-L (Lin
2004, by the rouge-score package); CJK counts by characters."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

FREE = {"query-summary", "gist"}  # long free answers, which share few exact words in any order: their order counts

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


def rouge_l(found: str, answers: Sequence[str]) -> float:
    """The best ROUGE-L (F measure of the longest common subsequence) over the right answers, 0 to 1.

    English as rouge-score has it, with its stemmer; answers with CJK characters by `units`.
    """
    scorer = _rouge(any(_CJK.search(answer) for answer in answers))
    return max((float(scorer.score(answer, found)["rougeL"].fmeasure) for answer in answers), default=0.0)


def holds(reply: str, answers: Sequence[str]) -> bool:
    """Whether a reply has the words of an answer, all of them in a row."""
    said = f" {' '.join(units(reply))} "
    return any(words and f" {' '.join(words)} " in said for words in map(units, answers))


def scores(found: str, answers: Sequence[str], kind: str) -> dict[str, float]:
    """em, f1 and, for long answers, rouge_l, of a question of type `kind`."""
    known = {"em": exact_match(found, answers), "f1": f1(found, answers)}
    return {**known, "rouge_l": rouge_l(found, answers)} if kind in FREE else known


def _f1(found: list[str], right: list[str]) -> float:
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right)) if common else 0.0


@cache
def _rouge(by_character: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = SimpleNamespace(tokenize=units) if by_character else None
    return RougeScorer(["rougeL"], use_stemmer=True, tokenizer=tokenizer)
