"""Whose turn it is: a session answers one question at a time, whatever threads ask."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, get_ident

from minimemo.errors import InputError

LEFT = 3.0  # Seconds after which a stream that nobody reads on from makes way for another thread's question.


class Turns:
    """Lets one question at a time through, and the others wait.

    A stream keeps its turn between its steps, up to its end, or until it is closed or collected. It loses the turn to
    the next question when it was left half read: its thread asks something else, or has not read on for LEFT seconds
    while another thread waits. It may go on all the same, when its turn comes again.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._holder: object = None
        self._thread = 0
        self._rests: float | None = None  # since when the holder is between two steps; None: it is in one

    @contextmanager
    def step(self, holder: object, last: bool = False) -> Iterator[None]:
        """Waits for the turn and keeps it for a step of `holder`, which holds it on until `end`, or a `last` step's.

        Raises InputError within another step of the same thread, from a listener: the turn would never come.
        """
        with self._changed:
            while self._holder not in (None, holder):
                if self._rests is None and self._thread == get_ident():
                    raise InputError("a question within another one's event: ask it when that one has its answer")
                left = None if self._rests is None else self._rests + LEFT - time.monotonic()
                if left is not None and (left <= 0 or self._thread == get_ident()):
                    break
                self._changed.wait(left)
            self._holder, self._thread, self._rests = holder, get_ident(), None
        try:
            yield
        finally:
            with self._changed:
                self._rests = time.monotonic()
                self._holder = None if last else holder
                self._changed.notify_all()

    def end(self, holder: object) -> None:
        """Gives the turn to who waits for it, if it is still the holder's."""
        with self._changed:
            if self._holder is holder:
                self._holder = None
                self._changed.notify_all()
