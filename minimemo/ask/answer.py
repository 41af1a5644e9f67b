"""What a question gives back: the text, the passages that it rests on, and an honest word on whether they hold it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any, Literal, TypeVar, cast

from minimemo.ask.clues import Clue, is_refusal
from minimemo.ask.question import AnswerMode, Question
from minimemo.ask.wording import word_roots
from minimemo.ask.writer import Written
from minimemo.errors import InputError
from minimemo.text.scripts import Language
from minimemo.text.sentences import sentence_spans
from minimemo.text.words import content_units, normalize

SUPPORTED = 0.5  # This share of an answer's content words must stand in the passages.
RELATED = 0.5  # The answer's sentence must share this much with the question, of what the passages' best one shares.
CITED = 0.8  # A passage is cited when it holds at least this share of what the best passage holds.

SURE = 0.65  # A phrase this likely to be right is shown without a word of doubt,
REFUSED = 0.4  # and one that is less likely than this not at all.
REFUSED_ANEW = 0.5  # So is one from the whole document where its passages do not say it.

DECIDED = 0.6  # Log-odds of "yes" or "no" nearer to even than this are shown with a word of doubt.

_Record = TypeVar("_Record")

_CHOICE = re.compile(
    r"""\bor\b | \bbetween\b.+\band\b.+\b(?:which|who)\b | \b(?:which|who)\b.+\bbetween\b.+\band\b
  | 还是|還是|或 | [和与與跟].+(?:哪一?[个個种種位家]|谁更|誰更)""",
    re.IGNORECASE | re.VERBOSE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；])|\n+")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of evidence: `text == [start:end]` of the document's text, in characters.

    score: the best one over the queries that retrieved it.
    sources: the retrieval lists that it came from, "embedding" and "lexical".
    found_by: "question", or the kinds of clue that retrieved it.
    cited: whether the answer's words come from it (see `cite`).
    span: of a cited passage, the sentence that holds most of the answer's words: [start, end) of the document's text.
    document: its name.
    header: of the table that it begins inside of; it is no part of the text.
    page, label, heading, time: where the answer's words stand, else its sentence, else where it begins; see
    text.document.Place.
    """

    start: int
    end: int
    text: str
    score: float
    sources: tuple[str, ...] = ()
    found_by: tuple[str, ...] = ()
    cited: bool = False
    span: tuple[int, int] | None = None
    document: str = ""
    header: str = ""
    page: int | None = None
    label: str = ""
    heading: tuple[str, ...] = ()
    time: str = ""

    @property
    def where(self) -> str:
        """Where it stands, for people: its page by the printed number, else headings or time; "" in plain text."""
        if self.page is not None:
            return f"p. {self.label or self.page}"
        return " > ".join(self.heading) or self.time

    @property
    def quoted(self) -> str:
        """The sentence of its span, the whole of it where there is none, in one line."""
        begin, end = self.span or (self.start, self.end)
        return " ".join(self.text[begin - self.start : end - self.start].split())


