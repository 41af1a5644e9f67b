"""The ask walk: from a question to an answer with its sources. Clues from memory, passages by retrieval, an answer.

The loop is MemoRAG's (arXiv 2409.05591): from memory, passages are recalled, the question is rewritten and an answer
drafted; question and clues search the document; the answer is written from what they retrieve, or taken from memory
where both find that likelier. English paragraphs come from memory, and retrieval finds their sources; Chinese ones come
from passages. The document's own words are quoted, not written. What is asked of the whole document walks through all
of its memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from minimemo.ask.answer import Answer, Found, Passage
from minimemo.ask.clues import Clue, ClueKind, parse_lines, select_clues, without_inventions
from minimemo.ask.evidence import EVIDENCE_TOKENS, Evidence, Whole, fit, prompt_with, render_passages
from minimemo.ask.memory import DocumentMemory, Memory
from minimemo.ask.polarity import telling, weight
from minimemo.ask.prompts import PROMPTS, Prompts
from minimemo.ask.question import CLUE_TOKENS, MIN_EVIDENCE, AnswerMode, Mode, Question
from minimemo.ask.trust import beside, probability, signals
from minimemo.ask.wording import names_within
from minimemo.ask.writer import Piece, TextGenerator, Writer, Written
from minimemo.events import Listener, silent
from minimemo.text.document import Place
from minimemo.text.scripts import Language
from minimemo.threads import Turns

if TYPE_CHECKING:
    from minimemo.engine.cache import KVCache
    from minimemo.engine.engine import Engine
    from minimemo.models.tokenizer import Tokenizer
    from minimemo.search.retriever import Retriever

Steps: TypeAlias = Generator[Found | Piece, None, Answer]
Step = TypeVar("Step")
Result = TypeVar("Result")

SUMMARY_EVIDENCE_TOKENS = 3000  # Passages of a summary take at most so many tokens.
# So many questions are worked on at the same time, each with caches of its own: tens of megabytes for a 0.5B.
READERS = 8
# An answer this likely to be right stands without memory being asked.
SETTLED = 0.7
SHORT_CLUES: tuple[ClueKind, ...] = ("recall", "rewrite", "draft")  # what memory is asked for before a short answer


class Session:
    """Answers questions about one or several documents, from any number of threads, READERS questions at a time.
    Greedy: the same question gets the same answer.

    `open_memory` is called at the first question that needs the memory. It holds, for each document,
    `memory_opening(language, prompts).ids(tokenizer)` and the document's ids. `documents`: their names, in the order of
    the retriever's; `place_of` tells the place of a character of one.
    `language` is the documents', `prompts` the texts of each language. Recalled passages and rewritten
    questions are asked for in that language, since they are to be found in it; drafts and answers in the question's.
    `engine` may be what loads it: where another model writes, many an answer needs no memory.
    `generator` writes what is not written over the memory: answers from passages, summaries, and those of mode
    `closed`. None: the memory's own model.
    """

    def __init__(
        self,
        engine: Engine | Callable[[], Engine],
        tokenizer: Tokenizer,
        retriever: Retriever,
        open_memory: Callable[[], Memory],
        *,
        documents: Sequence[str] = ("",),
        place_of: Callable[[str, int], Place | None] = lambda _document, _start: None,
        language: Language = "en",
        prompts: Mapping[Language, Prompts] = PROMPTS,
        generator: TextGenerator | None = None,
        on_event: Listener = silent,
    ) -> None:
        self.language = language
        self._evidence = Evidence(retriever, documents, place_of)
        self._prompts = prompts
        self._on_event = on_event
        self._writer = Writer(engine, tokenizer)
        self._generator = generator or self._writer
        self._memory = DocumentMemory(self._writer, retriever, open_memory, prompts[language])
        self._turns = Turns(READERS)

    # -- verbs -------------------------------------------------------------------------------------------------------

    def ask(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Answer:
        """Answers a question. Modes: `memorag`, `rag` (no memory), `memory` (an answer from memory alone), `closed`
        (neither), `gist` (on the whole: the memory is asked part by part).

        Raises InputError for an empty question, one that does not fit (saying by how much), or an unknown mode.
        """
        return _last(self.stream(question, mode, max_tokens))

    def stream(
        self, question: str, mode: Mode = "memorag", max_tokens: int = 256, *, typed: str = ""
    ) -> Iterator[Found | Piece | Answer]:
        """Answers as `ask` does, in steps: one Found, the Pieces of the text, the Answer. A bad question raises here,
        not later. typed: the question before a conversation put its turns in front of it.

        A stream may be left half read, and gone on with later. Where READERS questions are worked on, it makes way for
        the next question of its thread, and after threads.LEFT seconds for those of others.
        """
        asked = self._question(question, mode, max_tokens, typed)
        return self._in_turn(asked, self._answer(asked))

    def recall(self, question: str) -> tuple[Clue, ...]:
        """Recalls sentences of the documents for a question."""
        return self._clues("recall", question)

    def rewrite(self, question: str) -> tuple[Clue, ...]:
        """Asks other questions, in the documents' words, whose answers help with this one."""
        return self._clues("rewrite", question)

    def answer(self, question: str, evidence: Sequence[str], max_tokens: int = 256) -> Answer:
        """Answers from given texts, best first, as many as fit; no memory, no retrieval.

        The offsets of the answer's passages count through the texts joined without anything between them.
        """
        ranked: list[Passage] = []
        for text in evidence:
            start = ranked[-1].end if ranked else 0
            ranked.append(Passage(start, start + len(text), text, score=0.0))
        asked = self._question(question, "rag", max_tokens)
        passages = fit(asked, ranked, EVIDENCE_TOKENS, partial(prompt_with, asked))
        steps = self._write(asked, Found(passages=passages), prompt_with(asked, passages))
        return _last(self._in_turn(asked, steps))

    def summarize(self, max_tokens: int = 512) -> Answer:
        """Summarizes: what memory tells of each part of the document, composed where that is long; its sources by
        retrieval."""
        return _last(self.stream_summary(max_tokens))

    def stream_summary(self, max_tokens: int = 512) -> Iterator[Found | Piece | Answer]:
        """Summarizes as `summarize` does, in steps like `stream`'s; one Piece where the parts are the summary."""
        asked = self._question(None, "summarize", max_tokens)
        return self._in_turn(asked, self._summary(asked))

    # -- ways to an answer -------------------------------------------------------------------------------------------

    def _answer(self, question: Question) -> Steps:
        if question.mode == "closed":
            return (yield from self._write(question, Found(), question.prompts.closed.format(question=question.text)))
        if question.kind == "whole":
            return (yield from self._summary(question))
        if question.kind == "quotation":
            return (yield from self._given(question, *self._evidence.quoted(question)))
        if question.mode == "gist":
            return (yield from self._gist(question))
        if question.kind == "paragraph":
            return (yield from self._paragraph(question))
        if question.mode == "memory":
            return (yield from self._from_memory(question))
        if told := self._evidence.computed(question):
            return (yield from self._given(question, *told, supported=True))
        if not isinstance(self._generator, Writer):
            return (yield from self._elsewhere(question))
        answer = self._attempt(question, self._evidence.find(question, Found()))
        if question.mode == "memorag":
            reads = question.kind == "phrase" and not self._generator.is_small
            if reads and (whole := self._evidence.whole(question)):
                answer = self._whole(question, answer, whole)
            elif answer.guess is not None or answer.confidence < SETTLED:
                answer = self._second(question, answer)
        yield Found(answer.clues, answer.draft, answer.passages)
        yield Piece(answer.text)
        return answer

    def _attempt(self, question: Question, found: Found, told: tuple[str, KVCache] | None = None) -> Answer:
        """Answers with a phrase, or yes or no, from passages; says that the document does not where that is likelier to
        be right. told: the answer to weigh, in place of one that is written, and the cache that read the prompt."""
        writer, prompts, passages = self._generator, question.prompts, found.passages
        assert isinstance(writer, Writer)
        if not passages:
            return Answer.unanswered(question, found)
        prompt = prompt_with(question, passages)
        with question.clock.stage("answer", report=False):
            if question.kind == "yes_no":
                odds, tokens = writer.decide(prompts, prompt, prompt_with(question, None))
                shown, said = telling(question.text, [passage.text for passage in passages])
                if not shown:  # the sentence that says best what is asked, one with all its names before others
                    within = partial(names_within, question.text)
                    shown = max(self._evidence.sentences(question), key=within, default="")
                    said = weight(question.text, shown)
                return Answer.decided(question, found, odds + said, tokens, shown)
            check = partial(prompt_with, question, passages, prompts.check)
            room, on_event = question.max_tokens, question.clock.on_event
            written, weighed = writer.answer(prompts, prompt, check, room, on_event, told)
            small = writer.is_small
        values = signals(question.text, written.text, passages, weighed)
        return Answer.weighed(question, found, written, values, probability(values, small))

    def _whole(self, question: Question, first: Answer, whole: Whole) -> Answer:
        """Answers with a phrase from the whole document, weighed with the `first` answer, that passages gave. Where
        they do not say it, it has to be as likely right as not."""
        writer, prompts, passages = self._generator, question.prompts, (whole.passage,)
        assert isinstance(writer, Writer)
        with question.clock.stage("answer", report=False):
            check = partial(whole.prompt, prompts.check)
            room, on_event = question.max_tokens, question.clock.on_event
            written, weighed = writer.answer(prompts, whole.prompt(), check, room, on_event, beginning=whole.beginning)
        values = signals(question.text, written.text, passages, weighed) | beside(written.text, first)
        found, likely = Found(passages=passages), probability(values)
        answer = Answer.weighed(question, found, written, values, likely, anew=first.guess is not None)
        return dataclasses.replace(answer, passages=self._evidence.holding(answer, first.passages))

    def _second(self, question: Question, first: Answer) -> Answer:
        """Answers from the passages that memory's clues find as well, or from memory where passages and memory together
        find that likelier; returns the `first` answer where that is likelier to be right. Where the first passages do
        not say it, an answer must be sure."""
        clues, draft = self._memory.clues(question, SHORT_CLUES)
        found = self._evidence.find(question, Found(clues, draft))
        if not found.passages:
            prompt = question.prompts.memory_answer.format(question=question.text)
            *_, told = _with_result(self._memory.answer(question, prompt))
            return dataclasses.replace(Answer.of(question, found, cast(Written, told)), confidence=0.0, supported=False)
        second = first
        if question.kind == "phrase" and self._generator is self._writer:
            agreed = self._memory.agreed(question, prompt_with(question, found.passages))
            second = self._attempt(question, found, agreed)
        elif [p.start for p in found.passages] != [p.start for p in first.passages]:
            second = self._attempt(question, found)
        better = second.supported if first.guess is not None else second.confidence > first.confidence
        return second if better and second.guess is None else dataclasses.replace(first, clues=clues, draft=draft)

    def _elsewhere(self, question: Question) -> Steps:
        """Answers with a phrase that a generator writes of whom nothing but its text is known."""
        found = Found(*self._memory.clues(question, SHORT_CLUES)) if question.mode == "memorag" else Found()
        answer = yield from self._write_from(question, found)
        values = signals(answer.asked, answer.text, answer.passages, None)
        return answer.weighed_by_words(values, probability(values), question.prompts.not_found)

    def _paragraph(self, question: Question) -> Steps:
        # What memory tells of a Chinese document is vaguer than its passages, and clues make lists of them.
        remembers = question.mode == "memorag" and question.language != "zh"
        if question.mode == "memory" or (remembers and self._generator is self._writer):
            return (yield from self._from_memory(question))
        found = Found(*self._memory.clues(question, ("recall", "rewrite"))) if remembers else Found()
        return (yield from self._write_from(question, found))

    def _from_memory(self, question: Question) -> Steps:
        """Answers from memory alone; in mode `memorag` with the passages that the question retrieves, as its sources.

        A view holds more than the passages that fit into a prompt, and needs no prefill: a paragraph from memory is as
        good as one from passages, in a third of the time.
        """
        prompts = question.prompts
        template = prompts.memory_paragraph if question.kind == "paragraph" else prompts.memory_answer
        prompt = template.format(question=question.text)
        found = Found()
        if question.mode == "memorag":
            queries = [("question", question.text)]
            found = Found(passages=self._evidence.search(question, queries, EVIDENCE_TOKENS, lambda _: prompt))
        yield found
        return Answer.of(question, found, (yield from self._memory.answer(question, prompt)))

    def _gist(self, question: Question) -> Steps:
        """Answers from sentences that every part of the memory recalls, and from the passages that those retrieve."""
        clues = self._memory.recalled(question)
        queries = [("question", question.text), *((clue.kind, clue.text) for clue in clues)]
        points = [clue.text for clue in clues]

        def prompt(passages: Sequence[Passage]) -> str:
            evidence = render_passages(passages)
            return question.prompts.gist.format(points=_listed(points), passages=evidence, question=question.text)

        while points and question.left(prompt(())) < MIN_EVIDENCE:
            points.pop()
        # the best of each clue before the second of any, and as many as fit: breadth is asked for
        passages = self._evidence.search(question, queries, SUMMARY_EVIDENCE_TOKENS, prompt, lead=len(queries))
        return (yield from self._write(question, Found(clues, "", passages), prompt(passages)))

    def _summary(self, question: Question) -> Steps:
        """Gives what memory tells of each part of the document: as it stands, or composed where that is too long."""
        parts, joined = self._memory.parts(question, joined=self._generator is self._writer)
        if question.language == self.language:  # in another one names are written in other ways
            parts = list(filter(None, (without_inventions(part, self._evidence.holds) for part in parts)))
        lines = [line for part in parts for line in parse_lines(part)]
        clues = select_clues({"point": lines}, caps={"point": len(lines)})
        queries: list[tuple[str, str]] = [(clue.kind, clue.text) for clue in clues]
        queries = queries or [("summary", question.prompts.summary_query)]

        def prompt(passages: Sequence[Passage] = ()) -> str:
            return question.prompts.summary.format(parts=_listed(parts or [p.text.strip() for p in passages]))

        around = (lambda _: "") if parts else prompt  # passages are only the sources of what the parts tell
        passages = self._evidence.search(question, queries, SUMMARY_EVIDENCE_TOKENS, around, lead=len(queries))
        found = Found(clues, "", passages)
        if parts and joined:
            yield found
            yield Piece(text := "\n\n".join(parts))
            return Answer.of(question, found, Written(text, 0, self._writer.count(text)))
        while len(parts) > 1 and question.left(prompt()) < 0:
            parts = parts[::2]  # thinner, but of the whole
        return (yield from self._write(question, found, prompt(passages)))

    # -- steps -------------------------------------------------------------------------------------------------------

    def _given(self, question: Question, text: str, found: Found, supported: bool) -> Steps:
        """Gives a text that no model wrote, with the passages that hold it."""
        yield found
        yield Piece(text)
        answer = Answer.of(question, found, Written(text, 0, 0))
        return dataclasses.replace(answer, passages=found.passages, supported=supported, confidence=float(supported))

    def _write_from(self, question: Question, found: Found) -> Steps:
        """Answers from the passages that the question and its clues retrieve."""
        found = self._evidence.find(question, found)
        return (yield from self._write(question, found, prompt_with(question, found.passages)))

    def _write(self, question: Question, found: Found, prompt: str) -> Steps:
        """Answers a prompt that stands alone."""
        yield found
        with question.clock.stage("answer", report=False):
            written = yield from question.generator.write(
                question.prompts.system, prompt, question.max_tokens, question.clock.on_event, question.min_tokens
            )
        return Answer.of(question, found, written)

    # -- questions in turn -------------------------------------------------------------------------------------------

    def _question(self, text: str | None, mode: AnswerMode, max_tokens: int, typed: str = "") -> Question:
        generator = self._writer if mode == "memory" else self._generator  # only that can answer from memory alone
        return Question(text, mode, max_tokens, self.language, self._prompts, generator, self._on_event, typed)

    def _clues(self, kind: ClueKind, text: str) -> tuple[Clue, ...]:
        """The clues of one kind alone."""
        question = self._question(text, "memory", CLUE_TOKENS)
        with self._turns.step(question, last=True):
            return self._memory.clues(question, [kind])[0]

    def _in_turn(self, question: Question, steps: Steps) -> Iterator[Found | Piece | Answer]:
        """Takes the steps to an answer, and the answer as the last one, when one of the READERS places is free. Adds
        what it took: a prompt that another model than the memory's read counts as prefilled."""
        prefilled = 0
        step: Found | Piece | Answer | None = None
        try:
            with closing(_with_result(steps)) as whole:
                while not isinstance(step, Answer):
                    if step is not None:
                        yield step
                    with self._turns.step(question):
                        if step is None:
                            question.clock.start()
                        before = self._writer.prefilled_here
                        step = next(whole)
                        prefilled += self._writer.prefilled_here - before
        finally:
            self._turns.end(question)
        yield dataclasses.replace(
            step,
            passages=self._evidence.placed(step.passages, step.text),
            view=self._evidence.characters(self._memory.spans(question)),
            prefilled_tokens=prefilled + (0 if question.generator is self._writer else step.prompt_tokens),
            timings=question.clock.timings(),
        )


def _with_result(steps: Generator[Step, None, Result]) -> Generator[Step | Result, None, None]:
    yield (yield from steps)


def _last(steps: Iterator[Found | Piece | Answer]) -> Answer:
    *_, answer = steps
    assert isinstance(answer, Answer)
    return answer


def _listed(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)
