"""The loop over memories that a question does not get whole: what it stands behind, how a walk goes through all."""

from __future__ import annotations

from typing import Any

import pytest

from minimemo.ask import Answer, Piece, Writer, memory, memory_opening
from minimemo.memory.view import MemoryView
from tests.ask.fakes import EN_SCRIPT, FakeEngine, FakeTokenizer, House, set_limits

FACTS = ["The report was written for the king of France.", "The harbour was dug by nine men in winter."]
FILLER = tuple(f"Sheep number {n} ate the grass of field {n * 3} again. " for n in range(80))
LONG = (*FILLER[:30], FACTS[0] + " ", *FILLER[30:70], FACTS[1] + " ", *FILLER[70:])
SMALL = {
    "CLUE_VIEW_TOKENS": 500,
    "VIEW_TOKENS": 500,
    "ANSWER_VIEW_TOKENS": 500,
    "VIEW_HITS": 1,
    "WALK_VIEW_TOKENS": 500,
    "WALK_VIEWS": 6,
    "CLUE_TOKENS": 60,
    "WALK_TOKENS": 60,
    "PART_TOKENS": 50,
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, **SMALL)


def long_house(script: Any = EN_SCRIPT, **options: Any) -> House:
    return House(LONG, script, **options)


def shown(house: House, view: MemoryView) -> str:
    """The text of a view, its opening first."""
    ids = [house.ids[part.block] for part in view.parts]
    return str(house.tokenizer.decode(ids))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("mode", ["memory", "memorag"])
@pytest.mark.parametrize("fact", FACTS)
def test_a_question_stands_behind_the_opening_and_the_blocks_it_leads_to(mode: str, fact: str) -> None:
    house = long_house()
    house.session.ask(f"What of this: {fact}", mode)
    (view,) = house.memory.views
    assert fact in shown(house, view)
    assert view.tokens <= SMALL["CLUE_VIEW_TOKENS"]
    opening = memory_opening("en").ids(house.tokenizer)
    assert house.memory.cache.ids[: len(opening)] == opening
    assert [part.block for part in view.parts] == sorted(part.block for part in view.parts)
    assert house.untouched()


@pytest.mark.usefixtures("small")
def test_the_same_blocks_are_loaded_once_and_kept_beside_others() -> None:
    house = long_house()
    for fact in (FACTS[0], FACTS[0], FACTS[1], FACTS[0]):
        house.session.ask(f"What of this: {fact}", "memory")
    shows = [fact in shown(house, view) for view, fact in zip(house.memory.views, FACTS[:2], strict=True)]
    assert shows == [True, True]


def test_a_small_memory_is_taken_whole_and_the_context_decides_too(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, CLUE_TOKENS=60)
    house = long_house()
    assert len(house.ids) > memory.CLUE_VIEW_TOKENS
    house.session.ask("Who dug the harbour?", "memory")
    assert house.memory.views[0].tokens < len(house.ids)
    set_limits(monkeypatch, CLUE_VIEW_TOKENS=10_000, ANSWER_VIEW_TOKENS=10_000)
    short = House()
    short.session.ask("Who was the report for?", "memory")
    assert short.memory.views[0].tokens == len(short.ids)  # a view may hold all there is
    narrow = long_house(context=1500)
    narrow.session.ask("Who dug the harbour?", "memory", max_tokens=50)
    assert 800 < narrow.memory.views[0].tokens < 1450


def test_neighbours_come_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake's blocks are tokens: a budget that holds more than the passage holds what is near."""
    set_limits(monkeypatch, CLUE_VIEW_TOKENS=400, ANSWER_VIEW_TOKENS=400, VIEW_HITS=1, CLUE_TOKENS=60)
    near = long_house()
    near.session.ask(f"What of this: {FACTS[1]}", "memory")
    at = near.document.index(FACTS[1])
    blocks = {part.block for part in near.memory.views[0].parts}
    opening = len(memory_opening("en").ids(near.tokenizer))
    assert set(range(opening + at - 1, opening + at + len(FACTS[1]) + 1)) <= blocks


def test_a_paragraph_gets_a_smaller_view_than_clues_and_may_copy_it(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, CLUE_VIEW_TOKENS=900, VIEW_TOKENS=600, ANSWER_VIEW_TOKENS=300, CLUE_TOKENS=60)
    house = long_house()
    house.session.ask(f"Explain in detail: {FACTS[0]}", "memory", max_tokens=50)
    (view,) = house.memory.views
    assert 300 < view.tokens <= 600
    assert house.engine.sources[0] == house.memory.ids(view)


