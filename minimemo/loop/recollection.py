"""What the memory of a document says: clues to search with, a draft, an answer. The memory is lent, never changed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

from minimemo.events import Event
from minimemo.loop.answer import is_refusal
from minimemo.loop.clues import CAPS, Clue, ClueKind, parse_draft, parse_lines, select_clues
from minimemo.loop.language import Language
from minimemo.loop.loan import MemoryLoan
from minimemo.loop.prompts import Prompts, instruction
from minimemo.loop.run import Meter, Run, Settings
from minimemo.loop.views import Views
from minimemo.loop.writer import Piece, Writer

if TYPE_CHECKING:
    from minimemo.engine.cache import KVCache
    from minimemo.memory.view import MemoryView

_PROMPT_OF: Mapping[ClueKind, str] = MappingProxyType(
    {"recall": "recall", "rewrite": "rewrite", "draft": "draft", "point": "key_points"}
)


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
        self._walk: tuple[ClueKind, str] | None = None
        self._walked: dict[MemoryView, list[str]] = {}  # what each view of that walk gave

    def clues(self, kinds: Sequence[ClueKind], run: Run, max_tokens: int) -> tuple[tuple[Clue, ...], str]:
        """The clues of all `kinds` and the draft ("" when not asked for, or empty), from one batch over the memory.

        Recalled passages, rewritten questions and key points are asked for in the document's language, since they are
        to be found in it; a draft in the question's.
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

    def walk(self, kind: ClueKind, run: Run, max_tokens: int) -> tuple[Clue, ...]:
        """Clues of one kind from the whole memory, view by view, in order; from one view where that holds all of it.

        What a view gave is kept until something else is asked: a walk that was interrupted goes on where it stopped.
        """
        settings, question = self._settings, run.walked_for
        row = self._prompt(kind, question, self._language)
        views = self._views.walk(len(row) + max_tokens)
        one = len(views) == 1
        limit = max_tokens if one else min(max_tokens, settings.walk_tokens)
        caps = dict(CAPS) if one else {**CAPS, kind: settings.walk_clues}
        if (kind, question) != self._walk:
            self._walk, self._walked = (kind, question), {}
        echoes = [instruction(self._template(kind, self._language))]
        for number, view in enumerate(views):
            run.meter.on_event(Event("walk", number, len(views), "views"))
            if view not in self._walked:
                with self._borrow(view, len(row) + limit, run.meter) as memory, run.meter.stage("recall", report=one):
                    (reply,) = self._writer.reply_batch(memory(), [row], limit)
                lines = parse_lines(reply)
                clues = select_clues({kind: lines}, question=question, instructions=echoes, caps=caps)
                self._walked[view] = [clue.text for clue in clues]
        run.meter.on_event(Event("walk", len(views), len(views), "views"))
        items = [text for view in views for text in self._walked[view]]
        return select_clues({kind: items}, caps={kind: len(items)})

    def answer(self, run: Run, text: str, view_tokens: int) -> Generator[Piece, None, tuple[str, int, int]]:
        """Yields the answer to a prompt that ends the memory's turn, in pieces, over a view of so many tokens; returns
        its text, its tokens and those of the prompt."""
        ids = self._writer.end_of_turn(self._prompts[run.language].system, text)
        room = len(ids) + run.max_tokens
        view = self._view(run, view_tokens, room)
        with self._borrow(view, room, run.meter) as memory, run.meter.stage("answer", report=False):
            reply, count = yield from self._writer.reply(memory, ids, run.max_tokens, run.meter.on_event)
        return reply, count, len(ids)

    def weigh(self, run: Run, told: list[int], max_tokens: int) -> tuple[list[int], list[float]]:
        """The memory's own short answer, in tokens, and how likely it finds `told` and that, see `Engine.likelihoods`;
        no figures where it has none of its own. Both are at most `max_tokens` long."""
        prompts = self._prompts[run.language]
        ids = self._writer.end_of_turn(prompts.system, prompts.memory_answer.format(question=run.question))
        room = len(ids) + max_tokens
        view = self._view(run, self._settings.answer_view_tokens, room)
        with self._borrow(view, room, run.meter) as memory, run.meter.stage("weigh"):
            cache = memory()
            length = cache.length
            own = list(self._writer.tokens(cache, ids, max_tokens))
            cache.truncate(length)
            return own, self._writer.likelihoods(cache, ids, [told, own]) if own not in ([], told) else []

    def _template(self, kind: ClueKind, language: Language) -> str:
        template: str = getattr(self._prompts[language], _PROMPT_OF[kind])
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
