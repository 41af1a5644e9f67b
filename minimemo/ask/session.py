"""A question -> an answer with its sources: clues from memory, passages by retrieval, an answer written from them.

The loop is MemoRAG's (arXiv 2409.05591): from memory, passages are recalled, the question is rewritten and an answer
drafted; question and clues search the document; the answer is written from what they find, or taken from memory where
both find that likelier (agreement.py). English paragraphs come from memory, and retrieval finds their sources; Chinese
ones come from passages. The document's own words are quoted, not written. What is asked of the whole document walks
through all of its memory, which is only read: it has its length back after every question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, get_args

from minimemo.ask.agreement import Agreement
from minimemo.ask.answer import Answer, Mode, Passage, cite, is_supported
from minimemo.ask.clues import Clue, ClueKind, parse_lines, select_clues, without_inventions
from minimemo.ask.evidence import Query, rank_passages, render_passages
from minimemo.ask.form import form_given
from minimemo.ask.loan import MemoryLoan
from minimemo.ask.prompts import PROMPTS, Prompts
from minimemo.ask.quotation import quotation, quoted_first
from minimemo.ask.recollection import Recollection
from minimemo.ask.room import MIN_EVIDENCE, Room, evidence_template
from minimemo.ask.run import DEFAULTS, Found, Meter, Run, Settings, Steps, checked_question, last, with_answer
from minimemo.ask.views import Memory, Views
from minimemo.ask.writer import LocalGenerator, Piece, TextGenerator, Writer
from minimemo.errors import InputError
from minimemo.events import Listener, silent
from minimemo.text.scripts import Language, detect_language

if TYPE_CHECKING:
    from minimemo.engine.engine import Engine
    from minimemo.models.tokenizer import Tokenizer
    from minimemo.search.index import Retriever


class Session:
    """Answers questions about one or several documents, not from several threads at once. Greedy: the same question
    gets the same answer.

    `open_memory` is called at the first question that needs the memory. It holds, for each document,
    `memory_opening(language, prompts).ids(tokenizer)` and the document's ids. `documents`: their names, in the order of
    the retriever's. `language` is the documents', `prompts` the texts of each language. Recalled passages and rewritten
    questions are asked for in that language, since they are to be found in it; drafts and answers in the question's.
    `generator` writes what is not written over the memory: answers from passages, summaries, and those of mode
    `closed`. None: the memory's own model.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        retriever: Retriever,
        open_memory: Callable[[], Memory],
        *,
        documents: Sequence[str] = ("",),
        language: Language = "en",
        prompts: Mapping[Language, Prompts] = PROMPTS,
        settings: Settings = DEFAULTS,
        generator: TextGenerator | None = None,
        on_event: Listener = silent,
    ) -> None:
        self.language = language
        self.settings = settings
        self._engine = engine
        self._retriever = retriever
        self._prompts = prompts
        self._on_event = on_event
        self._documents = documents
        self._own = LocalGenerator(engine, tokenizer)
        self._generator = generator or self._own
        self._room = Room(self._own, self._generator, prompts)
        memory = cache(open_memory)
        views = Views(memory, retriever, settings, engine.config.max_context)
        loan = MemoryLoan(memory, settings.memory_room())
        writer = Writer(engine, tokenizer)
        self._recollection = Recollection(writer, loan, views, language, prompts, settings)
        self._agreement = Agreement(engine, writer, self._recollection, settings)

    # -- verbs -------------------------------------------------------------------------------------------------------

    def ask(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Answer:
        """Answers a question. Modes: `memorag`, `rag` (no memory), `memory` (an answer from memory alone), `closed`
        (neither), `gist` (on the whole: the memory is asked part by part).

        Raises InputError for an empty question, one that does not fit (saying by how much), or an unknown mode.
        """
        return last(self._ask(self._run(question, mode, max_tokens)))

    def stream(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Iterator[Found | Piece | Answer]:
        """As `ask`, in steps: one Found, the Pieces of the text, the Answer. A bad question raises here, not later.

        A stream may be left half read; going on with it after the memory was asked again is an InputError.
        """
        return with_answer(self._ask(self._run(question, mode, max_tokens)))

    def recall(self, question: str) -> tuple[Clue, ...]:
        """Sentences of the document that the memory recalls for a question."""
        return self._recollect(("recall",), self._run(question, "memory", self.settings.clue_tokens))[0]

    def rewrite(self, question: str) -> tuple[Clue, ...]:
        """Other questions, in the document's words, whose answers help with this one."""
        return self._recollect(("rewrite",), self._run(question, "memory", self.settings.clue_tokens))[0]

    def draft(self, question: str) -> str:
        """A first short answer from memory; "" when it has none."""
        return self._recollect(("draft",), self._run(question, "memory", self.settings.clue_tokens))[1]

    def answer(self, question: str, evidence: Sequence[str], max_tokens: int = 256) -> Answer:
        """Answers from given texts, best first, as many as fit; no memory, no retrieval.

        The offsets of the answer's passages count through the texts joined without anything between them.
        """
        ranked: list[Passage] = []
        for text in evidence:
            start = ranked[-1].end if ranked else 0
            ranked.append(Passage(start, start + len(text), text, score=0.0))
        return last(self._from_evidence(self._run(question, "rag", max_tokens), Found(passages=tuple(ranked))))

    def summarize(self, max_tokens: int = 512) -> Answer:
        """A summary: what memory tells of each part of the document, composed where that is long; its sources by
        retrieval."""
        return last(self._summary(self._summary_run(max_tokens)))

    def stream_summary(self, max_tokens: int = 512) -> Iterator[Found | Piece | Answer]:
        """As `summarize`, in steps like those of `stream`; one Piece where the parts are the summary."""
        return with_answer(self._summary(self._summary_run(max_tokens)))

    # -- ways to an answer -------------------------------------------------------------------------------------------

    def _ask(self, run: Run) -> Steps:
        if run.mode == "closed":
            prompt = self._prompts[run.language].closed.format(question=run.question)
            return (yield from self._write(run, Found(), prompt))
        if run.form == "whole":
            return (yield from self._summary(run))
        if run.form == "quotation":
            return (yield from self._quotation(run))
        if run.mode == "gist":
            return (yield from self._gist(run))
        own = self._generator is self._own
        # What memory tells of a Chinese document is vaguer than its passages, and clues make lists of them (LOG.md).
        by_question = run.paragraph and run.language == "zh"
        if run.mode == "memory" or (run.mode == "memorag" and run.paragraph and own and not by_question):
            return (yield from self._from_memory(run))
        clues: tuple[Clue, ...] = ()
        draft = ""
        if run.mode == "memorag" and not by_question:
            drafted = self.settings.use_draft and not run.paragraph
            clues, draft = self._recollect(("recall", "rewrite", "draft") if drafted else ("recall", "rewrite"), run)
        queries = [Query("question", run.question)]
        # A draft is short and takes its subject from the question: together they search best (Query2doc, 2303.07678).
        queries += [Query(c.kind, f"{run.question} {c.text}" if c.kind == "draft" else c.text) for c in clues]
        ranked = self._search(queries, run, lead=1, stand_out=0 if run.paragraph else self.settings.stand_out)
        return (yield from self._from_evidence(run, Found(clues, draft, ranked)))

    def _from_memory(self, run: Run) -> Steps:
        """The answer from memory alone; in mode `memorag` with the passages that the question finds, as its sources.

        A view holds more than the passages that fit into a prompt, and needs no prefill (LOG.md).
        """
        prompts = self._prompts[run.language]
        template = prompts.memory_paragraph if run.paragraph else prompts.memory_answer
        text = template.format(question=run.question)
        passages: tuple[Passage, ...] = ()
        if run.mode == "memorag":
            ranked = self._search([Query("question", run.question)], run, lead=1, stand_out=0)
            passages = self._room.fit(run, ranked, self.settings.evidence_tokens, lambda _: text)
        found = Found(passages=passages)
        yield found
        size = self.settings.view_tokens if run.paragraph else self.settings.answer_view_tokens
        written, count, prompt_tokens = yield from self._recollection.answer(run, text, size)
        return self._answer(run, found, written, count, prompt_tokens)

    def _from_evidence(self, run: Run, found: Found) -> Steps:
        """The answer from `found.passages` (best first), as many as the budget and the context hold."""
        prompts = self._prompts[run.language]
        template = evidence_template(prompts, run)

        def text(passages: Sequence[Passage]) -> str:
            evidence = render_passages(passages)
            return template.format(passages=evidence, question=run.question, not_found=prompts.not_found)

        # A draft only searches: small models copy one that they are shown, right or wrong (LOG.md).
        passages = self._room.fit(run, found.passages, self.settings.evidence_tokens, text)
        short = run.mode == "memorag" and run.form == "phrase"
        agreed = short and self._generator is self._own and self.settings.agreed_tokens > 0
        return (yield from self._write(run, Found(found.clues, found.draft, passages), text(passages), agreed))

    def _quotation(self, run: Run) -> Steps:
        """The sentences that the question finds, as they stand in the document; the passages that hold them are cited.

        What a 0.5B or 1.5B model copies when it is told to quote is mostly its own invention (LOG.md).
        """
        with run.meter.stage("retrieve"):
            (hits,) = self._retriever.retrieve([run.question], self.settings.quotation_hits)
            ranked = rank_passages([Query("question", run.question)], [hits], documents=self._documents)
            sentences = self._retriever.quote(run.question, hits)
        ranked = quoted_first(ranked, sentences, self._documents)
        found = Found(passages=self._room.fit(run, ranked, self.settings.evidence_tokens, lambda _: ""))
        yield found
        yield Piece(text := quotation(sentences, self._documents))
        said = any("lexical" in sentence.sources for sentence in sentences)  # something of what was asked for
        return replace(self._answer(run, found, text, 0, 0), passages=found.passages, supported=said)

    def _gist(self, run: Run) -> Steps:
        """The answer from sentences that every part of the memory recalls, and from the passages that those find."""
        prompts = self._prompts[run.language]
        clues = self._recollection.recalled(run)
        queries = [Query("question", run.question), *(Query(clue.kind, clue.text) for clue in clues)]
        # the best of each clue before the second of any, and as many as fit: breadth is wanted
        ranked = self._search(queries, run, lead=len(queries), stand_out=0)
        points = [clue.text for clue in clues]

        def text(passages: Sequence[Passage]) -> str:
            return prompts.gist.format(
                points=_listed(points), passages=render_passages(passages), question=run.question
            )

        while points and self._room.left(run, text(())) < MIN_EVIDENCE:
            points.pop()
        passages = self._room.fit(run, ranked, self.settings.summary_evidence_tokens, text)
        return (yield from self._write(run, Found(clues, "", passages), text(passages)))

    def _summary(self, run: Run) -> Steps:
        """What the memory tells of each part of the document: as it stands, or composed where that is too long."""
        prompts, budget = self._prompts[run.language], self.settings.summary_evidence_tokens
        parts, joined = self._recollection.parts(run, joined=self._generator is self._own)
        if run.language == self.language:  # in another one names are written in other ways
            parts = [told for part in parts if (told := without_inventions(part, self._retriever.holds))]
        lines = [line for part in parts for line in parse_lines(part)]
        clues = select_clues({"point": lines}, caps={"point": len(lines)})
        queries = [Query(c.kind, c.text) for c in clues] or [Query("summary", prompts.summary_query)]
        ranked = self._search(queries, run, lead=len(queries), stand_out=0)

        def text(passages: Sequence[Passage] = ()) -> str:
            return prompts.summary.format(parts=_listed(parts or [passage.text.strip() for passage in passages]))

        passages = self._room.fit(run, ranked, budget, (lambda _: "") if parts else text)
        found = Found(clues, "", passages)
        if parts and joined:
            yield found
            yield Piece(told := "\n\n".join(parts))
            return self._answer(run, found, told, self._own.count(told), 0)
        while len(parts) > 1 and self._room.left(run, text()) < 0:
            parts = parts[::2]  # thinner, but of the whole
        return (yield from self._write(run, found, text(passages)))

    # -- steps -------------------------------------------------------------------------------------------------------

    def _recollect(self, kinds: Sequence[ClueKind], run: Run) -> tuple[tuple[Clue, ...], str]:
        """Clues of some kinds, and the draft when it is one of them."""
        return self._recollection.clues(kinds, run, self.settings.clue_tokens)

    def _search(self, queries: Sequence[Query], run: Run, lead: int, stand_out: float) -> tuple[Passage, ...]:
        """What the queries find, best first; see `rank_passages`."""
        settings = self.settings
        # In Chinese, eight passages make a 0.5B model write a list of what they are about (LOG.md).
        asked = settings.paragraph_hits if run.paragraph and run.language == "en" else settings.question_hits
        with run.meter.stage("retrieve"):
            texts, most = [q.text for q in queries], max(asked, settings.clue_hits)
            hits = self._retriever.retrieve(texts, most, regions=run.paragraph)
            limits = [asked if q.kind == "question" else settings.clue_hits for q in queries]
            kept = [found[:k] for found, k in zip(hits, limits, strict=True)]
            return rank_passages(queries, kept, lead, stand_out, self._documents)

    def _system(self, run: Run) -> str:
        return self._prompts[run.language].system

    def _write(self, run: Run, found: Found, text: str, agreed: bool = False) -> Steps:
        """The answer to a prompt that stands alone; agreed: the memory is asked too, see `Agreement`."""
        yield found
        if agreed:
            written = yield from self._agreement.write(run, self._system(run), text)
        else:
            with run.meter.stage("answer", report=False):
                written = yield from self._generator.write(
                    self._system(run), text, run.max_tokens, self._on_event, run.min_tokens
                )
        if self._generator is not self._own:
            run.meter.prefilled_elsewhere += written.prompt_tokens
        return self._answer(run, found, written.text, written.tokens, written.prompt_tokens)

    def _answer(self, run: Run, found: Found, text: str, generated_tokens: int, prompt_tokens: int) -> Answer:
        return Answer(
            text=text,
            question=run.question,
            mode=run.mode,
            language=run.language,
            clues=found.clues,
            draft=found.draft,
            passages=cite(text, run.question, found.passages),
            supported=is_supported(text, run.question, found.passages, self._prompts[run.language].not_found),
            prompt_tokens=prompt_tokens,
            generated_tokens=generated_tokens,
            prefilled_tokens=run.meter.prefilled,
            timings=run.meter.timings(),
        )

    # -- limits ------------------------------------------------------------------------------------------------------

    def _run(self, question: str, mode: Mode, max_tokens: int) -> Run:
        """A checked question; InputError for what cannot be asked."""
        if mode not in get_args(Mode):
            raise InputError(f"unknown mode {mode!r}: use {', '.join(get_args(Mode))}")
        question = checked_question(question)
        language = detect_language(question, self.language)
        form = form_given(question, mode)
        meter = Meter(self._engine, self._on_event)
        least = min(self.settings.paragraph_tokens, max_tokens) if form == "paragraph" else 0
        run = Run(question, mode, language, max_tokens, meter, form, least)
        self._room.check_question(run, self.settings.question_tokens)
        return run

    def _summary_run(self, max_tokens: int) -> Run:
        run = Run("", "summarize", self.language, max_tokens, Meter(self._engine, self._on_event))
        self._room.checked(run, self._prompts[self.language].summary.format(parts=""))
        return run


def _listed(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)
