"""Progress of anything longer than a second; the command line's bar and library users read the same events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """`done` of `total` units of a stage (`total` 0: unknown). A stage ends with done == total.

    Stages of a build: load model, compile kernels (for a GPU), tokenize, embed, read, already built; where the model is
    measured first, calibrate and weigh layers. Of a question: load model, memory, load memory (the blocks of it),
    choose, recall, walk, retrieve, weigh, answer. Of others: pull NAME, convert NAME, verify. With the unit "note",
    `stage` is a line for the user and no stage; with "detail" it is one for a user who asked for more.
    """

    stage: str
    done: int
    total: int
    unit: str = "it"


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """The listener of callers who give none: notes go to the logger "minimemo" as INFO, the rest as DEBUG."""
    import logging  # costs an import of minimemo nothing

    if event.unit in ("note", "detail"):
        logging.getLogger("minimemo").log(logging.INFO if event.unit == "note" else logging.DEBUG, "%s", event.stage)
    elif event.done == event.total:
        logging.getLogger("minimemo").debug("%s: %d %s", event.stage, event.done, event.unit)


class Clock:
    """Times the stages of some work, and tells a listener of them."""

    def __init__(self, on_event: Listener = silent) -> None:
        self.on_event = on_event
        self.start()

    def start(self) -> None:
        """Begins anew."""
        self._seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    @contextmanager
    def stage(self, name: str, *, report: bool = True) -> Iterator[None]:
        """Times a block; `report` false when the block reports its progress itself."""
        if report:
            self.on_event(Event(name, 0, 1))
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begin
        if report:
            self.on_event(Event(name, 1, 1))

    def timings(self) -> dict[str, float]:
        """Returns the seconds of each stage, and "total"."""
        return {**self._seconds, "total": time.perf_counter() - self._begun}
