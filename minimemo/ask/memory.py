"""What the memory of the documents says: a view is chosen and loaded, clues are recalled, answers told and weighed.

A view in its cache is lent to one question at a time and never changed: it has its length back afterwards. All of a
memory stands before a question where that is short, else the blocks that the question's words lead to; what is asked of
the whole walks through all of it, view by view.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from minimemo.ask.clues import (
    CAPS,
    Clue,
    ClueKind,
    collapse_loops,
    full_sentences,
    is_informative,
    is_refusal,
    parse_draft,
    parse_lines,
    select_clues,
)
from minimemo.ask.prompts import Prompts
from minimemo.ask.question import CLUE_TOKENS, SUMMARY_TOKENS, Question
from minimemo.ask.writer import CHECK_TOKENS, Piece, Writer, Written, pieces
from minimemo.errors import InputError
from minimemo.events import Event
from minimemo.memory.view import Extent, MemoryView, Span, chosen, held, ranked, walk, whole
from minimemo.text.scripts import WORDS_A_TOKEN
from minimemo.text.words import content_units, normalize

if TYPE_CHECKING:
    from minimemo.engine.cache import KVCache
    from minimemo.search.retriever import Retriever

# Tokens of memory that stand before a question. 16,711 tokens of xquad_en, 0.5B: answers from memory alone have F1
# 0.195 with the whole before them, 0.211 with 4,096 tokens, 0.299 with 1,024 (40 questions); answers with clues 0.515
# with the whole, 0.528 with 4,096 (14 questions).
CLUE_VIEW_TOKENS = 4096
VIEW_TOKENS = 2048  # for paragraphs: ROUGE-L on qmsum and squality (67 questions, 0.5B) is 17.8, as with 4,096
ANSWER_VIEW_TOKENS = 1024  # for a short answer from memory alone
VIEW_HITS = 4  # So many passages' blocks come first into a view, then their neighbours, then those of other passages.

WALK_VIEW_TOKENS = (
    2048  # Each view of a walk through a long memory holds so many tokens; from longer ones less is told.
)
LEAST_VIEW_TOKENS = 512  # Views of a short memory that is told in SHORT_PARTS hold so many at least.
WALK_VIEWS = 24  # Longer memories are walked in views of up to twice the tokens, then in stretches.
WALK_TOKENS = 128  # The reply from each view of a walk ends there, unless the replies are the summary.
WALK_CLUES = 3  # Each view gives so many clues for a question on the whole.
SHORT_PARTS = 4  # A short document is summarized in so many parts; in one part, the 0.5B left out its second half.
# Tokens that are told of each part of a document, at least. Where that is too long for a summary, twice as much is told
# of each part, and the summary is composed of it.
PART_TOKENS = 40

AGREED_TOKENS = 64  # A longer answer from passages stands without being weighed against the memory's.
# Weight of the memory's judgement of a short answer, the passages' being 1. F1 gained over passages alone with the 0.5B
# on literaryqa, loogle, xquad_en, xquad_zh (42 questions of the last): .1: +11.3, 0, -0.3, -0.8; .2: +11.3, +6.0, +1.3,
# -0.6; .5: +10.6, +6.0, +1.9, -3.0. The mean a token in place of the sum: xquad_en -7.9.
MEMORY_WEIGHT = 0.2

ROOM_TOKENS = 512  # behind every view, so that a longer question need not load it again
# Bytes of caches with views that wait for the next question; the last one is kept whatever its size.
VIEW_BYTES = 96 << 20


class Memory(Protocol):
    """The stored memory of one or several documents, as a session asks for it."""

    @property
    def extents(self) -> Sequence[Extent]: ...

    def load(self, view: MemoryView, room: int) -> KVCache:
        """Fills a cache with a view; it has room for so many tokens more."""

    def ids(self, view: MemoryView) -> list[int]:
        """The tokens of a view, which a reply may copy."""


class DocumentMemory:
    """The memory of one or several documents, asked in words.

    Threads may ask at the same time: each question has a cache of its own while it is asked. Keeps the views that were
    asked last with their caches, VIEW_BYTES of them, the passages that the last question led to, and the replies of the
    last walk. open_memory: called at the first question that needs the memory. prompts: of the documents' language;
    each question brings its own.
    """

    def __init__(
        self,
        writer: Writer,
        retriever: Retriever,
        open_memory: Callable[[], Memory],
        prompts: Prompts,
    ) -> None:
        self._writer = writer
        self._retriever = retriever
        self._open_memory = open_memory
        self._opened: Memory | None = None
        self._prompts = prompts
        self._idle: list[tuple[MemoryView, KVCache, list[int]]] = []  # with their tokens; used last at the end
        self._lock = Lock()
        self._spans: tuple[str, list[Span]] = ("", [])  # the last question, and the passages that it leads to
        self._asked: tuple[list[int], int] = ([], 0)  # what the last walk asked each view, and its limit
        self._replies: dict[MemoryView, str] = {}  # to that

    # -- what memory says --------------------------------------------------------------------------------------------

    def clues(self, question: Question, kinds: Sequence[ClueKind]) -> tuple[tuple[Clue, ...], str]:
        """Asks for clues of all `kinds` in one batch over the memory; also returns the draft, "" when not asked for, or
        empty.

        Recalled passages and rewritten questions are asked for in the documents' language, since they are to be found
        in it; a draft in the question's.
        """
        books = [question.prompts if kind == "draft" else self._prompts for kind in kinds]
        templates: list[str] = [getattr(prompts, kind) for kind, prompts in zip(kinds, books, strict=True)]
        rows = [self._row(p.system, text, question) for p, text in zip(books, templates, strict=True)]
        room = max(map(len, rows)) + CLUE_TOKENS
        writer, view = self._writer, self._choose(question, CLUE_VIEW_TOKENS, room)
        engine, stop = writer.engine, writer.tokenizer.stop_ids
        with self._lend(question, view, room) as (memory, source), question.clock.stage("recall"):
            written = engine.generate_batch(memory, rows, max_tokens=CLUE_TOKENS, stop=stop, source=source)
        items: dict[ClueKind, list[str]] = {}
        draft = ""
        for kind, reply in zip(kinds, map(writer.tokenizer.decode, written), strict=True):
            if kind != "draft":
                items[kind] = parse_lines(reply)
            elif not is_refusal(parsed := parse_draft(reply), question.prompts.not_found):
                items["draft"], draft = [parsed], parsed
        echoes = [template for kind, template in zip(kinds, templates, strict=True) if kind != "draft"]
        return select_clues(items, question=question.text, instructions=echoes), draft

    def answer(self, question: Question, prompt: str) -> Generator[Piece, None, Written]:
        """Yields the answer to a prompt that ends the memory's turn, in pieces."""
        writer, ids = self._writer, self._writer.turn(question.prompts.system, prompt, begun=True)
        room = len(ids) + question.max_tokens
        view = self._choose(question, VIEW_TOKENS if question.kind == "paragraph" else ANSWER_VIEW_TOKENS, room)
        with self._lend(question, view, room) as (memory, source), question.clock.stage("answer", report=False):
            tokens = writer.tokens(memory, ids, question.max_tokens, question.min_tokens, source=source)
            text, count = yield from pieces(writer.texts(tokens), question.max_tokens, question.clock.on_event)
        return Written(text, len(ids), count)

    def recalled(self, question: Question) -> tuple[Clue, ...]:
        """Walks through the whole memory for sentences that answer the question, in order."""
        row = self._row(self._prompts.system, self._prompts.recall, question)
        views = self._walk_views(len(row) + WALK_TOKENS)
        caps = CAPS if len(views) == 1 else {**CAPS, "recall": WALK_CLUES}
        echoes = [self._prompts.recall]
        items: list[str] = []
        for reply in self._walk(question, views, row, 0, WALK_TOKENS):
            lines: dict[ClueKind, list[str]] = {"recall": parse_lines(reply)}
            items += [c.text for c in select_clues(lines, question=question.text, instructions=echoes, caps=caps)]
        return select_clues({"recall": items}, caps={"recall": len(items)})

    def parts(self, question: Question, joined: bool) -> tuple[list[str], bool]:
        """Walks through the whole memory and has each part of the document told, in order. Also returns whether all of
        it is short enough to be a summary, which is only tried where it is to be `joined`."""
        prompts, most = question.prompts, question.max_tokens

        def asked(words: int) -> list[int]:
            return self._writer.turn(prompts.system, prompts.part.format(words=words), begun=True)

        views = self._walk_views(len(asked(100)) + max(2 * SUMMARY_TOKENS, WALK_TOKENS), SHORT_PARTS)
        limit, each = most // len(views), min(most, SUMMARY_TOKENS) // len(views)
        joined = joined and (len(views) == 1 or each >= PART_TOKENS)
        if not joined:
            each, limit = 2 * PART_TOKENS, WALK_TOKENS
        row = asked(max(10, 10 * round(each * WORDS_A_TOKEN[question.language] / 10)))
        replies = self._walk(question, views, row, each // 2, min(limit, 2 * each))
        parts = [full_sentences(collapse_loops(reply)) for reply in replies]
        nothing = tuple(filter(None, [normalize(prompts.not_found)]))  # a user's prompts may have no such words
        return [part for part in parts if is_informative(part) and not normalize(part).startswith(nothing)], joined

    def agreed(self, question: Question, prompt: str) -> tuple[str, KVCache]:
        """Gives the answer to a whole prompt with passages, or the memory's short answer where passages and memory
        together find that likelier, and the cache that read the prompt. Where the answer from passages has more than
        AGREED_TOKENS, the memory is not asked.

        Either source misleads a small model in its own way: passages that do not hold the answer, a memory that is seen
        as a whole. An answer is weighed by its log-probability given each source, as sequences are in
        retrieval-augmented generation (RAG-Sequence; Lewis et al., arXiv:2005.11401, section 2.1).
        """
        writer, ids, most = self._writer, self._writer.turn(question.prompts.system, prompt), question.max_tokens
        fresh = writer.engine.new_cache(len(ids) + most + CHECK_TOKENS)
        tokens = writer.engine.generate(fresh, ids, max_tokens=most, stop=writer.tokenizer.stop_ids, source=())
        with question.clock.stage("answer", report=False):
            first = list(islice(tokens, AGREED_TOKENS + 1))
        if len(first) <= AGREED_TOKENS:
            second, by_memory = self._weigh(question, first, min(AGREED_TOKENS, most))
            if by_memory:
                fresh.truncate(len(ids) - 1)
                replies, stop = [first, second], writer.tokenizer.stop_ids
                by_passages = writer.engine.likelihoods(fresh, ids[-1:], replies, stop)
                if by_passages[1] + MEMORY_WEIGHT * by_memory[1] > by_passages[0] + MEMORY_WEIGHT * by_memory[0]:
                    first = second
        with question.clock.stage("answer", report=False):
            texts = writer.texts(chain(first, tokens))
            return "".join(piece.text for piece in pieces(texts, most, question.clock.on_event)), fresh

    def _weigh(self, question: Question, first: list[int], max_tokens: int) -> tuple[list[int], list[float]]:
        """Asks the memory for a short answer, in tokens, and how likely it finds `first` and that. No likelihoods where
        it has no other, or only a part of `first`: of two that say the same, the shorter one is likelier whatever is
        right."""
        writer, stop = self._writer, self._writer.tokenizer.stop_ids
        ids = self._row(question.prompts.system, question.prompts.memory_answer, question)
        room = len(ids) + max_tokens
        view = self._choose(question, ANSWER_VIEW_TOKENS, room)
        with self._lend(question, view, room) as (memory, source), question.clock.stage("weigh"):
            length, decode = memory.length, writer.tokenizer.decode
            second = list(writer.engine.generate(memory, ids, max_tokens=max_tokens, stop=stop, source=source))
            if second in ([], first) or _is_part(decode(second), decode(first)):
                return second, []
            memory.truncate(length + len(ids) - 1)
            return second, writer.engine.likelihoods(memory, ids[-1:], [first, second], stop)

    def _row(self, system: str, template: str, question: Question) -> list[int]:
        """Ids that ask a question of the memory."""
        return self._writer.turn(system, template.format(question=question.text), begun=True)

    def _walk(
        self, question: Question, views: Sequence[MemoryView], row: list[int], least: int, limit: int
    ) -> list[str]:
        """Asks each view and returns the replies, of `least` (or a quarter of the view's own) to `limit` tokens. They
        are kept until something else is asked: an interrupted walk goes on where it stopped."""
        with self._lock:
            if (row, limit) != self._asked:
                self._asked, self._replies = (row, limit), {}
            replies = self._replies
        room = len(row) + limit
        for number, view in enumerate(views):
            question.clock.on_event(Event("walk", number, len(views), "views"))
            if view in replies:
                continue
            with self._lend(question, view, room) as (memory, source), question.clock.stage("recall", report=False):
                tokens = self._writer.tokens(memory, row, limit, min(least, view.tokens // 4), source=source)
                replies[view] = "".join(piece.text for piece in pieces(self._writer.texts(tokens), limit))
        question.clock.on_event(Event("walk", len(views), len(views), "views"))
        return [replies[view] for view in views]

    # -- views -------------------------------------------------------------------------------------------------------

    def _choose(self, question: Question, most: int, room: int) -> MemoryView:
        """Chooses a view of at most `most` tokens, behind which `room` tokens of context stay free: all there is, or
        the blocks of the passages that the question retrieves. Raises InputError when none fits."""
        with question.clock.stage("choose"):
            if (everything := self._whole(most, room)) is not None:
                return everything
            extents = self._open().extents
            spans, budget = self._spans_for(question.text, extents), self._budget(most, room)
            return chosen(extents, ranked(extents, spans, VIEW_HITS), budget)

    def _walk_views(self, room: int, parts: int = 1) -> list[MemoryView]:
        """Returns at most WALK_VIEWS views that go through the whole memory in order, in at most `parts` where those
        have no more than WALK_VIEW_TOKENS each; one where LEAST_VIEW_TOKENS hold all of it.

        Where they do not hold all of it, each is longer, at most twice WALK_VIEW_TOKENS; then stretches are left out.
        """
        extents = self._open().extents
        blocks, first = sum(extent.blocks for extent in extents), extents[0]

        def size(count: int) -> int:
            """Tokens of a view of which `count` hold all."""
            return first.opening + -(-blocks // count) * first.block_tokens

        each = min(WALK_VIEW_TOKENS, max(size(parts), LEAST_VIEW_TOKENS))
        if (everything := self._whole(each, room)) is not None:
            return [everything]
        each = max(each, min(2 * WALK_VIEW_TOKENS, size(WALK_VIEWS)))
        return walk(extents, self._budget(each, room), WALK_VIEWS)

    def _whole(self, most: int, room: int) -> MemoryView | None:
        """All there is, where that is at most `most` tokens and leaves `room`."""
        everything = whole(self._open().extents)
        return everything if everything.tokens <= min(most, self._writer.max_context - room) else None

    def _spans_for(self, text: str, extents: Sequence[Extent]) -> list[Span]:
        """The passages that a question retrieves, best first; several views serve one question."""
        asked, spans = self._spans
        if asked != text:
            (hits,) = self._retriever.retrieve([text], 1 + sum(extent.blocks for extent in extents))
            spans = [Span(hit.document, hit.chunk.token_start, hit.chunk.token_end) for hit in hits]
            self._spans = text, spans
        return spans

    def _budget(self, most: int, room: int) -> int:
        """Tokens of a view, at most `most` or the least that makes a view, behind which `room` are free; InputError
        when even that does not fit."""
        first, context = self._open().extents[0], self._writer.max_context
        least = first.opening + 2 * first.block_tokens  # a block, and one that the opening may end in
        budget = min(max(most, least), context - room)
        if budget < least:
            raise InputError(
                f"question: its prompt and reply take {room} tokens of a context of {context}, and the document needs "
                f"{least}: shorten it, or lower max_tokens"
            )
        return budget

    def _open(self) -> Memory:
        with self._lock:
            self._opened = self._opened or self._open_memory()
        return self._opened

    @contextmanager
    def _lend(self, question: Question, view: MemoryView, room: int) -> Iterator[tuple[KVCache, list[int]]]:
        """Lends a cache that holds a view, with room for `room` tokens more at least, and the view's ids; removes what
        the question added. A view that is loaded already, and that no other question has, is not loaded again."""
        question.views.add(view)
        with self._lock:
            at = next(
                (i for i, (one, c, _) in enumerate(self._idle) if one == view and c.capacity >= c.length + room), None
            )
            idle = None if at is None else self._idle.pop(at)
            if idle is None:  # room for one as large as the largest, before it is made
                self._drop(VIEW_BYTES - max((c.nbytes for _, c, _ in self._idle), default=0))
        if idle is None:
            with question.clock.stage("memory"):
                idle = view, self._open().load(view, max(room, ROOM_TOKENS)), self._open().ids(view)
        _, memory, ids = idle
        length = memory.length
        try:
            yield memory, ids
        finally:
            memory.truncate(length)
            with self._lock:
                self._idle.append(idle)
                self._drop(VIEW_BYTES, least=1)

    def spans(self, question: Question) -> list[Span]:
        """The stretches of the documents, in tokens, that memory was read of for a question."""
        return held(self._open().extents, question.views) if question.views else []

    def _drop(self, most: int, least: int = 0) -> None:
        """Forgets the views that were used the longest ago, until those left have `most` bytes, or are `least`."""
        while len(self._idle) > least and sum(c.nbytes for _, c, _ in self._idle) > most:
            del self._idle[0]


def _is_part(answer: str, other: str) -> bool:
    """Tells whether an answer's content words are all in another one; False when it has none ("yes")."""
    units = content_units(answer)
    return bool(units) and units <= content_units(other)
