"""Many questions in one process, one after the other and at once: it does not grow, and what it answers stays."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ground import Case, Ground, child, prose

_WARM = 200  # questions until every cache has what it keeps
_GROWTH = 0.02  # of the resident memory after those
_MODES = ("memorag", "rag", "memory", "closed")


def _resident() -> int:
    """Bytes of this process that are in memory, after what nothing holds was given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(ground: Ground) -> list[Case]:
    """Questions in all modes, each of other words and lengths, to one memo."""

    def case(count: int) -> str:
        ground.fresh()
        memo = ground.memo(3000)

        def ask() -> None:
            import minimemo
            from minimemo.ask import memory as views
            from minimemo.memory import load as blocks

            views.VIEW_BYTES = blocks.KEPT_BYTES = 8 << 20  # full by then, as they are with models of usual size
            opened = minimemo.open(memo, model=ground.decoder, embedder=ground.embedder)
            chance, words = random.Random(1), prose(9000).split()
            before = after = state = None
            for number in range(count):
                question = f"{' '.join(chance.sample(words, chance.randint(1, 12)))} {number}?"
                opened.ask(question, _MODES[number % 4], max_tokens=4)
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

    return [Case(f"{count} questions", case, count) for count in (400, 2000)]


def _differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Where two answers differ, seconds apart."""
    if isinstance(one, dict):
        return [line for key in one if key != "timings" for line in _differences(one[key], other[key], f"{at}.{key}")]
    if isinstance(one, list | tuple) and len(one) == len(other):
        return [
            line for n, pair in enumerate(zip(one, other, strict=True)) for line in _differences(*pair, f"{at}[{n}]")
        ]
    return [] if one == other else [f"{at}: {one!r}, {other!r}"]


def at_once(ground: Ground) -> list[Case]:
    """Threads that ask two memos of one loaded model give the answers of one thread."""

    def case(threads: int, count: int) -> str:
        ground.fresh()
        folders = [ground.memo(1500, name) for name in ("one", "two")]

        def ask() -> None:
            import minimemo

            model, embedder = minimemo.load_model(ground.decoder), minimemo.open_embedder(ground.embedder)
            memos = [minimemo.open(folder, model=model, embedder=embedder) for folder in folders]
            chance, words = random.Random(2), prose(3000).split()
            asked = [
                (memos[number % 2], f"Who {' '.join(chance.sample(words, 3))} {number}?", _MODES[number % 4])
                for number in range(threads * count)
            ]
            chance.shuffle(asked)

            def answer(one: tuple[Any, str, Any]) -> Any:
                memo, question, mode = one
                return memo.ask(question, mode, max_tokens=4)

            alone = [answer(one) for one in asked]
            with ThreadPoolExecutor(threads) as pool:
                together = list(pool.map(answer, asked))
            wrong = [
                (*one[1:], *_differences(a.to_dict(), b.to_dict()))
                for one, a, b in zip(asked, alone, together, strict=True)
                if a != b
            ]
            assert not wrong, f"{len(wrong)} of {len(asked)} answers differ, first {wrong[0]}"

        return child(ask, seconds=1800).fell(0)

    return [Case(f"{n} threads x {count} questions on 2 memos", case, n, count) for n, count in ((4, 4), (8, 50))]
