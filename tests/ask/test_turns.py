"""Several threads ask one session: each gets the answer that it would get alone."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from minimemo import threads
from minimemo.ask import Answer, Mode, Piece, session
from minimemo.errors import InputError, MinimemoError
from tests.ask.fakes import EN_SCRIPT, QUESTION, FakeEngine, House, set_limits
from tests.ask.test_session_views import FACTS, LONG

SCRIPT = {FACTS[0]: "nine men in winter", FACTS[1]: "the king of France", "Describe": "Sheep and a king.", **EN_SCRIPT}
ASKED = [f"What of this: {FACTS[0]}", f"What of this: {FACTS[1]}", "Describe the sheep."]


class SlowEngine(FakeEngine):
    """Lets other threads run between two tokens."""

    def generate(self, *args: Any, **options: Any) -> Any:
        for token in super().generate(*args, **options):
            time.sleep(0.001)
            yield token


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """What each returns, or the error that it raised; none of them may hang."""
    results: list[Any] = [None] * len(works)

    def run(number: int) -> None:
        try:
            results[number] = works[number]()
        except MinimemoError as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread waits for a turn that does not come"
    return results


def parts_of(answer: Any) -> tuple[Any, ...]:
    assert isinstance(answer, Answer), answer
    return answer.text, answer.clues, answer.passages, answer.supported, answer.prefilled_tokens


@pytest.mark.parametrize("mode", ["memorag", "memory", "rag"])
def test_three_threads_get_what_each_gets_alone(mode: Mode) -> None:
    house = House(LONG, engine=SlowEngine(SCRIPT))
    alone = [parts_of(house.session.ask(asked, mode)) for asked in ASKED]
    works = [lambda asked=asked: house.session.ask(asked, mode) for asked in ASKED]
    streams = [lambda asked=asked: list(house.session.stream(asked, mode))[-1] for asked in ASKED]
    assert [parts_of(answer) for answer in in_threads(*works, *streams)] == [*alone, *alone]
    assert mode == "rag" or house.untouched()


def test_other_verbs_wait_for_a_stream_that_is_read() -> None:
    house = House(engine=SlowEngine(SCRIPT))
    clues, summary = house.session.recall(QUESTION), house.session.summarize().text
    answer, recalled, told = in_threads(
        lambda: list(house.session.stream(QUESTION, "memory"))[-1],
        lambda: house.session.recall(QUESTION),
        house.session.summarize,
    )
    assert answer.text == "the king of France" and recalled == clues and told.text == summary


def test_a_stream_left_half_read_makes_way_for_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """After LEFT seconds where all places are taken; it can be gone on with, as its cache is its own."""
    monkeypatch.setattr(threads, "LEFT", 0.2)
    monkeypatch.setattr(session, "READERS", 1)
    house = House()
    left = house.session.stream(QUESTION, "memory")
    pieces = [next(left), next(left)]
    (answer,) = in_threads(lambda: house.session.ask(QUESTION, "memory"))
    assert answer.text == "the king of France"
    *pieces, last = [*pieces, *left]
    assert isinstance(last, Answer) and last.text == answer.text
    assert house.untouched()


def test_a_view_that_another_question_has_is_loaded_beside_it() -> None:
    """And both are kept for later questions."""
    house = House()
    left = house.session.stream(QUESTION, "memory")
    next(left), next(left)
    (answer,) = in_threads(lambda: house.session.ask(QUESTION, "memory"))
    assert house.loads == 2 and list(left)[-1].text == answer.text  # type: ignore[union-attr]
    for _ in range(3):
        assert house.session.ask(QUESTION, "memory").text == answer.text
    assert house.loads == 2


def test_views_are_kept_within_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one whatever its size."""
    set_limits(monkeypatch, VIEW_BYTES=10)
    house = House()
    for _ in range(2):
        house.session.ask(QUESTION, "memory")
    assert house.loads == 1
    assert len(house.session._memory._idle) == 1


@pytest.mark.parametrize("end", ["closed", "forgotten"])
def test_a_stream_that_is_closed_or_forgotten_makes_way_at_once(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "LEFT", 1000.0)
    monkeypatch.setattr(session, "READERS", 1)
    house = House()
    held = [house.session.stream(QUESTION, "memory")]
    next(held[0]), next(held[0])

    def let_go() -> None:
        time.sleep(0.1)
        if end == "closed":
            held[0].close()  # type: ignore[attr-defined]
        held.clear()
        gc.collect()

    _, answer = in_threads(let_go, lambda: house.session.ask(QUESTION, "memory"))
    assert answer.text == "the king of France" and house.untouched()


def test_a_failed_question_makes_way() -> None:
    house = House(script={"closed": RuntimeError("broken"), **EN_SCRIPT})
    house.engine.script = {"Question:": RuntimeError("broken")}
    with pytest.raises(RuntimeError):
        house.session.ask(QUESTION, "closed")
    house.engine.script = EN_SCRIPT
    (answer,) = in_threads(lambda: house.session.ask(QUESTION, "closed"))
    assert answer.text == "a king"


def test_a_whole_answer_makes_way_though_its_stream_is_kept() -> None:
    house = House()
    stream = house.session.stream(QUESTION, "memory")
    while not isinstance(step := next(stream), Answer):
        assert not isinstance(step, Answer)
    (answer,) = in_threads(lambda: house.session.ask(QUESTION, "memory"))
    assert answer.text == step.text


def test_two_streams_of_one_thread_that_need_no_memory_may_be_read_in_turns() -> None:
    house = House()
    first, second = (house.session.stream(QUESTION, "rag") for _ in range(2))
    pairs = list(zip(first, second, strict=True))
    assert pairs[-1][0].text == pairs[-1][1].text == "the king of France"  # type: ignore[union-attr]
    assert all(isinstance(step, Piece) for step, _ in pairs[1:-1])


def test_a_question_within_a_listener_is_refused() -> None:
    """Its turn would never come."""
    house = House()
    session = house.session

    def listener(event: Any) -> None:
        session.recall(QUESTION)

    session._on_event = listener
    with pytest.raises(InputError, match="within another one's event"):
        session.ask(QUESTION)
    session._on_event = house.events.append
    assert session.ask(QUESTION).text == "the king of France"
