"""A short document is read whole by a writer that is not small, and kept: what it tells later counts, too."""

from __future__ import annotations

import pytest

from minimemo.ask import Answer, Writer, trust, writer
from minimemo.ask.trust import beside, probability
from tests.ask.fakes import EN_SCRIPT, ENGLISH, QUESTION, FakeEngine, FakeTokenizer, House, set_limits

SURE = {"zh": 0.0, "margin": 1.0, "stated": 1.0, "open": 0.0, "same": 1.0, "first": 0.9}
FITTED = trust._weights


class FullEngine(FakeEngine):
    """One that counts what it reads ahead of a question."""

    def extend(self, cache, ids):
        self.begun = [*getattr(self, "begun", ()), len(ids)]
        cache.extend(ids)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(writer, "SMALL", 0)
    return House(engine=FullEngine({"a short phrase copied": "the king of France", **EN_SCRIPT}))


def test_all_of_a_short_document_is_read_once_for_all_questions(house: House) -> None:
    first = house.session.ask(QUESTION)
    assert all(sentence.strip() in house.engine.weighed[-1] for sentence in ENGLISH)
    assert first.text == "the king of France" and {"same", "first"} < first.signals.keys() and not first.clues
    assert [p.text for p in first.passages if p.cited] == [p.text for p in first.passages] == [ENGLISH[1]]
    again = house.session.ask(QUESTION)
    assert again == first and len(house.engine.begun) == 1, "the document stays in its cache"
    house.session.ask("Who was found guilty of the plague in Paris?")
    assert len(house.engine.begun) == 1


def test_an_answer_that_no_passage_holds_is_shown_with_what_was_retrieved(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_limits(monkeypatch, REFUSED_ANEW=1.01)
    assert house.session.ask(QUESTION).guess is None, "the passages give an answer"
    set_limits(monkeypatch, REFUSED=1.01)
    answer = house.session.ask(QUESTION)
    assert answer.guess == "the king of France" and answer.passages and not any(p.cited for p in answer.passages)


@pytest.mark.parametrize("why", ["long", "small", "rag", "yes or no"])
def test_other_questions_are_answered_from_passages(why: str, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    question, mode = QUESTION, "memorag"
    if why == "long":
        set_limits(monkeypatch, WHOLE_TOKENS=len("".join(ENGLISH)) - 1)
    elif why == "small":
        monkeypatch.setattr(writer, "SMALL", 10**9)
    elif why == "rag":
        mode = "rag"
    else:
        question = "Is the king of France told of a heaven?"
    assert "same" not in house.session.ask(question, mode).signals
    assert not hasattr(house.engine, "begun")


def test_a_document_of_the_longest_size_is_read_whole(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = len("[10] " + "\n".join(ENGLISH).strip() + "\n\n")
    set_limits(monkeypatch, WHOLE_TOKENS=taken)
    assert "same" in house.session.ask(QUESTION).signals


def test_a_kept_cache_that_somebody_has_or_that_is_too_short_is_not_given_again() -> None:
    engine = FullEngine({})
    made = Writer(engine, FakeTokenizer())
    begun = [1, 2, 3]
    first, second = made._lent(begun, 10), made._lent(begun, 10)
    assert first is not second and first.ids == second.ids == begun
    made._keep(begun, first)
    assert made._lent([1, 2], 10) is not first
    made._keep(begun, first)
    assert made._lent(begun, first.capacity + 1) is not first
    made._keep(begun, first)
    assert made._lent(begun, 10) is first


def test_an_answer_that_passages_give_as_well_is_likelier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_weights", FITTED)
    assert probability(SURE) > probability({**SURE, "same": 0.0}) > probability({**SURE, "same": 0.0, "first": 0.1})
    house = House()
    given = house.session.ask(QUESTION, "rag")
    assert beside("King of France.", given) == {"same": 1.0, "first": given.confidence}
    assert beside("the queen", given)["same"] == 0.0
    refused = Answer.from_dict({**given.to_dict(), "guess": "Not found", "signals": {"refused": 1.0}})
    assert beside("Not found", refused) == {"same": 0.0, "first": 1 - given.confidence}
