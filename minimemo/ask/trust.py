"""How likely an answer is right: what its writer and the words of the passages say of it, weighed into a probability.

The weights in trust.toml are of a logistic regression, fitted to questions with known answers and to questions that
their documents do not answer; `python -m bench.answers.fit` fits and prints them. There is a set for writers of more
than writer.SMALL parameters, one for smaller ones, and one for those of whom nothing but their text is known.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from math import exp
from pathlib import Path

from minimemo.ask.evidence import Passage
from minimemo.ask.writer import Weighed
from minimemo.text.sentences import sentence_ends
from minimemo.text.words import content_units, normalize, roots

OPEN = 0.5

_WORD = re.compile(r"[^\W_]+")
_END = re.compile(r"\n+")
_PARAGRAPH = re.compile(r"\n\s*\n")
_NAME = re.compile(r"(?<!^)(?<![.!?]\s)\b[A-Z][\w'’-]*|\b[\w-]*\d[\w-]*(?:[.,]\d+)*")
_NUMBER = re.compile(
    r"\d|[一二三四五六七八九十百千万萬零〇两兩]|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|\w+teen|\w+ty"
    r"|hundred|thousand|million|once|twice|half|first|second|third)\b",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"\d|[年月日时時早晚]|\b(?:january|february|march|april|may|june|july|august|september|october|november|december"
    r"|\w+day|morning|evening|night|noon|century|year|week|month|after|before|during|when)",
    re.IGNORECASE,
)
_ASKS_NUMBER = re.compile(
    r"\bhow\s(?:many|much|long|old|far|high|large|big|tall|often)\b|多少|[几幾]|多[长長高大远遠久]", re.IGNORECASE
)
_ASKS_TIME = re.compile(
    r"\b(?:when|(?:what|which)\s(?:\w+\s)?(?:year|date|day|month|time|century))\b|哪一?[年天]|何[时時]|什[么麼][时時]候",
    re.IGNORECASE,
)
_ASKS_WHO = re.compile(r"^\W*(?:who|whom|whose)\b", re.IGNORECASE)
_COMPUTES = re.compile(
    r"\bhow\s(?:much|many)\s(?:more|less|fewer|longer|older|higher|larger)\b|\bdifference\b|相差|[差多少]多少",
    re.IGNORECASE,
)
_SUPERLATIVE = re.compile(
    r"\b(?:(?:larg|small|high|low|long|short|old|young|earli|lat|great|bigg|near|fast|cheap|heavi|tall|deep|new|few)est"
    r"|most|least)\b|最\w",
    re.IGNORECASE,
)
_PRONOUN = re.compile(r"\b(?:he|she|they|him|her|them|his|hers|their|theirs)\b|[他她它]们?", re.IGNORECASE)
_PERSON = re.compile(r"[A-Z]|[^\x00-\x7f]|\b(?:he|she|they|his|her|their|the|an?)\b")


def signals(question: str, answer: str, passages: Sequence[Passage], weighed: Weighed | None) -> dict[str, float]:
    """Gives the numbers that a probability is computed from, each within a few units of 0."""
    text = "\n".join(filter(None, (line for p in passages for line in (p.header, p.text))))
    asked, shown = content_units(question), content_units(text)
    units = content_units(answer)
    new = units - asked
    plain = _plain(text)
    values = {
        "held": len((new or units) & shown) / len(new or units) if units else 0.5,
        "related": _related(new or units, asked, text),
        "asked": len(asked & shown) / len(asked) if asked else 0.5,
        "named": names_within(question, text),
        "fits": _fits(question, answer),
        "new": float(bool(new)),
        "open": float(_is_open(question, answer, plain)),
    }
    if weighed:
        values |= {
            "likely": max(weighed.likely, -8.0) / 4,
            "margin": min(max(weighed.likely - weighed.refusal, -4.0), 12.0) / 4,
            "stated": min(max(weighed.stated, -4.0), 4.0),
        }
    return values


def probability(values: Mapping[str, float], small: bool = False) -> float:
    """Gives the probability, 0 to 1, that an answer with such signals is right, OPEN at most where the question leaves
    something open; small: whether its writer has less than writer.SMALL parameters."""
    weights = _weights()["words" if "likely" not in values else "small" if small else "large"]
    total = weights["bias"] + sum(weights[name] * value for name, value in values.items() if name != "open")
    return min(1 / (1 + exp(-total)), OPEN if values["open"] else 1.0)


@cache
def _weights() -> dict[str, dict[str, float]]:
    return tomllib.loads(Path(__file__).with_name("trust.toml").read_text(encoding="utf-8"))


def names_within(question: str, text: str) -> float:
    """Gives the share of a question's names and numbers that a text has; 1 where it has none."""
    names, plain = [normalize(name) for name in _NAME.findall(question)], _plain(text)
    return sum(_within(name, plain) for name in names) / len(names) if names else 1.0


