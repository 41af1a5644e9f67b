"""The threads that compute: how long the idle ones spin before they sleep, and what a forked process lacks.

GCC's library, torch's on Linux, lets them spin for milliseconds (GOMP_SPINCOUNT 300,000), which on a busy machine is
taken from the thread that everyone waits for. Prefill on two cores, tokens/s at depths 0 and 4k, alone and beside one
busy process: 664, 387 and 257, 157 by default; with 1,000 rounds 668, 388 and 309, 205; with 20,000 666, 387 and 200,
148; with 100 587-650, 375 and 350, 204; with OMP_WAIT_POLICY=passive 635, 376 and 330, 198.
"""

from __future__ import annotations

import os
import sys

from minimemo.errors import MinimemoError

SPINS = ("GOMP_SPINCOUNT", "1000")
_computed_in: int | None = None  # id of the process that torch's threads were started in


def spin_briefly() -> None:
    """For this process and those that it starts; not where the user has said how to wait, or torch has come before."""
    if "torch" not in sys.modules and not os.environ.keys() & {SPINS[0], "OMP_WAIT_POLICY"}:
        os.environ[SPINS[0]] = SPINS[1]


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
