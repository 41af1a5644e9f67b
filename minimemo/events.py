"""Progress of anything longer than a second; the command line's bar and library users read the same events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """`done` of `total` units of a stage (`total` 0: unknown). A stage ends with done == total."""

    stage: str
    done: int
    total: int
    unit: str = "it"


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """The listener of callers who do not care."""