def telling_sentence(question: str, passages: Sequence[Passage]) -> str:
    """The sentence with most of what a question asks beside its names, which stand in it or before it in its paragraph;
    "" where none has half of that."""
    named = frozenset().union(*map(roots, _NAME.findall(question)))
    asked = roots(question) - named
    found = ""
    best = max(1, (len(asked) + 1) // 2) - 1
    for passage in passages:
        for paragraph in _PARAGRAPH.split(passage.text):
            ends = [0, *sentence_ends(paragraph), len(paragraph)]
            for start, end in pairwise(ends):
                words = len(asked & roots(paragraph[start:end]))
                if words > best and names_within(question, paragraph[:end]) == 1:
                    found, best = paragraph[start:end], words
    return " ".join(found.split())


def _plain(text: str) -> str:
    """Single words, a space around each."""
    return " ".join(["", *_WORD.findall(normalize(text)), ""])


def _within(name: str, text: str) -> bool:
    """Whether a text of single words has all words of a name."""
    return all(f" {word} " in text or f" {word}s " in text for word in _WORD.findall(name))


def _related(units: frozenset[str], asked: frozenset[str], text: str) -> float:
    """The best share of the question's words, of those that any two neighbouring sentences have, that stand beside the
    answer's: in the sentence that holds most of them, or one next to it."""
    ends = [0, *sorted({*sentence_ends(text), *(m.end() for m in _END.finditer(text))}), len(text)]
    sentences = [content_units(text[a:b]) for a, b in pairwise(ends)]
    sentences = [words for words in sentences if words]
    if not units or not sentences:
        return 0.5
    held = [len(units & words) for words in sentences]
    near = [len(asked & frozenset().union(*sentences[max(0, at - 1) : at + 1])) for at in range(len(sentences))]
    if not max(near):
        return 0.5
    return max(n for h, n in zip(held, near, strict=True) if h == max(held)) / len(asked)


def _is_open(question: str, answer: str, text: str) -> bool:
    """Whether a question leaves open of whom it speaks, or asks to compute or to compare what the passages do not state
    themselves, or for a count."""
    superlative = _SUPERLATIVE.search(question)
    if _COMPUTES.search(question) or (superlative and superlative[0].casefold() not in text):
        return True
    if (pronoun := _PRONOUN.search(question)) and not _NAME.search(question[: pronoun.start()]):
        return True
    counts = re.findall(r"\d+", normalize(answer))
    return bool(_ASKS_NUMBER.search(question) and counts and not any(_within(one, text) for one in counts))


def _fits(question: str, answer: str) -> float:
    """Whether an answer has the form that is asked for: 1, or 0; .5 where the question does not tell."""
    for asks, has in ((_ASKS_NUMBER, _NUMBER), (_ASKS_TIME, _TIME), (_ASKS_WHO, _PERSON)):
        if asks.search(question):
            return float(has.search(answer) is not None)
    return 0.5
