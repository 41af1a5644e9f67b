"""What the memory of a document says: clues to search with, a draft, an answer. The memory is lent, never changed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from minimemo.ask.answer import is_part, is_refusal
from minimemo.ask.clues import (
    CAPS,
    Clue,
    ClueKind,
    collapse_loops,
    full_sentences,
    is_informative,
    parse_draft,
    parse_lines,
    select_clues,
)
from minimemo.ask.loan import MemoryLoan
from minimemo.ask.prompts import Prompts, instruction
from minimemo.ask.run import Meter, Run, Settings
from minimemo.ask.views import Views
from minimemo.ask.writer import Piece, Writer
from minimemo.events import Event
from minimemo.text.scripts import WORDS_A_TOKEN, Language, normalize

if TYPE_CHECKING:
    from minimemo.engine.cache import KVCache
    from minimemo.memory.view import MemoryView


class Recollection:
    """The memory of one or several documents, asked in words. `language` is theirs; each call names the question's."""

    def __init__(
        self,
        writer: Writer,
        memory: MemoryLoan,
        views: Views,
        language: Language,
        prompts: Mapping[Language, Prompts],
        settings: Settings,
    ) -> None:
        self._writer = writer
        self._memory = memory
        self._views = views
        self._language = language
        self._prompts = prompts
        self._settings = settings
        self._asked: tuple[list[int], int] = [], 0  # what the last walk asked each view, and its limit
        self._walked: dict[MemoryView, str] = {}  # what each view replied

    def clues(self, kinds: Sequence[ClueKind], run: Run, max_tokens: int) -> tuple[tuple[Clue, ...], str]:
        """The clues of all `kinds` and the draft ("" when not asked for, or empty), from one batch over the memory.

        Recalled passages and rewritten questions are asked for in the document's language, since they are to be found
        in it; a draft in the question's.
        """
        rows = [self._prompt(kind, run.question, run.language if kind == "draft" else self._language) for kind in kinds]
        room = max(map(len, rows)) + max_tokens
        view = self._view(run, self._settings.view_tokens, room)
        with self._borrow(view, room, run.meter) as memory, run.meter.stage("recall"):
            replies = dict(zip(kinds, self._writer.reply_batch(memory(), rows, max_tokens), strict=True))
        draft = parse_draft(replies.pop("draft", ""))
        if is_refusal(draft, self._prompts[run.language].not_found):
            draft = ""
        items: dict[ClueKind, list[str]] = {kind: parse_lines(reply) for kind, reply in replies.items()}
        if draft:
            items["draft"] = [draft]
        echoes = [instruction(self._template(kind, self._language)) for kind in replies]
        return select_clues(items, question=run.question, instructions=echoes), draft

    def recalled(self, run: Run) -> tuple[Clue, ...]:
        """Sentences for the question from the whole memory, in order."""
        settings, row = self._settings, self._prompt("recall", run.question, self._language)
        views = self._views.walk(len(row) + settings.walk_tokens)
        caps = CAPS if len(views) == 1 else {**CAPS, "recall": settings.walk_clues}
        echoes = [instruction(self._template("recall", self._language))]
        items = [
            clue.text
            for reply in self._walk(run, views, row, 0, settings.walk_tokens)
            for clue in select_clues(
                {"recall": parse_lines(reply)}, question=run.question, instructions=echoes, caps=caps
            )
        ]
        return select_clues({"recall": items}, caps={"recall": len(items)})

    def parts(self, run: Run, joined: bool) -> tuple[list[str], bool]:
        """What the memory tells of each part of the document, in order; whether all of it is short enough to be a
        summary, which is only tried where it is to be `joined`."""
        settings, prompts = self._settings, self._prompts[run.language]

        def asked(words: int) -> list[int]:
            return self._writer.end_of_turn(prompts.system, prompts.part.format(words=words))

        longest = max(2 * settings.summary_tokens, settings.walk_tokens)
        views = self._views.walk(len(asked(100)) + longest, settings.short_parts)
        most = run.max_tokens // len(views)
        each = min(run.max_tokens, settings.summary_tokens) // len(views)
        joined = joined and (len(views) == 1 or each >= settings.part_tokens)
        if not joined:
            each, most = 2 * settings.part_tokens, settings.walk_tokens
        row = asked(max(10, 10 * round(each * WORDS_A_TOKEN[run.language] / 10)))
        replies = self._walk(run, views, row, each // 2, min(most, 2 * each))
        told = [full_sentences(collapse_loops(reply)) for reply in replies]
        nothing = tuple(filter(None, [normalize(prompts.not_found)]))  # a user's prompts may have no such words
        return [part for part in told if is_informative(part) and not normalize(part).startswith(nothing)], joined

    def _walk(self, run: Run, views: Sequence[MemoryView], row: list[int], least: int, limit: int) -> list[str]:
        """What each view replies, in `least` (or a quarter of its own) to `limit` tokens. Kept until something else is
        asked: an interrupted walk goes on where it stopped."""
        if (row, limit) != self._asked:
            self._asked, self._walked = (row, limit), {}
        for number, view in enumerate(views):
            run.meter.on_event(Event("walk", number, len(views), "views"))
            if view not in self._walked:
                with self._borrow(view, len(row) + limit, run.meter) as memory, run.meter.stage("recall", report=False):
                    self._walked[view] = self._writer.whole_reply(memory(), row, limit, min(least, view.tokens // 4))
        run.meter.on_event(Event("walk", len(views), len(views), "views"))
        return [self._walked[view] for view in views]

    def answer(self, run: Run, text: str, view_tokens: int) -> Generator[Piece, None, tuple[str, int, int]]:
        """Yields the answer to a prompt that ends the memory's turn, in pieces, over a view of so many tokens; returns
        its text, its tokens and those of the prompt."""
        ids = self._writer.end_of_turn(self._prompts[run.language].system, text)
        room = len(ids) + run.max_tokens
        view = self._view(run, view_tokens, room)
        with self._borrow(view, room, run.meter) as memory, run.meter.stage("answer", report=False):
            reply, count = yield from self._writer.reply(
                memory, ids, run.max_tokens, run.meter.on_event, run.min_tokens
            )
        return reply, count, len(ids)

    def weigh(self, run: Run, told: list[int], max_tokens: int) -> tuple[list[int], list[float]]:
        """The memory's own short answer, in tokens, and how likely it finds `told` and that, see `Engine.likelihoods`;
        no figures where it has none of its own, or only a part of `told`: of two that say the same, the shorter one is
        likelier whatever is right. Both are at most `max_tokens` long."""
        prompts = self._prompts[run.language]
        ids = self._writer.end_of_turn(prompts.system, prompts.memory_answer.format(question=run.question))
        room = len(ids) + max_tokens
        view = self._view(run, self._settings.answer_view_tokens, room)
        with self._borrow(view, room, run.meter) as memory, run.meter.stage("weigh"):
            cache = memory()
            length = cache.length
            own = list(self._writer.tokens(cache, ids, max_tokens))
            if own in ([], told) or is_part(self._writer.text(own), self._writer.text(told)):
                return own, []
            cache.truncate(length + len(ids) - 1)
            return own, self._writer.likelihoods(cache, ids[-1:], [told, own])

    def _template(self, kind: ClueKind, language: Language) -> str:
        template: str = getattr(self._prompts[language], kind)
        return template

    def _prompt(self, kind: ClueKind, question: str, language: Language) -> list[int]:
        text = self._template(kind, language).format(question=question)
        return self._writer.end_of_turn(self._prompts[language].system, text)

    def _view(self, run: Run, most: int, room: int) -> MemoryView:
        with run.meter.stage("choose"):
            return self._views.choose(run.question, most, room)

    @contextmanager
    def _borrow(self, view: MemoryView, room: int, meter: Meter) -> Iterator[Callable[[], KVCache]]:
        if not self._memory.holds(view, room):
            with meter.stage("memory"):
                self._memory.load(view, room)
        with self._memory.lend(view, room) as memory:
            yield memory
