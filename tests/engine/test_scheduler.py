"""Threads that decode at the same time share steps, and each gets what it gets alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minimemo.engine.engine import Engine
from minimemo.kernels import native
from minimemo.threads import check_fork
from tests.engine.test_threads import IDS, _packed
from tests.tiny import tiny_engine

needs_library = pytest.mark.skipif(native.unavailable() is not None, reason="no library")
TOKENS = 40


def _reply(engine: Engine, number: int, tokens: int = TOKENS) -> list[int]:
    cache = engine.new_cache(200)
    return list(engine.generate(cache, IDS[: 20 + number], max_tokens=tokens))


@needs_library
def test_eight_replies_share_steps_and_equal_each_alone(tmp_path: Path) -> None:
    engine = _packed(tmp_path)
    alone = [_reply(engine, number) for number in range(8)]
    scheduler = engine.scheduler
    assert scheduler.rows == scheduler.steps == 8 * (TOKENS - 1)
    steps, gate = scheduler.steps, threading.Barrier(8)

    def reply(number: int) -> list[int]:
        gate.wait()
        return _reply(engine, number)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(reply, range(8))) == alone
    assert scheduler.rows == 2 * steps
    assert scheduler.steps - steps < steps / 2, "more than two rows a step"


@needs_library
def test_who_leaves_in_the_middle_stops_nobody(tmp_path: Path) -> None:
    engine = _packed(tmp_path)
    alone = [_reply(engine, number) for number in range(4)]
    left = engine.generate(engine.new_cache(200), IDS[:9], max_tokens=TOKENS)
    assert [next(left) for _ in range(3)]  # never gone on with

    def reply(number: int) -> list[int]:
        if number % 2:
            return _reply(engine, number)
        tokens = engine.generate(engine.new_cache(200), IDS[: 20 + number], max_tokens=TOKENS)
        begun = [next(tokens) for _ in range(5)]
        tokens.close()  # type: ignore[attr-defined]
        return begun

    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(reply, range(4)))
    assert replies == [alone[0][:5], alone[1], alone[2][:5], alone[3]]
    left.close()  # type: ignore[attr-defined]


@needs_library
def test_a_full_cache_fails_by_itself(tmp_path: Path) -> None:
    engine = _packed(tmp_path)
    alone, gate = _reply(engine, 1), threading.Barrier(2)

    def full() -> str:
        gate.wait()
        try:
            list(engine.generate(engine.new_cache(30), IDS[:20], max_tokens=TOKENS))
        except ValueError as error:
            return str(error)
        return ""

    def other() -> list[int]:
        gate.wait()
        return _reply(engine, 1)

    with ThreadPoolExecutor(2) as pool:
        failed, reply = pool.submit(full), pool.submit(other)
        assert "do not fit" in failed.result() and reply.result() == alone


def test_where_rows_differ_among_others_each_step_is_a_pass() -> None:
    """Dense products of several rows add in another order than those of one."""
    engine = tiny_engine()
    alone = [_reply(engine, number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda number: _reply(engine, number), range(4))) == alone
    assert engine.scheduler.rows == engine.scheduler.steps


def test_passes_come_in_the_order_of_their_coming() -> None:
    """Whoever holds the model for long does not get it again before those who wait."""
    check_fork()
    scheduler, order = tiny_engine().scheduler, list[int]()
    waiting = [threading.Event() for _ in range(3)]

    def enter(number: int) -> None:
        waiting[number].set()
        with scheduler.alone():
            order.append(number)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(3)]
    with scheduler.alone():
        for count, thread in enumerate(threads, 1):
            thread.start()
            while len(scheduler._line) <= count:
                threading.Event().wait(0.001)
    with scheduler.alone():
        order.append(3)
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3]
