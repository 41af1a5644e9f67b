"""Of two short answers, from passages and from memory, the one that both find likelier."""

from __future__ import annotations

from typing import Any

import pytest

from minimemo.ask import Piece, Writer, session
from tests.ask.fakes import EN_SCRIPT, QUESTION, FakeEngine, FakeTokenizer, House, set_limits

MEMORY = "phrase or explanation asked for"  # of the prompt for an answer from memory
QUEEN, KING = "the queen of Spain", "the king of France"
SCRIPT = {MEMORY: QUEEN, **EN_SCRIPT}


@pytest.mark.parametrize(("likely", "text"), [([QUEEN], QUEEN), ([KING], KING), ([], KING)])
def test_the_likelier_answer_is_given(likely: list[str], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its words leave open which of the two is right: here they tell for what the passages hold."""
    values = {KING: 0.5, QUEEN: 0.6}
    monkeypatch.setattr(session, "signals", lambda _asked, text, *_: {"of": values[text]})
    monkeypatch.setattr(session, "probability", lambda values, _small: values["of"])
    house = House(engine=FakeEngine(SCRIPT, likely=likely))
    *steps, answer = house.session.stream(QUESTION)
    assert answer.text == text and answer.passages
    assert "".join(step.text for step in steps if isinstance(step, Piece)) == text
    assert house.untouched() and answer.timings["weigh"] >= 0
    written = [prompt for prompt in house.engine.prompts if "Write only the answer" in prompt]
    assert written and {*written} < {*house.engine.weighed}, "an answer is weighed behind the prompt that it answers"


@pytest.mark.parametrize("recalled", [KING, "", "King of France.", "France"])
def test_one_answer_needs_no_weighing(recalled: str) -> None:
    """Nor does the memory's where it is a part of the other: the shorter of two is likelier whatever is right."""
    house = House(script={MEMORY: recalled, **EN_SCRIPT})
    compared: list[list[str]] = []
    likelihoods = house.engine.likelihoods

    def noted(cache: Any, ids: Any, replies: Any, stop: Any) -> Any:
        compared.append([FakeTokenizer().decode(reply) for reply in replies])
        return likelihoods(cache, ids, replies, stop)

    house.engine.likelihoods = noted
    assert house.session.ask(QUESTION).text == KING
    assert [KING, recalled] not in compared and [recalled, KING] not in compared


def test_a_long_answer_streams_and_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, AGREED_TOKENS=5)
    house = House(engine=FakeEngine(SCRIPT, likely=[QUEEN]))
    answer = house.session.ask(QUESTION)
    assert answer.text == KING
    assert not any(MEMORY in prompt for prompt in house.engine.prompts), "the memory is not asked"


def test_only_memorag_with_the_models_own_answers() -> None:
    house = House(engine=FakeEngine(SCRIPT, likely=[QUEEN]))
    assert house.session.ask(QUESTION, "rag").text == KING
    assert house.session.answer(QUESTION, ["It was for the king of France."]).text == KING
    foreign = House(engine=house.engine, generator=Writer(FakeEngine(SCRIPT), FakeTokenizer()))
    assert foreign.session.ask(QUESTION).text == KING
