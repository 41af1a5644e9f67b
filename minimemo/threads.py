"""Threads: how long those that compute spin before they sleep, what a forked process lacks, and whose turn it is; and
how much generated code a process keeps.

GCC's library, torch's on Linux, lets them spin for milliseconds (GOMP_SPINCOUNT 300,000), which on a busy machine is
taken from the thread that everyone waits for. Prefill on two cores, tokens/s at depths 0 and 4k, alone and beside one
busy process: 664, 387 and 257, 157 by default; with 1,000 rounds 668, 388 and 309, 205; with 20,000 666, 387 and 200,
148; with 100 587-650, 375 and 350, 204; with OMP_WAIT_POLICY=passive 635, 376 and 330, 198.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, get_ident

from minimemo.errors import InputError, MinimemoError

SPINS = ("GOMP_SPINCOUNT", "1000")
SHAPES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
LEFT = 3.0  # Seconds after which work that nobody goes on with makes way for another thread's; see `Turns`.
_computed_in: int | None = None  # id of the process that torch's threads were started in


def spin_briefly() -> None:
    """For this process and those that it starts; not where the user has said how to wait, or torch has come before."""
    if "torch" not in sys.modules and not os.environ.keys() & {SPINS[0], "OMP_WAIT_POLICY"}:
        os.environ[SPINS[0]] = SPINS[1]


def bound_shapes() -> None:
    """Lets torch and oneDNN keep the code of few shapes, for this process and those that it starts.

    They make code for every number of tokens that they meet, and keep that of 1,024 (hundreds of megabytes where
    products are of bfloat16). A forward pass has some five shapes, the same in every layer. Not where the user has
    said how many.
    """
    if "torch" not in sys.modules:
        for name in SHAPES:
            os.environ.setdefault(name, "64")


def check_fork() -> None:
    """Notes that this process computes. Raises MinimemoError where it was forked from one that did: torch's threads are
    not in it, and waiting for them would hang it."""
    global _computed_in
    if _computed_in not in (None, os.getpid()):
        raise MinimemoError(
            "this process was forked from one that had loaded a model: fork first and load the model in each process, "
            "or start processes by the method 'spawn' of multiprocessing"
        )
    _computed_in = os.getpid()


class Turns:
    """Lets one piece of work at a time through, a question for example, and the others wait.

    Work in steps, such as a stream that is read, keeps its turn between them, up to its end. It loses the turn to the
    next one when it was left: its thread begins something else, or has not gone on for LEFT seconds while another
    thread waits. It may go on all the same, when its turn comes again.
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
