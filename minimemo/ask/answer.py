"""What a question gives back: the text, the passages that it rests on, and an honest word on whether they hold it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from minimemo.ask.clues import Clue, is_refusal
from minimemo.ask.evidence import Passage
from minimemo.ask.question import AnswerMode, Question
from minimemo.ask.writer import Written
from minimemo.text.scripts import Language
from minimemo.text.words import content_units

SUPPORTED = 0.5  # This share of an answer's content words must stand in the passages.
RELATED = 0.5  # The answer's sentence must share this much with the question, of what the passages' best one shares.
CITED = 0.8  # A passage is cited when it holds at least this share of what the best passage holds.

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
    timings: seconds by stage, and "total"; they do not count when answers are compared.
    finish_reason: "length" where the text was cut at the longest that was allowed.
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
    timings: dict[str, float] = dataclasses.field(compare=False)
    finish_reason: Literal["stop", "length"] = "stop"

    @classmethod
    def of(cls, question: Question, found: Found, written: Written) -> Answer:
        """Judges what was written from what was found; a prompt that another model read counts as prefilled."""
        cut = written.prompt_tokens > 0 and written.tokens >= question.max_tokens  # parts that are joined are whole
        elsewhere = 0 if question.generator is question.writer else written.prompt_tokens
        return cls(
            text=written.text,
            question=question.text,
            mode=question.mode,
            language=question.language,
            clues=found.clues,
            draft=found.draft,
            passages=cite(written.text, question.text, found.passages),
            supported=is_supported(written.text, question.text, found.passages, question.prompts.not_found),
            prompt_tokens=written.prompt_tokens,
            generated_tokens=written.tokens,
            prefilled_tokens=question.writer.engine.prefilled - question.prefilled_before + elsewhere,
            timings=question.clock.timings(),
            finish_reason="length" if cut else "stop",
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain lists, dicts, strings and numbers, ready for JSON."""
        record = dataclasses.asdict(self)
        record["clues"] = list(record["clues"])
        record["passages"] = [
            {**p, **{name: list(p[name]) for name in ("sources", "found_by", "heading")}} for p in record["passages"]
        ]
        return record


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
