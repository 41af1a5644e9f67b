"""A short document is read whole by a writer that is not small, and kept: what it tells later counts, too."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import minimemo
from minimemo.ask import PROMPTS, Answer, Writer, trust, writer
from minimemo.ask.trust import beside, probability
from tests.ask.fakes import EN_SCRIPT, ENGLISH, QUESTION, FakeEngine, FakeTokenizer, House, set_limits
from tests.conftest import TinyModels

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


def test_an_answer_that_is_hardly_right_is_not_given(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its passages do not say it either, it has to be likelier."""
    set_limits(monkeypatch, REFUSED_ANEW=1.01)
    assert house.session.ask(QUESTION).guess is None, "the passages give an answer"
    set_limits(monkeypatch, REFUSED=1.01)
    answer = house.session.ask(QUESTION)
    assert answer.guess == "the king of France" and answer.passages and not any(p.cited for p in answer.passages)


SIGNED = ("Ann Bell lives in Oslo. ", "Ann Bell likes tea. ", "The lease was signed by Ann Bell. ", "She left in May. ")


@pytest.mark.parametrize(
    ("question", "answer", "cited", "shown"),
    [
        ("Who signed the lease?", "Ann Bell", [2], [2]),  # that was retrieved, and holds as much as any
        ("When did she leave?", "May", [3], [3]),
        ("Who signed the lease?", "the tenant who drinks much tea daily", [], None),  # none holds half of it
    ],
)
def test_the_passages_that_hold_an_answer_are_its_sources(
    question: str, answer: str, cited: list[int], shown: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SMALL", 0)
    house = House(SIGNED, engine=FullEngine({"a short phrase copied": answer, **EN_SCRIPT}))
    monkeypatch.setattr(house.retriever, "retrieve", lambda *_, **__: [house.retriever._one(SIGNED[2], 1)])
    told = house.session.ask(question)
    assert told.text == answer
    if shown is not None:
        assert [p.text for p in told.passages if p.cited] == [SIGNED[n] for n in cited]
    else:
        assert [p.text for p in told.passages] == [SIGNED[2]]


@pytest.mark.parametrize(
    "template",
    [
        "Read.\n{passages}\n{not_found} {question}\nAnswer:",
        "Never write {{passages}}.\n{passages} {question} {not_found}",
        "{not_found} {question} {passages}",
    ],
)
def test_own_prompts_may_begin_otherwise(template: str, house: House) -> None:
    house.session._prompts = {**PROMPTS, "en": dataclasses.replace(PROMPTS["en"], answer=template)}
    house.engine.script = {"": "the king of France"}
    for _ in range(2):
        assert house.session.ask(QUESTION).text == "the king of France"


def test_a_document_whose_prompt_does_not_fit_is_answered_from_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SMALL", 0)
    rows = "".join(f"K{n},{'long cell ' * 12}{n}\n" for n in range(5))
    for context, whole in ((5000, True), (1080, False)):
        house = House(("Item,Text\n" + rows,), engine=FullEngine({"": "cell"}, context))
        signals = house.session.ask("What is the text of K3?", max_tokens=16).signals
        assert ("same" in signals) == whole


def test_a_kept_document_gives_the_same_bits(
    tiny_models: TinyModels, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SMALL", 0)
    home.mkdir()
    (home / "doc.txt").write_text(3 * "".join(ENGLISH))
    memo = minimemo.build(home / "doc.txt", memory="int4", **tiny_models.both)
    session, asked = memo.session(), [QUESTION, "Who found the fleas of rats guilty?", "What blamed the heavens?"]
    fresh = []
    for question in asked:
        session._writer._kept = [], None
        fresh.append(session.ask(question, max_tokens=12))
    kept = [session.ask(question, max_tokens=12) for question in asked]
    assert all("same" in answer.signals for answer in fresh)
    assert kept == fresh and kept[1].prefilled_tokens < fresh[1].prefilled_tokens


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
    assert beside("Ann Bell", dataclasses.replace(given, text="He"))["same"] == 0.0
    refused = Answer.from_dict({**given.to_dict(), "guess": "Not found", "signals": {"refused": 1.0}})
    assert beside("Not found", refused) == {"same": 0.0, "first": 1 - given.confidence}
