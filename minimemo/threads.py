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
    products are of bfloat16). A forward pass has some five shapes, the same in every layer. Not where the user has said
    how many.
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


def forked_on_one_thread() -> None:
    """Tells that the process which this one was forked from computed on one thread alone: nothing of it is missing."""
    global _computed_in
    _computed_in = None


class Turns:
    """Lets a few pieces of work at a time through, questions for example; the others wait in the order of their coming.

    Work in steps, such as a stream that is read, keeps its place between them, up to its end. Where no place is free it
    loses its own to the next one when it was left: its thread begins something else, or has not gone on for LEFT
    seconds while another waits. It may go on all the same, when a place is free again.
    """

    def __init__(self, places: int = 1) -> None:
        self._places = places
        self._changed = Condition()
        # Those who have a place: their thread, and since when they are between two steps; None: they are in one.
        self._holders: dict[object, tuple[int, float | None]] = {}
        self._line: list[object] = []

    @contextmanager
    def step(self, holder: object, last: bool = False) -> Iterator[None]:
        """Waits for a place and keeps it for a step of `holder`, which holds it on until `end`, or a `last` step's.

        Raises InputError within another step of the same thread, from a listener: the place might never come.
        """
        with self._changed:
            if any(thread == get_ident() and rests is None for thread, rests in self._holders.values()):
                raise InputError("a question within another one's event: ask it when that one has its answer")
            if holder not in self._holders:
                self._wait(holder)
            self._holders[holder] = get_ident(), None
        try:
            yield
        finally:
            with self._changed:
                if last:
                    self._holders.pop(holder, None)
                else:
                    self._holders[holder] = get_ident(), time.monotonic()
                self._changed.notify_all()

    def _wait(self, holder: object) -> None:
        self._line.append(holder)
        try:
            while self._line[0] is not holder or len(self._holders) >= self._places:
                resting = [(rests, one) for one, (_, rests) in self._holders.items() if rests is not None]
                own = [one for _, one in resting if self._holders[one][0] == get_ident()]
                rests, oldest = min(resting, key=lambda pair: pair[0], default=(None, None))
                left = None if rests is None else rests + LEFT - time.monotonic()
                if self._line[0] is holder and (own or (left is not None and left <= 0)):
                    del self._holders[own[0] if own else oldest]
                    continue
                self._changed.wait(left if self._line[0] is holder else None)
        finally:
            self._line.remove(holder)
            self._changed.notify_all()

    def end(self, holder: object) -> None:
        """Gives the place of a holder, if it still has one, to who waits for it."""
        with self._changed:
            self._holders.pop(holder, None)
            self._changed.notify_all()
