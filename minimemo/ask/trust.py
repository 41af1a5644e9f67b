"""How likely an answer is right: what its writer and the words of the passages say of it, weighed into a probability.

The weights in trust.toml are of a logistic regression, fitted to questions with known answers and to questions that
their documents do not answer; `python -m bench.answers.fit` fits and prints them. There is a set for writers of more
than writer.SMALL parameters, one for what they write from a whole document, one for smaller ones, and one for those of
whom nothing but their text is known.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from math import exp
from pathlib import Path

from minimemo.ask.answer import Answer, Passage
from minimemo.ask.wording import ASKS, NAME, asked_roots, in_figures, word_roots
from minimemo.ask.writer import Weighed
from minimemo.text.scripts import HAN
from minimemo.text.sentences import sentence_ends
from minimemo.text.words import normalize, roots

OPEN = 0.5
NEAR = 2  # Sentences on both sides of an answer's: a person is named once, and is "she" from there on.

_END = re.compile(r"\n+")
_ASKS_NUMBER = re.compile(
    r"\bhow\s(?:many|much|long|old|far|high|large|big|tall|often)\b|多少|[几幾]|多[长長高大远遠久]", re.IGNORECASE
)
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
_CAPITALS = re.compile(r"(?<!^)(?<![.!?]\s)\b[A-Z][A-Za-z'’-]*")
_FIGURE = re.compile(r"(?<![\d.,])\d+(?:[.,]\d+)*")
_HAN_DIGITS = re.compile("[〇零一二三四五六七八九]{2,}")
_DIGITS = str.maketrans("〇零一二三四五六七八九", "00123456789")
_HAN_RUN = re.compile(f"[{HAN}]")


def signals(question: str, answer: str, passages: Sequence[Passage], weighed: Weighed | None) -> dict[str, float]:
    """Gives the numbers that a probability is computed from, each within a few units of 0.

    held: share of the answer's words, those of the question left out, that the passages have. around: share of what is
    asked that stands within NEAR sentences of the answer. figures: whether the question's numbers stand beside it.
    named: share of the question's names that the passages have. zh: whether the question is Chinese, where models say
    "yes" more easily. margin: log-odds of the answer and of a refusal; stated: of yes and no, whether the passages
    state it. open: whether the question leaves something open (no part of the probability, which it limits).
    """
    text = "\n".join(filter(None, (line for p in passages for line in (p.header, p.text))))
    asked, shown, units = asked_roots(question), word_roots(text), word_roots(answer)
    new = units - asked or units
    around, figures = _beside(new, asked, _numbers(question), text)
    chinese = bool(_HAN_RUN.search(question))
    names = asked if chinese else frozenset().union(*map(roots, _CAPITALS.findall(question)))
    foreign = not asked & shown and chinese != bool(_HAN_RUN.search(text))
    values = {
        "held": len(new & shown) / len(new) if new else 0.5,
        "around": 0.5 if foreign else around,
        "figures": 0.5 if foreign and figures < 1 else figures,
        "named": len(names & shown) / len(names) if names and not foreign else 1.0,
        "zh": float(chinese),
        "open": float(_is_open(question, answer, text)),
    }
    if weighed:
        values |= {
            "margin": min(max(weighed.likely - weighed.refusal, -4.0), 12.0) / 4,
            "stated": min(max(weighed.stated, -4.0), 4.0),
        }
    return values


def beside(answer: str, first: Answer) -> dict[str, float]:
    """Two more signals of an answer from a whole document: same: whether it and the first one, from passages, say the
    same, by their words; first: how likely that one is."""
    refused = first.signals.get("refused", 0.0)
    one, other = word_roots(answer), word_roots(first.guess or first.text)
    same = bool(one and other) and not refused and (one <= other or other <= one)
    return {"same": float(same), "first": first.confidence if first.guess is None else 1 - first.confidence}


def probability(values: Mapping[str, float], small: bool = False) -> float:
    """Gives the probability, 0 to 1, that an answer with such signals is right, OPEN at most where the question leaves
    something open; small: whether its writer has less than writer.SMALL parameters."""
    part = "words" if "stated" not in values else "whole" if "same" in values else "small" if small else "large"
    weights = _weights()[part]
    total = weights["bias"] + sum(weight * values[name] for name, weight in weights.items() if name != "bias")
    return min(1 / (1 + exp(-total)), OPEN if values["open"] else 1.0)


@cache
def _weights() -> dict[str, dict[str, float]]:
    return tomllib.loads(Path(__file__).with_name("trust.toml").read_text(encoding="utf-8"))


def _beside(units: frozenset[str], asked: frozenset[str], numbers: frozenset[str], text: str) -> tuple[float, float]:
    """The best share of `asked` within NEAR sentences of one that holds most of an answer's units, and whether all
    `numbers` stand beside such a one. A sentence that asks something tells nothing: in a chat the one who asks who
    brings the tent does not bring it."""
    ends = [0, *sorted({*sentence_ends(text), *(m.end() for m in _END.finditer(text))}), len(text)]
    told = [text[a:b] for a, b in pairwise(ends) if text[a:b].strip() and not ASKS.search(text[a:b])]
    words = list(map(word_roots, told))
    held = [len(units & some) for some in words]
    around, figures = 0.0, 0.0
    for at in (at for at, count in enumerate(held) if count and count == max(held)):
        near = frozenset().union(*words[max(0, at - NEAR) : at + NEAR + 1])
        around = max(around, len(asked & near) / len(asked) if asked else 0.5)
        figures = max(figures, float(numbers <= _numbers("\n".join(told[max(0, at - 1) : at + 2]))))
    return around, figures if numbers else 1.0


def _numbers(text: str) -> frozenset[str]:
    """The numbers of a text, written as figures: 1,200 as 1200, 一九三五 as 1935."""
    plain = _HAN_DIGITS.sub(lambda run: run[0].translate(_DIGITS), in_figures(normalize(text)))
    return frozenset(number.replace(",", "") for number in _FIGURE.findall(plain))


def _is_open(question: str, answer: str, text: str) -> bool:
    """Whether a question leaves open of whom it speaks, or asks to compute or to compare what the passages do not state
    themselves, or for a count."""
    superlative = _SUPERLATIVE.search(question)
    if _COMPUTES.search(question) or (superlative and superlative[0].casefold() not in text.casefold()):
        return True
    if (pronoun := _PRONOUN.search(question)) and not NAME.search(question[: pronoun.start()]):
        return True
    counts = _numbers(answer)
    return bool(_ASKS_NUMBER.search(question) and counts and not counts & _numbers(text))
