"""Many questions in one process: it does not grow, and answers the last as the first."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable

from ground import Case, Ground, child, prose

_WARM = 200  # questions until every cache has what it keeps
_GROWTH = 0.02  # of the resident memory after those


def _resident() -> int:
    """Bytes of this process that are in memory, after what nothing holds was given back."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(ground: Ground) -> list[Case]:
    """Questions in all modes, each of other words and lengths, to one memo."""

    def case(count: int) -> Callable[[], str]:
        def run() -> str:
            ground.fresh()
            memo = ground.memo(3000)

            def ask() -> None:
                import minimemo

                opened = minimemo.open(memo, model=ground.decoder, embedder=ground.embedder)
                chance, words = random.Random(1), prose(9000).split()
                modes = ("memorag", "rag", "memory", "closed")
                before = after = state = None
                for number in range(count):
                    question = f"{' '.join(chance.sample(words, chance.randint(1, 12)))} {number}?"
                    opened.ask(question, modes[number % 4], max_tokens=4)
                    if number % _WARM == _WARM - 1:
                        answer = opened.ask("When was the lamp lit?", max_tokens=6)
                        now = answer.text, len(os.listdir("/proc/self/fd")), threading.active_count()
                        after = _resident()
                        before, state = before or after, state or now
                        assert now == state, f"question {number}: {now} where {state} was"
                        assert after <= (1 + _GROWTH) * before, f"question {number}: {before} -> {after} bytes"
                        print(number + 1, after)

            ended = child(ask, seconds=3600)
            if os.environ.get("ATTACK_VERBOSE"):
                print(ended.out)
            return ended.fell(0)

        return run

    return [Case(f"{count} questions", case(count)) for count in (400, 2000)]
