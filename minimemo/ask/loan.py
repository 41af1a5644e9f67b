"""The loan of a memory: one view in one hand at a time, given back at its own length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from minimemo.errors import InputError

if TYPE_CHECKING:
    from minimemo.ask.views import Memory
    from minimemo.engine.cache import KVCache
    from minimemo.memory.view import MemoryView


class MemoryLoan:
    """Keeps the view that was asked for last; `memory` is called when first needed. `room`: tokens that every view
    gets behind it, so that a longer question need not load it again.

    A new loan ends the one before it, so that a stream left half read cannot write under the next question.
    Not for several threads at once.
    """

    def __init__(self, memory: Callable[[], Memory], room: int) -> None:
        self._memory = memory
        self._room = room
        self._view: MemoryView | None = None
        self._cache: KVCache | None = None
        self._length = 0
        self._serial = 0

    def holds(self, view: MemoryView, room: int) -> bool:
        """Whether `load` would have nothing to do."""
        return self._cache is not None and view == self._view and self._length + room <= self._cache.capacity

    def load(self, view: MemoryView, room: int) -> KVCache:
        """The view, with room for `room` tokens more at least."""
        if self._cache is None or not self.holds(view, room):
            self._serial += 1
            self._view = self._cache = None  # before the next one is made: two at once may be too much
            self._cache = self._memory().load(view, max(room, self._room))
            self._view, self._length = view, self._cache.length
        return self._cache

    @contextmanager
    def lend(self, view: MemoryView, room: int) -> Iterator[Callable[[], KVCache]]:
        """Gives a function that returns the cache while the loan stands, and raises InputError once another began."""
        cache = self.load(view, room)
        self._serial += 1
        serial = self._serial
        cache.truncate(self._length)

        def current() -> KVCache:
            if serial != self._serial:
                raise InputError("this answer was left half read and another question came after it: ask it again")
            return cache

        try:
            yield current
        finally:
            if serial == self._serial:
                cache.truncate(self._length)
