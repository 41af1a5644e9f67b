"""The ask walk: from a question to an answer with its sources. Clues from memory, passages by retrieval, an answer.

The loop is MemoRAG's (arXiv 2409.05591): from memory, passages are recalled, the question is rewritten and an answer
drafted; question and clues search the document; the answer is written from what they retrieve, or taken from memory
where both find that likelier. English paragraphs come from memory, and retrieval finds their sources; Chinese ones come
from passages. The document's own words are quoted, not written. What is asked of the whole document walks through all
of its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, get_args

from minimemo.ask.answer import Answer, AnswerMode, Found, Mode, cite, is_supported
from minimemo.ask.clues import Clue, ClueKind, parse_lines, select_clues, without_inventions
from minimemo.ask.evidence import Passage, fit_passages, quotation, quoted_first, rank_passages, render_passages
from minimemo.ask.memory import DocumentMemory, Memory
from minimemo.ask.prompts import PROMPTS, Prompts
from minimemo.ask.question import CLUE_TOKENS, MIN_EVIDENCE, Kind, Question, checked_question, kind_given
from minimemo.ask.turns import Turns
from minimemo.ask.writer import Piece, TextGenerator, Writer, Written
from minimemo.errors import InputError
from minimemo.events import Listener, silent
from minimemo.text.scripts import Language, detect_language

if TYPE_CHECKING:
    from minimemo.engine.engine import Engine
    from minimemo.models.tokenizer import Tokenizer
    from minimemo.search.retriever import Retriever

Steps: TypeAlias = Generator[Found | Piece, None, Answer]

EVIDENCE_TOKENS = 1500  # Passages of an answer take at most so many tokens,
SUMMARY_EVIDENCE_TOKENS = 3000  # and those of a summary so many.
# The question retrieves three passages for a short answer: eight instead gained F1 on literaryqa (12.6 to 24.2, 30
# questions) and lost it on loogle (54.8 to 42.5, 14 questions).
QUESTION_HITS = 3
# For an English paragraph it retrieves eight, and all that fit are shown. In Chinese, eight passages make a 0.5B model
# write a list of what they are about: ROUGE-L on vcsum 13.8, with three 17.6 (14 questions).
PARAGRAPH_HITS = 8
# A quotation is looked for among the sentences of eight passages: F1 on contracts 37.2, with five 35.8, three 33.0.
QUOTATION_HITS = 8
CLUE_HITS = 3  # Each clue retrieves so many.
# A passage is shown beside the best one when it has this share of its score at least; 0 shows all that fit. A 0.5B
# model takes answers from passages that do not hold them: F1 on xquad_en 0.57 from the best passage alone, 0.42 and
# 0.40 from two and three (40 questions).
STAND_OUT = 0.8


class Session:
    """Answers questions about one or several documents, from any number of threads, one question at a time. Greedy: the
    same question gets the same answer.

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
        generator: TextGenerator | None = None,
        on_event: Listener = silent,
    ) -> None:
        self.language = language
        self._retriever = retriever
        self._documents = documents
        self._prompts = prompts
        self._on_event = on_event
        self._writer = Writer(engine, tokenizer)
        self._generator = generator or self._writer
        self._memory = DocumentMemory(self._writer, retriever, open_memory, language, prompts)
        self._turns = Turns()

    # -- verbs -------------------------------------------------------------------------------------------------------

    def ask(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Answer:
        """Answers a question. Modes: `memorag`, `rag` (no memory), `memory` (an answer from memory alone), `closed`
        (neither), `gist` (on the whole: the memory is asked part by part).

        Raises InputError for an empty question, one that does not fit (saying by how much), or an unknown mode.
        """
        return _last(self.stream(question, mode, max_tokens))

    def stream(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Iterator[Found | Piece | Answer]:
        """Answers as `ask` does, in steps: one Found, the Pieces of the text, the Answer. A bad question raises here,
        not later.

        A stream may be left half read: it makes way for the next question of its thread, and after turns.LEFT seconds
        for those of others. Going on with it after the memory was asked again is an InputError.
        """
        asked = self._question(question, mode, max_tokens)
        return self._in_turn(asked, self._answer(asked))

    def recall(self, question: str) -> tuple[Clue, ...]:
        """Recalls sentences of the documents for a question."""
        return self._alone(("recall",), question)[0]

    def rewrite(self, question: str) -> tuple[Clue, ...]:
        """Asks other questions, in the documents' words, whose answers help with this one."""
        return self._alone(("rewrite",), question)[0]

    def draft(self, question: str) -> str:
        """Gives a first short answer from memory; "" when it has none."""
        return self._alone(("draft",), question)[1]

    def answer(self, question: str, evidence: Sequence[str], max_tokens: int = 256) -> Answer:
        """Answers from given texts, best first, as many as fit; no memory, no retrieval.

        The offsets of the answer's passages count through the texts joined without anything between them.
        """
        ranked: list[Passage] = []
        for text in evidence:
            start = ranked[-1].end if ranked else 0
            ranked.append(Passage(start, start + len(text), text, score=0.0))
        asked = self._question(question, "rag", max_tokens)
        return _last(self._in_turn(asked, self._from_passages(asked, Found(passages=tuple(ranked)))))

    def summarize(self, max_tokens: int = 512) -> Answer:
        """Summarizes: what memory tells of each part of the document, composed where that is long; its sources by
        retrieval."""
        return _last(self.stream_summary(max_tokens))

    def stream_summary(self, max_tokens: int = 512) -> Iterator[Found | Piece | Answer]:
        """Summarizes as `summarize` does, in steps like `stream`'s; one Piece where the parts are the summary."""
        asked = self._checked("", "summarize", "whole", self.language, max_tokens)
        return self._in_turn(asked, self._summary(asked))

    # -- ways to an answer -------------------------------------------------------------------------------------------

    def _answer(self, question: Question) -> Steps:
        if question.mode == "closed":
            return (yield from self._write(question, Found(), question.prompts.closed.format(question=question.text)))
        if question.kind == "whole":
            return (yield from self._summary(question))
        if question.kind == "quotation":
            return (yield from self._quotation(question))
        if question.mode == "gist":
            return (yield from self._gist(question))
        paragraph = question.kind == "paragraph"
        # What memory tells of a Chinese document is vaguer than its passages, and clues make lists of them.
        remembers = question.mode == "memorag" and not (paragraph and question.language == "zh")
        if question.mode == "memory" or (remembers and paragraph and self._generator is self._writer):
            return (yield from self._from_memory(question))
        clues: tuple[Clue, ...] = ()
        draft = ""
        if remembers:
            clues, draft = self._clues(question, ("recall", "rewrite") if paragraph else ("recall", "rewrite", "draft"))
        # A draft is short and takes its subject from the question: together they search best (Query2doc, 2303.07678).
        texts = [f"{question.text} {clue.text}" if clue.kind == "draft" else clue.text for clue in clues]
        queries = [("question", question.text), *((clue.kind, text) for clue, text in zip(clues, texts, strict=True))]
        passages = self._search(question, queries, stand_out=0 if paragraph else STAND_OUT)
        return (yield from self._from_passages(question, Found(clues, draft, passages)))

    def _from_memory(self, question: Question) -> Steps:
        """Answers from memory alone; in mode `memorag` with the passages that the question retrieves, as its sources.

        A view holds more than the passages that fit into a prompt, and needs no prefill: a paragraph from memory is as
        good as one from passages, in a third of the time.
        """
        prompts = question.prompts
        template = prompts.memory_paragraph if question.kind == "paragraph" else prompts.memory_answer
        prompt = template.format(question=question.text)
        passages: tuple[Passage, ...] = ()
        if question.mode == "memorag":
            ranked = self._search(question, [("question", question.text)])
            passages = self._fit(question, ranked, EVIDENCE_TOKENS, lambda _: prompt)
        yield (found := Found(passages=passages))
        return self._finished(question, found, (yield from self._memory.answer(question, prompt)))

    def _from_passages(self, question: Question, found: Found) -> Steps:
        """Answers from `found.passages` (best first), as many as the budget and the context hold."""
        template, not_found = question.evidence_template, question.prompts.not_found

        def prompt(passages: Sequence[Passage]) -> str:
            evidence = render_passages(passages)
            return template.format(passages=evidence, question=question.text, not_found=not_found)

        # A draft only searches. Small models copy one that they are shown, right or wrong: it cost the 0.5B 13.7 points
        # of F1 on xquad_zh (40 questions).
        passages = self._fit(question, found.passages, EVIDENCE_TOKENS, prompt)
        short = question.mode == "memorag" and question.kind == "phrase"
        agreed = short and self._generator is self._writer
        return (yield from self._write(question, replace(found, passages=passages), prompt(passages), agreed))

    def _quotation(self, question: Question) -> Steps:
        """Gives the sentences that the question retrieves, as they stand in the document; the passages that hold them
        are cited.

        What a 0.5B or 1.5B model copies when it is told to quote is mostly its own invention: F1 on contracts 22.6 and
        31.7, of the retrieved sentence 45 (28 and 14 questions).
        """
        with question.stage("retrieve"):
            (hits,) = self._retriever.retrieve([question.text], QUOTATION_HITS)
            ranked = rank_passages(["question"], [hits], documents=self._documents)
            sentences = self._retriever.quote(question.text, hits)
        ranked = quoted_first(ranked, sentences, self._documents)
        found = Found(passages=self._fit(question, ranked, EVIDENCE_TOKENS, lambda _: ""))
        yield found
        yield Piece(text := quotation(sentences, self._documents))
        named = any("lexical" in sentence.sources for sentence in sentences)  # something of what was asked for
        return replace(self._finished(question, found, Written(text, 0, 0)), passages=found.passages, supported=named)

    def _gist(self, question: Question) -> Steps:
        """Answers from sentences that every part of the memory recalls, and from the passages that those retrieve."""
        clues = self._memory.recalled(question)
        queries = [("question", question.text), *((clue.kind, clue.text) for clue in clues)]
        # the best of each clue before the second of any, and as many as fit: breadth is asked for
        ranked = self._search(question, queries, lead=len(queries))
        points = [clue.text for clue in clues]

        def prompt(passages: Sequence[Passage]) -> str:
            evidence = render_passages(passages)
            return question.prompts.gist.format(points=_listed(points), passages=evidence, question=question.text)

        while points and question.left(prompt(())) < MIN_EVIDENCE:
            points.pop()
        passages = self._fit(question, ranked, SUMMARY_EVIDENCE_TOKENS, prompt)
        return (yield from self._write(question, Found(clues, "", passages), prompt(passages)))

    def _summary(self, question: Question) -> Steps:
        """Gives what memory tells of each part of the document: as it stands, or composed where that is too long."""
        parts, joined = self._memory.parts(question, joined=self._generator is self._writer)
        if question.language == self.language:  # in another one names are written in other ways
            parts = list(filter(None, (without_inventions(part, self._retriever.holds) for part in parts)))
        lines = [line for part in parts for line in parse_lines(part)]
        clues = select_clues({"point": lines}, caps={"point": len(lines)})
        queries: list[tuple[str, str]] = [(clue.kind, clue.text) for clue in clues]
        queries = queries or [("summary", question.prompts.summary_query)]
        ranked = self._search(question, queries, lead=len(queries))

        def prompt(passages: Sequence[Passage] = ()) -> str:
            return question.prompts.summary.format(parts=_listed(parts or [p.text.strip() for p in passages]))

        passages = self._fit(question, ranked, SUMMARY_EVIDENCE_TOKENS, (lambda _: "") if parts else prompt)
        found = Found(clues, "", passages)
        if parts and joined:
            yield found
            yield Piece(text := "\n\n".join(parts))
            return self._finished(question, found, Written(text, 0, self._writer.count(text)))
        while len(parts) > 1 and question.left(prompt()) < 0:
            parts = parts[::2]  # thinner, but of the whole
        return (yield from self._write(question, found, prompt(passages)))

    # -- steps -------------------------------------------------------------------------------------------------------

    def _clues(self, question: Question, kinds: Sequence[ClueKind]) -> tuple[tuple[Clue, ...], str]:
        """Clues of some kinds, and the draft when it is one of them."""
        return self._memory.clues(question, kinds)

    def _search(
        self, question: Question, queries: Sequence[tuple[str, str]], lead: int = 1, stand_out: float = 0
    ) -> tuple[Passage, ...]:
        """What the queries retrieve, best first; queries: "question" or a clue's kind, and the text. See
        `rank_passages`."""
        paragraph = question.kind == "paragraph"
        most = PARAGRAPH_HITS if paragraph and question.language == "en" else QUESTION_HITS
        with question.stage("retrieve"):
            kinds, texts = zip(*queries, strict=True)
            hits = self._retriever.retrieve(texts, max(most, CLUE_HITS), regions=paragraph)
            limits = [most if kind == "question" else CLUE_HITS for kind in kinds]
            kept = [best[:limit] for best, limit in zip(hits, limits, strict=True)]
            return rank_passages(kinds, kept, lead, stand_out, self._documents)

    def _fit(
        self, question: Question, ranked: Sequence[Passage], budget: int, prompt: Callable[[Sequence[Passage]], str]
    ) -> tuple[Passage, ...]:
        """The passages within the budget and, with the prompt that they stand in, within the context."""
        budget = min(budget, question.left(prompt(())))
        passages = fit_passages(ranked, budget, question.generator.count)
        while passages and (left := question.left(prompt(passages))) < 0:
            budget += left  # joined texts may take a token more than their parts
            passages = fit_passages(ranked, budget, question.generator.count)
        return passages

    def _write(self, question: Question, found: Found, prompt: str, agreed: bool = False) -> Steps:
        """Answers a prompt that stands alone; agreed: the memory is asked too, see `DocumentMemory.agreed`."""
        yield found
        if agreed:
            written = yield from self._memory.agreed(question, prompt)
        else:
            with question.stage("answer", report=False):
                written = yield from question.generator.write(
                    question.prompts.system, prompt, question.max_tokens, question.on_event, question.min_tokens
                )
        return self._finished(question, found, written)

    def _finished(self, question: Question, found: Found, written: Written) -> Answer:
        elsewhere = 0 if question.generator is self._writer else written.prompt_tokens
        return Answer(
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
            prefilled_tokens=question.prefilled + elsewhere,
            timings=question.timings(),
        )

    # -- questions in turn -------------------------------------------------------------------------------------------

    def _question(self, text: str, mode: Mode, max_tokens: int) -> Question:
        """A checked question; InputError for what cannot be asked."""
        if mode not in get_args(Mode):
            raise InputError(f"unknown mode {mode!r}: use {', '.join(get_args(Mode))}")
        text = checked_question(text)
        return self._checked(text, mode, kind_given(text, mode), detect_language(text, self.language), max_tokens)

    def _checked(self, text: str, mode: AnswerMode, kind: Kind, language: Language, max_tokens: int) -> Question:
        generator = self._writer if mode == "memory" else self._generator
        prompts, engine, on_event = self._prompts[language], self._writer.engine, self._on_event
        question = Question(text, mode, kind, language, prompts, max_tokens, generator, engine, on_event)
        question.check()
        return question

    def _alone(self, kinds: Sequence[ClueKind], text: str) -> tuple[tuple[Clue, ...], str]:
        """The clues of some kinds alone, and the draft."""
        turn, question = object(), self._question(text, "memory", CLUE_TOKENS)
        with self._turns.step(turn, last=True):
            question.begin()
            return self._clues(question, kinds)

    def _in_turn(self, question: Question, steps: Steps) -> Iterator[Found | Piece | Answer]:
        """Takes the steps to an answer, and the answer as the last one, when no other question is being answered."""
        turn, step = object(), None
        try:
            with closing(_with_answer(steps)) as whole:
                while not isinstance(step, Answer):
                    if step is not None:
                        yield step
                    with self._turns.step(turn):
                        if step is None:
                            question.begin()
                        step = next(whole)
        finally:
            self._turns.end(turn)
        yield step


def _with_answer(steps: Steps) -> Generator[Found | Piece | Answer, None, None]:
    yield (yield from steps)


def _last(steps: Iterator[Found | Piece | Answer]) -> Answer:
    *_, answer = steps
    assert isinstance(answer, Answer)
    return answer


def _listed(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)
