"""Ctrl-C for a program that imports heavy modules late and has things to undo."""

from __future__ import annotations

import signal
import time
from types import FrameType

_PAUSE = 1.0  # seconds in which a second Ctrl-C means the first one: what that one undoes is not to be cut short
_RETRY = 0.02  # seconds


class Interrupt:
    """A signal handler: KeyboardInterrupt, but only once an import under way is over.

    Modules that are being imported swallow it, or end the process (C++ that calls Python).
    """

    def __init__(self) -> None:
        self.came = False
        self._again = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        if hasattr(signal, "setitimer") and _importing(frame):  # Windows has none
            signal.signal(signal.SIGALRM, self)
            signal.setitimer(signal.ITIMER_REAL, _RETRY)
        elif time.monotonic() >= self._again:
            self._again = time.monotonic() + _PAUSE
            raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