@pytest.mark.usefixtures("small")
def test_an_interrupted_stream_goes_on_over_its_own_view() -> None:
    house = long_house()
    alone = house.session.ask(f"What of this: {FACTS[0]}", "memory").text
    first = house.session.stream(f"What of this: {FACTS[0]}", "memory")
    next(first), next(first)
    list(house.session.stream(f"What of this: {FACTS[1]}", "memory"))
    *_, answer = first
    assert isinstance(answer, Answer) and answer.text == alone
    assert house.untouched()


SHEEP = {**EN_SCRIPT, "What happens, or is discussed": "Sheep ate the grass. And"}


@pytest.mark.usefixtures("small")
def test_a_summary_walks_through_all_of_a_long_memory() -> None:
    house = long_house(script=SHEEP)
    answer = house.session.summarize()
    seen = "".join(shown(house, view) for view in house.memory.views)
    assert len(house.memory.views) == 6 and all(
        view.tokens <= 2 * SMALL["WALK_VIEW_TOKENS"] for view in house.memory.views
    )
    assert LONG[0].strip() in seen and LONG[-1].strip() in seen
    assert answer.clues and {clue.kind for clue in answer.clues} == {"point"} and answer.passages
    walked = [(e.done, e.total) for e in house.events if e.stage == "walk"]
    assert walked == [(done, 6) for done in range(7)]
    assert len(house.engine.prompts) == 7


def test_a_short_memory_is_told_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    house = long_house(script=SHEEP)
    assert house.session.summarize().text == "\n\n".join(["Sheep ate the grass."] * len(house.memory.views))
    assert len(house.memory.views) in (4, 5)
    set_limits(monkeypatch, SHORT_PARTS=1, WALK_VIEW_TOKENS=9000)
    once = long_house(script=SHEEP)
    assert once.session.summarize().text == "Sheep ate the grass." and len(once.memory.views) == 1


def test_what_the_document_does_not_name_is_left_out_of_its_summary() -> None:
    invented = {"What happens, or is discussed": "Sheep ate the grass. They came from the United States. And so"}
    house = long_house(script=invented)
    assert set(house.session.summarize().text.split("\n\n")) == {"Sheep ate the grass."}
    house = long_house(script={"What happens, or is discussed": "The sheep fell to Emperor Napoleon."})
    answer = house.session.summarize()
    assert "Napoleon" not in answer.text and answer.passages, "composed of passages where memory tells nothing"


@pytest.mark.usefixtures("small")
def test_parts_that_do_not_fit_are_thinned_out() -> None:
    other = Writer(FakeEngine(EN_SCRIPT, max_context=620), FakeTokenizer())
    told = "Sheep ate the grass until the evening. The grass of the hills was all eaten up. And"
    house = long_house(script={"What happens, or is discussed": told}, generator=other)
    answer = house.session.summarize(max_tokens=200)
    assert answer.text == EN_SCRIPT["summary of the whole document"] and answer.prompt_tokens + 200 <= 620
    assert len(house.engine.prompts) == 6 and other.engine.prompts[-1].count("- Sheep ate the grass") == 3


def test_every_token_is_walked_where_the_views_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, WALK_VIEW_TOKENS=700, WALK_VIEWS=20, CLUE_TOKENS=60, WALK_TOKENS=60)
    house = long_house()
    house.session.summarize()
    blocks = {part.block for view in house.memory.views for part in view.parts}
    assert blocks == set(range(len(house.ids)))


@pytest.mark.usefixtures("small")
def test_an_interrupted_walk_goes_on_where_it_stopped() -> None:
    house = long_house()
    prompts = house.engine.prompts

    def stop_at_third(event: Any) -> None:
        if event.stage == "walk" and event.done == 2:
            raise KeyboardInterrupt

    house.session._on_event = stop_at_third
    with pytest.raises(KeyboardInterrupt):
        house.session.summarize()
    assert len(prompts) == 2
    house.session._on_event = house.events.append
    house.session.summarize()
    assert len(prompts) == 7


@pytest.mark.usefixtures("small")
def test_gist_asks_every_part_about_the_question() -> None:
    house = long_house(script={"document as a whole": "Sheep and a king.", **EN_SCRIPT})
    *steps, answer = house.session.stream("What happens to sheep and men?", "gist")
    assert answer.text == "Sheep and a king." and answer.mode == "gist" and answer.clues
    assert "".join(step.text for step in steps if isinstance(step, Piece)) == answer.text
    assert len(house.memory.views) == 6
    assert all("What happens to sheep and men?" in prompt for prompt in house.engine.prompts)
    assert house.retriever.queries[-1][0] == "What happens to sheep and men?"
