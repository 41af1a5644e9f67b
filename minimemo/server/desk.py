"""The desk: questions wait in a line and are answered by threads of the server's own, whoever reads the answers."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from minimemo.errors import MinimemoError
from minimemo.events import Event

WAITING = 64  # So many questions may wait; more are sent away.


class Busy(MinimemoError):
    """So many wait already that one more would wait too long."""


class Ticket:
    """One piece of work in the line. `deliver` gets its steps and what it tells of itself (events), from the desk's
    thread: at the end None, or what the work raised."""

    def __init__(self, work: Callable[[], Iterator[Any]], deliver: Callable[[Any], None]) -> None:
        self._work = work
        self._deliver = deliver
        self.left = threading.Event()

    def leave(self) -> None:
        """Drops the rest of the work: its reader is gone."""
        self.left.set()

    def hear(self, event: Event) -> None:
        if not self.left.is_set():
            self._deliver(event)

    def run(self) -> None:
        """Does the work, unless its reader left; a failure is the reader's to hear of."""
        end: BaseException | None = None
        try:
            if not self.left.is_set():
                steps = self._work()
                for step in steps:
                    if self.left.is_set():
                        break
                    self._deliver(step)
                if isinstance(steps, Generator):
                    steps.close()
        except BaseException as error:
            end = error
        self._deliver(end)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Stands in the line still: so many are worked on before, itself counted; 0 where it is being worked on."""

    position: int


class Desk:
    """Works on tickets in the order of their coming, `hands` at a time."""

    def __init__(self, hands: int = 1) -> None:
        self._line: queue.Queue[Ticket | None] = queue.Queue()
        self._waiting: list[Ticket] = []
        self._lock = threading.Lock()
        self._now = threading.local()
        self._threads = [threading.Thread(target=self._serve, name=f"desk-{n}", daemon=True) for n in range(hands)]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], Iterator[Any]], deliver: Callable[[Any], None]) -> Ticket:
        """Puts work into the line. Raises Busy where that is full."""
        ticket = Ticket(work, deliver)
        with self._lock:
            self._waiting = [other for other in self._waiting if not other.left.is_set()]
            if len(self._waiting) >= WAITING:
                raise Busy(f"{WAITING} questions wait already: ask again in a minute")
            self._waiting.append(ticket)
        self._line.put(ticket)
        return ticket

    def check(self) -> None:
        """Raises Busy where the line is full, before a reader is promised anything."""
        with self._lock:
            if sum(not other.left.is_set() for other in self._waiting) >= WAITING:
                raise Busy(f"{WAITING} questions wait already: ask again in a minute")

    async def steps(self, work: Callable[[], Iterator[Any]], beat: float) -> AsyncGenerator[Any, None]:
        """The steps of some work and what it tells of itself, a Waiting every `beat` seconds without one. Raises what
        the work raised, and like `submit`. The work is dropped when its reader is."""
        loop, came = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def deliver(step: Any) -> None:
            with suppress(RuntimeError):  # the loop ended with the server
                loop.call_soon_threadsafe(came.put_nowait, step)

        ticket = self.submit(work, deliver)
        try:
            while True:
                try:
                    step = await asyncio.wait_for(came.get(), beat)
                except TimeoutError:
                    yield Waiting(self.position(ticket))
                    continue
                if step is None:
                    return
                if isinstance(step, BaseException):
                    raise step
                yield step
        finally:
            ticket.leave()

    def hear(self, event: Event) -> None:
        """The listener of the models: what they tell is told to the reader whose work they do."""
        ticket = getattr(self._now, "ticket", None)
        if ticket is not None:
            ticket.hear(event)

    def position(self, ticket: Ticket) -> int:
        """How many are worked on before it, itself counted; 0 once its turn has come."""
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
            self._now.ticket = ticket
            ticket.run()
            self._now.ticket = None
