"""The desk: questions wait in a line and are answered by threads of the server's own, whoever reads the answers."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from minimemo.errors import MinimemoError

WAITING = 64  # So many questions may wait; more are sent away.


class Busy(MinimemoError):
    """So many wait already that one more would wait too long."""


class Ticket:
    """One piece of work in the line: its steps as they come, to be read by one reader, who may leave at any time."""

    def __init__(self, desk: Desk, work: Callable[[], Iterator[Any]]) -> None:
        self._desk = desk
        self._work = work
        self._steps: queue.SimpleQueue[Any] = queue.SimpleQueue()  # as long as an answer at most
        self.left = threading.Event()
        self.begun = False

    def __iter__(self) -> Iterator[Any]:
        """Gives the steps, and raises what the work raised."""
        while True:
            step = self._steps.get()
            if step is self:
                return
            if isinstance(step, BaseException):
                raise step
            yield step

    def position(self) -> int:
        """How many wait before it; 0 once it is worked on."""
        return self._desk.before(self)

    def leave(self) -> None:
        """Drops the rest of the work."""
        self.left.set()

    def run(self) -> None:
        """Does the work, unless its reader left; a failure is the reader's to hear of."""
        self.begun = True
        try:
            if not self.left.is_set():
                with closing(self._work()) as steps:  # type: ignore[type-var]
                    for step in steps:
                        if self.left.is_set():
                            break
                        self._steps.put(step)
        except BaseException as error:
            self._steps.put(error)
        finally:
            self._steps.put(self)


class Desk:
    """Works on tickets in the order of their coming, `hands` at a time."""

    def __init__(self, hands: int = 1) -> None:
        self._line: queue.Queue[Ticket | None] = queue.Queue()
        self._waiting: list[Ticket] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._serve, name=f"desk-{n}", daemon=True) for n in range(hands)]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], Iterator[Any]]) -> Ticket:
        """Puts work into the line. Raises Busy where that is full."""
        ticket = Ticket(self, work)
        with self._lock:
            self._waiting = [other for other in self._waiting if not other.left.is_set()]
            if len(self._waiting) >= WAITING:
                raise Busy(f"{WAITING} questions wait already: ask again in a minute")
            self._waiting.append(ticket)
        self._line.put(ticket)
        return ticket

    def before(self, ticket: Ticket) -> int:
        with self._lock:
            waiting = [other for other in self._waiting if other is ticket or not other.left.is_set()]
            return waiting.index(ticket) + 1 if ticket in waiting else 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def close(self, seconds: float) -> None:
        """Sends away those that wait, and lets those at work finish, so many seconds at most."""
        with self._lock:
            for ticket in self._waiting:
                ticket.leave()
        for _ in self._threads:
            self._line.put(None)
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _serve(self) -> None:
        while (ticket := self._line.get()) is not None:
            with self._lock:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
            ticket.run()
