"""What one run of the loop is made of: its limits, the steps it streams, its clock."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from minimemo.ask.answer import Answer, AnswerMode, Passage
from minimemo.ask.clues import Clue
from minimemo.ask.form import Form
from minimemo.ask.writer import Piece
from minimemo.errors import InputError
from minimemo.events import Event, Listener
from minimemo.text.scripts import Language

if TYPE_CHECKING:
    from minimemo.engine.engine import Engine

_PROMPT_ROOM = 192  # tokens of the longest memory prompt with its chat frame, the question not counted; generous


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of the loop, in tokens and hits."""

    clue_tokens: int = 128  # of each reply from memory
    summary_tokens: int = 256  # of a summary that memory tells: 180 words
    short_parts: int = 4  # that a short document is told in: told in one, its second half was left out (LOG.md)
    part_tokens: int = 40  # what is told of each part of the document then, at least; where that is too long a summary,
    # twice as much of each, and the summary is composed of it
    question_tokens: int = 1024  # the longest question
    evidence_tokens: int = 1500  # passages of an answer
    summary_evidence_tokens: int = 3000  # passages of a summary
    question_hits: int = 3  # passages that the question retrieves
    paragraph_hits: int = 8  # the same when a paragraph is asked for: all that fit are shown
    quotation_hits: int = 8  # passages whose sentences are looked through when the document's own words are asked for
    paragraph_tokens: int = 40  # of a paragraph, at least: asked for 150 words, a 0.5B model often writes 20 (LOG.md)
    clue_hits: int = 3  # passages that each clue retrieves
    # Share of the best passage's score that another must have to be shown beside it: a 0.5B model takes answers from
    # passages that do not hold them (LOG.md, 2026-11-24). 0 shows all that fit.
    stand_out: float = 0.8
    # Of memory that stands before a question: all of a shorter one, a view of a longer one. 16,711 tokens of xquad_en,
    # 0.5B: answers from memory alone have F1 0.195 with the whole, 0.211 with 4,096 tokens, 0.299 with 1,024 (40
    # questions); answers with clues 0.515 with the whole, 0.528 with 4,096 (14 questions).
    view_tokens: int = 4096  # for clues
    answer_view_tokens: int = 1024  # for an answer from memory alone
    view_hits: int = 4  # passages whose blocks come first, their neighbours with them
    walk_view_tokens: int = 2048  # of each view of a walk through a long memory; longer ones tell less (LOG.md)
    least_view_tokens: int = 512  # the same of a short memory that is told in `short_parts`
    walk_views: int = 24  # at most: views of a longer memory are up to twice as long, then it is walked in stretches
    walk_tokens: int = 128  # of the reply from each view of a walk, unless the replies are the summary
    walk_clues: int = 3  # that each view gives for a question on the whole
    use_draft: bool = True  # draft an answer from memory, and search with it
    # Of two short answers, from passages and from memory, the one that both find likelier is given (agreement.py).
    agreed_tokens: int = 64  # a longer answer from passages stands; 0: every one
    memory_weight: float = 0.2  # of the memory's judgement, the passages' being 1

    def memory_room(self, max_tokens: int = 256) -> int:
        """Tokens to leave free after the document, in a memory's cache and in the model's context."""
        return _PROMPT_ROOM + self.question_tokens + max(self.clue_tokens, 2 * self.summary_tokens, max_tokens)


DEFAULTS = Settings()


@dataclass(frozen=True, slots=True)
class Found:
    """What an answer will be written from; streamed once, before its first piece."""

    clues: tuple[Clue, ...] = ()
    draft: str = ""
    passages: tuple[Passage, ...] = ()


Steps: TypeAlias = Generator[Found | Piece, None, Answer]


class Meter:
    """Seconds by stage and tokens prefilled since it was made; reports the stages as events."""

    def __init__(self, engine: Engine, on_event: Listener) -> None:
        self.on_event = on_event
        self.prefilled_elsewhere = 0  # by another model than the engine's
        self._engine = engine
        self._prefilled = engine.prefilled
        self._begin = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, *, report: bool = True) -> Iterator[None]:
        """Times a block; `report` false when the block reports its own progress."""
        if report:
            self.on_event(Event(name, 0, 1))
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begin
        if report:
            self.on_event(Event(name, 1, 1))

    @property
    def prefilled(self) -> int:
        return self._engine.prefilled - self._prefilled + self.prefilled_elsewhere

    def timings(self) -> dict[str, float]:
        """Seconds by stage, and "total"; a stage that streams includes what its reader did between two steps."""
        return {**self._seconds, "total": time.perf_counter() - self._begin}


@dataclass(frozen=True, slots=True)
class Run:
    """One question on its way to an answer; `language` is that of its prompts."""

    question: str
    mode: AnswerMode
    language: Language
    max_tokens: int
    meter: Meter
    form: Form = "phrase"  # of what is asked for and the mode can give
    min_tokens: int = 0  # of the answer

    @property
    def paragraph(self) -> bool:
        return self.form == "paragraph"


def checked_question(question: str) -> str:
    """Without white space around it. Raises InputError for what no model is needed to refuse."""
    question = question.strip()
    if not any(char.isalnum() for char in question):
        raise InputError("question is empty: it holds no letter or digit; ask something")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"question is not valid Unicode text (character {error.start}); type it again") from error
    return question


def last(steps: Steps) -> Answer:
    """Runs the steps to their end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            answer: Answer = end.value
            return answer


def with_answer(steps: Steps) -> Iterator[Found | Piece | Answer]:
    """The steps, and what they return as the last one."""
    yield (yield from steps)