@dataclass(frozen=True, slots=True)
class Found:
    """What an answer will be written from; streamed once, before its first piece."""

    clues: tuple[Clue, ...] = ()
    draft: str = ""
    passages: tuple[Passage, ...] = ()

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Found:
        """Reads clues, draft and passages from plain lists, dicts and strings, as `Answer.from_dict` does."""
        return _restored(cls, record)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with everything that led to it. A summary has mode "summarize", and no question where it was asked for
    without one.

    asked: the question as it was searched for: with turns of a conversation where it leaned on them, else `question`.
    language: of the prompts that were used.
    clues: texts from memory that the documents were searched with.
    draft: a first answer from memory; "" without one.
    passages: those given to the model, or the sources of what memory or a whole document told; in the order of the
        documents.
    supported: whether the answer is shown to be held by the passages: of a phrase, by its `confidence`; else by words
        (see `is_supported`); of a quotation, whether it has a word of the question. False without passages.
    confidence: probability that a phrase, or yes or no, is right, 0 to 1; of "The document does not say.", that every
        other answer is wrong. For all else 1 or 0, as `supported` is.
    signals: what a phrase's confidence was computed from, see `trust.signals`; refused: whether its writer gave none.
    guess: where the text says that the document does not say, the likeliest answer instead, or ""; else None.
    prompt_tokens: of the prompt that the text was written from, the memory not counted; 0 where it was told in parts.
    generated_tokens: of the text.
    prefilled_tokens: by all stages together; a memory that is read, not computed again, adds nothing to them, nor does
        a short document that the question before has left in the cache.
    timings: seconds by stage, and "total". Neither of the two counts when answers are compared.
    finish_reason: "length" where the text was cut at the longest that was allowed.
    view: the stretches that memory was read of: a document's name, and about which of its characters, [start, end).
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
    prefilled_tokens: int = field(compare=False)
    timings: dict[str, float] = field(compare=False)
    finish_reason: Literal["stop", "length"] = "stop"
    confidence: float = 0.0
    signals: dict[str, float] = field(default_factory=dict)
    guess: str | None = None
    asked: str = ""
    view: tuple[tuple[str, int, int], ...] = ()

    @classmethod
    def of(cls, question: Question, found: Found, written: Written) -> Answer:
        """Judges what was written from what was found. What it took and where it stands, the session adds."""
        cut = written.prompt_tokens > 0 and written.tokens >= question.max_tokens  # parts that are joined are whole
        supported = is_supported(written.text, question.text, found.passages, question.prompts.not_found)
        return cls(
            text=written.text,
            question=question.typed,
            asked=question.text,
            mode=question.mode,
            language=question.language,
            clues=found.clues,
            draft=found.draft,
            passages=cite(written.text, question.text, found.passages),
            supported=supported,
            confidence=float(supported),
            prompt_tokens=written.prompt_tokens,
            generated_tokens=written.tokens,
            prefilled_tokens=0,
            timings={},
            finish_reason="length" if cut else "stop",
        )

    @classmethod
    def weighed(
        cls,
        question: Question,
        found: Found,
        written: Written,
        values: dict[str, float],
        likely: float,
        anew: bool = False,
    ) -> Answer:
        """A phrase that is `likely` right by its signals, or the word that the document does not say where it hardly
        is; anew: whether that was the first answer already."""
        answer = cls.of(question, found, written)
        refused = is_refused(written.text, question.prompts.not_found, found.passages)
        refused = refused or is_echo(written.text, question.typed)
        values = {**values, "refused": float(refused)}
        hardly = likely < (REFUSED_ANEW if anew else REFUSED)
        if refused or (hardly and not values["open"]):  # what is open is doubted
            answer = cls.unanswered(question, found, answer)
            return dataclasses.replace(answer, confidence=1 - likely, signals=values)
        return dataclasses.replace(answer, confidence=likely, supported=likely >= SURE, signals=values)

    def weighed_by_words(self, values: dict[str, float], likely: float, not_found: str) -> Answer:
        """Gives the phrase, which was shown already, with how likely its words make it."""
        if is_refused(self.text, not_found, self.passages) or not self.passages:
            likely = 0.0
        return dataclasses.replace(self, confidence=likely, supported=likely >= SURE, signals=values)

    @classmethod
    def decided(cls, question: Question, found: Found, odds: float, prompt_tokens: int, shown: str) -> Answer:
        """Yes or no by the log-odds of the two, and the sentence that tells it, `shown` with it; sure of it from
        DECIDED on."""
        word = question.prompts.yes if odds > 0 else question.prompts.no
        stop = "。" if question.language == "zh" else ". "
        answer = cls.of(question, found, Written(f"{word}{stop}{shown}".strip(), prompt_tokens, 1))
        likely = 1 / (1 + exp(-abs(odds)))
        return dataclasses.replace(answer, confidence=likely, supported=abs(odds) >= DECIDED, signals={"odds": odds})

    @classmethod
    def unanswered(cls, question: Question, found: Found, instead: Answer | None = None) -> Answer:
        """The word that the document does not say, `instead` of an answer that is likely wrong."""
        answer = instead or cls.of(question, found, Written("", 0, 0))
        passages = tuple(dataclasses.replace(p, cited=False, span=None) for p in answer.passages)
        text, guess = question.prompts.unanswered, answer.text
        return dataclasses.replace(answer, text=text, guess=guess, passages=passages, supported=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain lists, dicts, strings and numbers, ready for JSON."""
        record = dataclasses.asdict(self)
        record["clues"] = list(record["clues"])
        record["view"] = [list(stretch) for stretch in record["view"]]
        record["passages"] = [
            {**p, **{name: list(p[name]) for name in ("sources", "found_by", "heading", "span") if p[name] is not None}}
            for p in record["passages"]
        ]
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Answer:
        """Reads what `to_dict` gave, through JSON or not, into an equal answer; fields of later versions are passed
        over. Raises InputError for what lacks one."""
        return _restored(cls, record)


def _restored(cls: type[_Record], record: Mapping[str, Any]) -> _Record:
    """A frozen record from plain lists, dicts, strings and numbers."""
    inner = {"clues": Clue, "passages": Passage}
    values: dict[str, Any] = {}
    try:
        for name in [each.name for each in dataclasses.fields(cast(Any, cls)) if each.name in record]:
            value = record[name]
            if name in inner:
                value = tuple(_restored(cast(Any, inner[name]), one) for one in value)
            values[name] = _frozen(value)
        return cls(**values)
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"not the record of an answer ({error})") from None


def _frozen(value: Any) -> Any:
    """Lists as tuples, at every depth."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


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

    False for a refusal, without passages, and of what has no content words ("yes"). It cannot see a wrong relation
    between right words of one sentence, and calls an answer in other words or another language than the passages'
    unsupported.
    """
    if not passages or is_refusal(answer, not_found):
        return False
    share = support(answer, question, "\n".join(p.text for p in passages))
    return share is not None and share >= SUPPORTED and is_related(answer, question, passages)


def is_refused(answer: str, not_found: str, passages: Sequence[Passage]) -> bool:
    """Tells whether an answer says that nothing answers, and is no phrase of the passages: "404 Not Found"."""
    plain = normalize(answer).strip(".。!")
    quoted = plain != normalize(not_found) and any(plain in normalize(p.text) for p in passages)
    return not plain or (is_refusal(answer, not_found) and not quoted)


def is_echo(answer: str, question: str) -> bool:
    """Tells whether an answer has words, and none that the question has not; one of two that it names is no echo."""
    units = content_units(answer)
    same = units <= content_units(question) or word_roots(answer) <= word_roots(question)
    return bool(units) and same and not _CHOICE.search(question)


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
    """Sets `cited` on the passages that hold (nearly) as many of the answer's words as the best one does, and `span` on
    those."""
    shares = [support(answer, question, p.text) or 0.0 for p in passages]
    best = max(shares, default=0.0)
    cited = [best > 0 and share >= CITED * best for share in shares]
    return tuple(
        dataclasses.replace(p, cited=held, span=_holding_sentence(answer, question, p) if held else None)
        for p, held in zip(passages, cited, strict=True)
    )


def _holding_sentence(answer: str, question: str, passage: Passage) -> tuple[int, int] | None:
    """The sentence with most of the answer's words, of several the one with most of the question's."""
    asked, units = content_units(question), content_units(answer)
    units = units - asked or units
    words = {span: content_units(passage.text[slice(*span)]) for span in sentence_spans(passage.text)}
    best = max(words, key=lambda span: (len(units & words[span]), len(asked & words[span])), default=None)
    return (passage.start + best[0], passage.start + best[1]) if best else None
