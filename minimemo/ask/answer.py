"""What a question gives back: the text, the passages that it rests on, and an honest word on whether they hold it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from minimemo.ask.clues import Clue
from minimemo.ask.evidence import Passage
from minimemo.text.scripts import Language
from minimemo.text.words import content_units, normalize

Mode: TypeAlias = Literal["memorag", "rag", "memory", "closed", "gist"]
AnswerMode: TypeAlias = Literal["memorag", "rag", "memory", "closed", "gist", "summarize"]

SUPPORTED = 0.5  # This share of an answer's content words must stand in the passages.
RELATED = 0.5  # The answer's sentence must share this much with the question, of what the passages' best one shares.
CITED = 0.8  # A passage is cited when it holds at least this share of what the best passage holds.

_REFUSAL = re.compile(
    r"not (?:found|mentioned|stated|specified|provided|given|available)|no (?:relevant )?information"
    r"|(?:can ?not|can't|could not|unable to) (?:be )?(?:found|find|determined?|answer(?:ed)?)"
    r"|do(?:es)? not (?:say|mention|contain|provide)"
    r"|未提[及到]|[没沒]有?(?:提[及到]|找到|说明|說明|相关|相關)|无法(?:确定|回答|找到)|無法(?:確定|回答|找到)|未找到|不清楚"
)
_REFUSAL_WITHIN = 160  # Characters; a longer answer may say that of one point and answer the others.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；])|\n+")


@dataclass(frozen=True, slots=True)
class Found:
    """What an answer will be written from; streamed once, before its first piece."""

    clues: tuple[Clue, ...] = ()
    draft: str = ""
    passages: tuple[Passage, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with everything that led to it. A summary has mode "summarize", and no question where it was asked for
    without one.

    language: of the prompts that were used.
    clues: texts from memory that the documents were searched with.
    draft: a first answer from memory; "" without one.
    passages: those given to the model, or the sources of what memory told; in the order of the documents.
    supported: whether the passages hold the answer, judged by words (see `is_supported`); of a quotation, whether it
        has a word of the question. False without passages.
    prompt_tokens: of the prompt that the text was written from, the memory not counted; 0 where it was told in parts.
    generated_tokens: of the text.
    prefilled_tokens: by all stages together; a memory that is read, not computed again, adds nothing to them.
    timings: seconds by stage, and "total".
    """

    text: str
    question: str
    mode: AnswerMode
    language: Language
    clues: tuple[Clue, ...]
    draft: str
    passages: tuple[Passage, ...]
    supported: bool
    prompt_tokens: int
    generated_tokens: int
    prefilled_tokens: int
    timings: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain lists, dicts, strings and numbers, ready for JSON."""
        record = dataclasses.asdict(self)
        record["clues"] = list(record["clues"])
        record["passages"] = [
            {**p, "sources": list(p["sources"]), "found_by": list(p["found_by"])} for p in record["passages"]
        ]
        return record


def is_refusal(text: str, not_found: str = "") -> bool:
    """Tells whether an answer says that nothing answers: in the agreed words, or as usual in a short text."""
    plain = normalize(text)
    agreed = normalize(not_found)
    if not plain or (agreed and plain.startswith(agreed)):
        return True
    return len(plain) <= _REFUSAL_WITHIN and _REFUSAL.search(plain) is not None


def is_part(answer: str, other: str) -> bool:
    """Tells whether an answer's content words are all in another one; False when it has none ("yes")."""
    units = content_units(answer)
    return bool(units) and units <= content_units(other)


def support(answer: str, question: str, text: str) -> float | None:
    """Gives the share of the answer's content words (CJK: character pairs) that stand in `text`, 0 to 1.

    Words of the question are left out unless the answer has no others. None when it has no content words at all
    ("yes"), so that nothing can be looked up.
    """
    units = content_units(answer)
    units = units - content_units(question) or units
    return len(units & content_units(text)) / len(units) if units else None


def is_supported(answer: str, question: str, passages: Sequence[Passage], not_found: str = "") -> bool:
    """Judges by words alone whether the passages hold the answer: at least half of its content words, in a sentence
    that has to do with the question (`is_related`).

    False for a refusal and without passages. It cannot see a wrong relation between right words of one sentence,
    calls an answer in other words or another language than the passages' unsupported, and lets "yes" and "no" pass.
    """
    if not passages or is_refusal(answer, not_found):
        return False
    share = support(answer, question, "\n".join(p.text for p in passages))
    return share is None or (share >= SUPPORTED and is_related(answer, question, passages))


def is_related(answer: str, question: str, passages: Sequence[Passage]) -> bool:
    """Tells whether a sentence that best holds the answer has to do with the question: with the sentence before it, it
    shares at least half as many content words with the question as any two such sentences do.

    Small models copy a phrase from beside what was asked for. True when nothing can be told: no sentence holds half
    of the answer, or none shares a word with the question, as when that is in another language.
    """
    asked, units = content_units(question), content_units(answer)
    units = units - asked or units
    held, shared = [0], [0]
    for passage in passages:
        before: frozenset[str] = frozenset()
        for sentence in _SENTENCE_END.split(passage.text):
            words = content_units(sentence)
            held.append(len(units & words))
            shared.append(len(asked & (before | words)))
            before = words
    best = max(held)
    if best < SUPPORTED * len(units):
        return True
    return any(h == best and s >= RELATED * max(shared) for h, s in zip(held, shared, strict=True))


def cite(answer: str, question: str, passages: Sequence[Passage]) -> tuple[Passage, ...]:
    """Sets `cited` on the passages that hold (nearly) as many of the answer's words as the best one does."""
    shares = [support(answer, question, p.text) or 0.0 for p in passages]
    best = max(shares, default=0.0)
    return tuple(
        dataclasses.replace(p, cited=best > 0 and share >= CITED * best)
        for p, share in zip(passages, shares, strict=True)
    )
