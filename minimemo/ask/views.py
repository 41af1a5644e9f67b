"""Which part of a memory a question gets: all of it where that is small, else the blocks that its words lead to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from minimemo.ask.run import Settings
from minimemo.errors import InputError
from minimemo.memory.view import Block, Extent, MemoryView, Span, blocks_of, chosen, neighbours, walk, whole

if TYPE_CHECKING:
    from minimemo.engine.cache import KVCache
    from minimemo.search.index import Retriever
    from minimemo.text.chunks import Hit


class Memory(Protocol):
    """What the loop asks of the memory of one or several documents (stored_memory.py holds the real one)."""

    @property
    def extents(self) -> Sequence[Extent]: ...

    def load(self, view: MemoryView, room: int) -> KVCache:
        """A cache that holds the view and has room for so many tokens more."""


class Views:
    """Chooses views. `memory` is called when first needed; `max_context` is the model's, in tokens."""

    def __init__(
        self, memory: Callable[[], Memory], retriever: Retriever, settings: Settings, max_context: int
    ) -> None:
        self._memory = memory
        self._retriever = retriever
        self._settings = settings
        self._max_context = max_context
        self._found: tuple[str, list[Span]] = ("", [])  # by the question that views were chosen for last

    def choose(self, question: str, most: int, room: int) -> MemoryView:
        """The view of at most `most` tokens for a question, behind which `room` tokens of context stay free.

        Blocks that hold the first `view_hits` passages come first, then their neighbours, then those of the passages
        that follow. Raises InputError when none fits.
        """
        if (everything := self._whole(most, room)) is not None:
            return everything
        extents = self._memory().extents
        return chosen(extents, self._ranked(question, extents), self._budget(most, room))

    def walk(self, room: int, parts: int = 1) -> list[MemoryView]:
        """At most `walk_views` views that go through the whole memory in order, in at most `parts` where those have no
        more than `walk_view_tokens` each; one where `least_view_tokens` hold all of it.

        Where they do not hold all of it, each is longer, at most twice `walk_view_tokens`; then stretches are left out.
        """
        settings, extents = self._settings, self._memory().extents
        blocks, first = sum(extent.blocks for extent in extents), extents[0]

        def size(count: int) -> int:
            """Tokens of a view of which `count` hold all."""
            return first.opening + -(-blocks // count) * first.block_tokens

        each = min(settings.walk_view_tokens, max(size(parts), settings.least_view_tokens))
        if (everything := self._whole(each, room)) is not None:
            return [everything]
        each = max(each, min(2 * settings.walk_view_tokens, size(settings.walk_views)))
        return walk(extents, self._budget(each, room), settings.walk_views)

    def _whole(self, most: int, room: int) -> MemoryView | None:
        """All there is, where that is at most `most` tokens and leaves `room`."""
        everything = whole(self._memory().extents)
        return everything if everything.tokens <= min(most, self._max_context - room) else None

    def _ranked(self, question: str, extents: Sequence[Extent]) -> Iterator[Block]:
        settings = self._settings
        if self._found[0] != question:  # several views serve one question
            (hits,) = self._retriever.retrieve([question], 1 + sum(extent.blocks for extent in extents))
            self._found = question, [_span(hit) for hit in hits]
        spans = iter(self._found[1])
        first = list(blocks_of(extents, islice(spans, settings.view_hits)))
        yield from first
        yield from neighbours(extents, first)
        yield from blocks_of(extents, spans)

    def _budget(self, wanted: int, room: int) -> int:
        """At most `wanted` tokens, or the least that makes a view, behind which `room` are free; InputError when even
        that does not fit."""
        first = self._memory().extents[0]
        least = first.opening + 2 * first.block_tokens  # a block, and one that the opening may end in
        budget = min(max(wanted, least), self._max_context - room)
        if budget < least:
            raise InputError(
                f"question: its prompt and reply take {room} tokens of a context of {self._max_context}, and the "
                f"document needs {least}: shorten it, or lower max_tokens"
            )
        return budget


def _span(hit: Hit) -> Span:
    return Span(hit.document, hit.chunk.token_start, hit.chunk.token_end)
