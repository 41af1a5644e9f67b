"""The loop, with a scripted engine: what is asked of memory, what is searched, what is shown, what comes back.

Several tests hold a defect of the system that the loop follows: each says which.
"""

import json
import subprocess
import sys

import pytest

from minimemo.ask import PROMPTS, Answer, Found, Passage, Piece, Writer
from minimemo.ask.evidence import placed
from minimemo.ask.polarity import telling
from minimemo.ask.question import memory_room
from minimemo.ask.trust import OPEN
from minimemo.errors import InputError
from minimemo.text.document import Place
from minimemo.text.figures import Figured
from tests.ask.fakes import (
    CHINESE,
    EN_SCRIPT,
    ENGLISH,
    QUESTION,
    ZH_QUESTION,
    ZH_SCRIPT,
    FakeEngine,
    FakeTokenizer,
    House,
    chinese_house,
    set_limits,
)


def test_a_draft_searches_and_is_not_shown():
    """Small models copy one that they are shown: in Chinese it cost the 0.5B model 13.7 points of F1."""
    house = House(script={**EN_SCRIPT, "Short answer:": "It was for the Emperor of Brazil."})
    answer = house.session.ask(QUESTION)
    assert answer.draft == "It was for the Emperor of Brazil." and answer.text == "the king of France"
    assert house.retriever.queries[-1][-1] == f"{QUESTION} {answer.draft}"
    assert "Brazil" not in house.engine.prompts[-1]


def test_memorag_walks_from_clues_to_an_answer_with_sources():
    house = House()
    answer = house.session.ask(QUESTION)
    assert answer.text == "the king of France"
    assert (answer.mode, answer.language, answer.question) == ("memorag", "en", QUESTION)
    assert [clue.kind for clue in answer.clues] == ["recall", "rewrite", "rewrite", "draft"]
    assert answer.draft == "The king who ruled France from Paris."
    assert answer.supported
    assert [house.document[p.start : p.end] for p in answer.passages] == [p.text for p in answer.passages]
    assert [p.text for p in answer.passages if p.cited] == [ENGLISH[1]]
    assert len(house.engine.batches) == 1 and len(house.engine.batches[0]) == 3  # recall, rewrite, draft together


def test_a_cited_passage_has_the_page_of_what_is_cited():
    """A passage may begin on the page before, and so may its sentence: "[p. 1]" was shown beside what stands on 2."""
    house = House()
    house.session._evidence._place_of = lambda _document, at: Place(at, page=at)
    for passage in house.session.ask(QUESTION).passages:
        stands = house.document.find("the king of France", *passage.span) if passage.span else passage.start
        assert passage.page == stands
    begins = Passage(10, 56, "Of the ships nothing is told. The mill\nburned.", 1.0, span=(40, 56))
    page_of = lambda _document, at: Place(at, page=1 + (at >= 40) + (at >= 44))  # noqa: E731
    assert [placed(begins, page_of, answer).page for answer in ("", "ships", "Mill burned.")] == [2, 2, 3]


def test_the_question_is_always_searched_and_searched_first():
    house = House()
    answer = house.session.ask(QUESTION)
    first, queries = house.retriever.queries
    assert first == [QUESTION] and queries[0] == QUESTION
    assert queries[1 : 1 + 3] == [clue.text for clue in answer.clues[:3]]
    assert queries[4] == f"{QUESTION} {answer.draft}"
    silent = House(
        script={
            "Passages:": "the king of France",
            "document above": "",
            "Three short questions": "",
            "Short answer:": "",
        }
    )
    assert silent.session.ask(QUESTION).clues == ()
    assert silent.retriever.queries == [[QUESTION], [QUESTION]]


@pytest.mark.parametrize(
    ("question", "regions"),
    [(QUESTION, False), ("Describe the report of the doctors.", True), ("Summarize the document.", False)],
)
@pytest.mark.parametrize("mode", ["memorag", "rag"])
def test_a_paragraph_searches_for_regions_a_phrase_and_the_points_of_a_summary_for_places(question, regions, mode):
    house = House()
    house.session.ask(question, mode)
    regions = regions or (mode == "rag" and "Summarize" in question)  # there it is a question as any other
    assert regions in house.retriever.regions and len(set(house.retriever.regions)) == 1


def test_a_paragraph_is_told_by_memory_in_english_and_by_the_passages_of_the_question_in_chinese():
    house = chinese_house()
    memorag, rag = (house.session.ask("关于“医生的报告”，讨论了哪些内容？", mode) for mode in ("memorag", "rag"))
    asked = house.engine.prompts
    assert len(asked) == 2 and asked[0] == asked[1] and "段落：" in asked[0]
    assert memorag.clues == () and memorag.passages == rag.passages and memorag.text == rag.text
    house = House()
    told = house.session.ask("Describe the report of the doctors.")
    assert told.passages and told.clues == () and "Passages:" not in house.engine.prompts[-1]


def test_chinese_clues_reach_the_search():
    """Defect: clues were kept when they had more than three words between spaces, so no Chinese one ever was."""
    house = chinese_house()
    answer = house.session.ask(ZH_QUESTION)
    assert [clue.kind for clue in answer.clues] == ["recall", "recall", "rewrite", "rewrite", "draft"]
    assert house.retriever.queries[1][1] == "医生们为法国国王写了一份医疗报告。"
    assert answer.text == "法国国王" and answer.language == "zh" and answer.confidence > OPEN
    assert [p.text for p in answer.passages if p.cited] == [CHINESE[1]]


def test_passages_come_once_in_document_order_with_their_scores(monkeypatch):
    """Defects: duplicates were shown twice, scores thrown away."""
    set_limits(monkeypatch, STAND_OUT=0)
    answer = House().session.ask(QUESTION)
    starts = [p.start for p in answer.passages]
    assert starts == sorted(set(starts)) and len(starts) >= 3
    assert all(p.score > 0 and p.sources == ("embedding", "lexical") for p in answer.passages)
    assert "question" in answer.passages[starts.index(len(ENGLISH[0]))].found_by


@pytest.mark.parametrize("budget", [30, 90, 200, 1500])
def test_evidence_stays_within_its_budget(budget, monkeypatch):
    """Defect: evidence could pass 30,000 tokens unchecked."""
    set_limits(monkeypatch, EVIDENCE_TOKENS=budget)
    house = House(script={**EN_SCRIPT, "Short answer:": ""})
    answer = house.session.ask(QUESTION)
    shown = house.engine.prompts[0].split("Passages:\n\n")[1].split("\n\nAnswer the question")[0]
    assert 0 < len(shown) <= budget
    assert 1 <= len(answer.passages) <= len(ENGLISH)


@pytest.mark.parametrize("mode", ["memorag", "rag"])
def test_the_prompt_and_the_answer_fit_the_context(mode, monkeypatch):
    """The fake engine refuses a prompt past the context; a long evidence budget must not lead there."""
    sentences = tuple(f"Report {n} on the king was written by doctor number {n}. " * 3 for n in range(20))
    set_limits(monkeypatch, EVIDENCE_TOKENS=100_000, QUESTION_HITS=20)
    house = House(sentences, context=4700)
    answer = house.session.ask(QUESTION, mode, max_tokens=1000)
    assert answer.prompt_tokens + 1000 <= 4700
    assert answer.passages


def test_the_memory_is_never_copied_nor_changed(monkeypatch):
    """Defect: every question deep-copied the whole cache. Here the same cache serves all, and keeps its length."""
    set_limits(monkeypatch, ROOM_TOKENS=3000)
    house = House()
    for mode in ("memorag", "memory", "memorag"):
        house.session.ask(QUESTION, mode)
        assert house.untouched()
    house.session.summarize()
    assert house.untouched()
    assert house.loads == 1


def test_modes_without_memory_do_not_load_it():
    house = House()
    rag = house.session.ask(QUESTION, "rag")
    closed = house.session.ask(QUESTION, "closed")
    assert house.loads == 0 and house.engine.batches == []
    assert rag.clues == () and rag.draft == "" and rag.passages and rag.supported
    assert closed.passages == () and not closed.supported
    assert closed.text == "a king"
    assert house.retriever.queries == [[QUESTION]]


def test_memory_mode_asks_the_memory_alone():
    house = House()
    answer = house.session.ask(QUESTION, "memory")
    assert answer.text == "the king of France"
    assert house.retriever.queries == [] and answer.passages == () and not answer.supported
    assert house.engine.prompts[-1].startswith("\n\n---\nAnswer the question from the document above")


def test_no_ask_prefills_the_document():
    """A memory that is restored and then computed again would be no memory."""
    house = House()
    answer = house.session.ask(QUESTION)
    rows = sum(len(house.tokenizer.encode(row)) + 1 for row in house.engine.batches[0])
    assert answer.prefilled_tokens - rows < 6 * answer.prompt_tokens, "prompts with passages, and checks of them"
    assert all(house.document not in prompt for prompt in house.engine.prompts)
    answer = house.session.ask(QUESTION, "memory")
    assert answer.prefilled_tokens == answer.prompt_tokens
    assert answer.generated_tokens == len("the king of France")


def test_one_engine_serves_many_documents():
    """Defect: memorizing a second document wiped the first."""
    engine = FakeEngine({**EN_SCRIPT, **ZH_SCRIPT})
    house, other = House(engine=engine), chinese_house(engine=engine)
    for _ in range(2):
        assert house.session.ask(QUESTION, "memory").text == "the king of France"
        assert other.session.ask(ZH_QUESTION, "memory").text == "法国国王"
    assert house.untouched() and other.untouched()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")])
@pytest.mark.parametrize("mode", ["memory", "memorag"])
def test_an_interrupted_question_leaves_the_memory_whole(error, mode):
    house = House()
    house.engine.script = {"document above": error}
    with pytest.raises(type(error)):
        house.session.ask(QUESTION, mode)
    assert house.untouched()
    house.engine.script = EN_SCRIPT
    assert house.session.ask(QUESTION, mode).text == "the king of France"


def test_an_interrupt_between_two_tokens_leaves_the_memory_whole():
    house = House()
    stream = house.session.stream(QUESTION, "memory")
    assert next(stream) == Found()
    next(stream), next(stream)
    assert not house.untouched()
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt())
    assert house.untouched()


def test_a_closed_or_forgotten_stream_gives_the_memory_back():
    house = House()
    stream = house.session.stream(QUESTION, "memory")
    next(stream), next(stream)
    stream.close()
    assert house.untouched()
    stream = house.session.stream(QUESTION, "memory")
    next(stream), next(stream)
    del stream
    assert house.untouched()


def test_two_streams_of_one_thread_have_caches_of_their_own():
    """Over one cache they would mix their tokens."""
    house = House()
    first, second = (house.session.stream(QUESTION, "memory") for _ in range(2))
    pairs = list(zip(first, second, strict=True))
    assert [answer.text for answer in pairs[-1]] == ["the king of France"] * 2
    assert house.untouched()


@pytest.mark.parametrize("mode", ["memorag", "rag", "memory", "closed"])
def test_stream_gives_what_ask_gives(mode):
    found, *pieces, answer = House().session.stream(QUESTION, mode)
    assert isinstance(found, Found) and isinstance(answer, Answer)
    assert all(isinstance(piece, Piece) for piece in pieces)
    assert "".join(piece.text for piece in pieces) == answer.text
    assert found.clues == answer.clues and found.draft == answer.draft
    assert [p.start for p in found.passages] == [p.start for p in answer.passages]
    again = House().session.ask(QUESTION, mode)
    assert {**again.to_dict(), "timings": 0} == {**answer.to_dict(), "timings": 0}
    json.dumps(answer.to_dict())


def test_an_answer_tells_what_memory_was_read_of():
    house = House()
    assert house.session.ask(QUESTION, "rag").view == ()
    ((document, start, end), *_) = house.session.ask(QUESTION, "memory").view
    assert document == "" and 0 == start < end
    answer = house.session.ask(QUESTION, "memory")
    assert Answer.from_dict(json.loads(json.dumps(answer.to_dict()))) == answer


def test_white_space_around_an_answer_is_dropped_and_kept_inside():
    house = House(script={"Question:": " \n\n The king,\n\nof France.\n\n  "})
    *pieces, answer = house.session.stream(QUESTION, "closed")
    assert answer.text == "The king,\n\nof France."
    assert "".join(piece.text for piece in pieces[1:]) == answer.text


@pytest.mark.parametrize("question", ["", " \n\t", "?!", "。？", "\u200b"])
@pytest.mark.parametrize("mode", ["memorag", "closed"])
def test_an_empty_question_is_refused_before_anything_runs(question, mode):
    house = House()
    for ask in (house.session.ask, house.session.stream):
        with pytest.raises(InputError, match="question is empty"):
            ask(question, mode)
    assert house.loads == 0 and house.events == []


@pytest.mark.parametrize("mode", ["memorag", "rag", "memory", "closed"])
def test_a_question_of_100000_characters_is_refused_with_both_numbers(mode):
    house = House()
    with pytest.raises(InputError, match=r"question is 100000 tokens long, and at most 1024 fit"):
        house.session.ask("w" * 100_000, mode)
    assert house.loads == 0
    with pytest.raises(InputError, match="100000 tokens"):
        house.session.recall("为" * 100_000)


def test_a_small_context_lowers_the_limit():
    house = House(context=1500)
    with pytest.raises(InputError, match=r"question is 1000 tokens long, and at most \d{3} fit"):
        house.session.ask("w" * 1000, "rag")


def test_a_question_that_does_not_fit_behind_the_document_is_refused(monkeypatch):
    set_limits(monkeypatch, CLUE_TOKENS=300)
    house = House(context=500)
    with pytest.raises(InputError, match=r"its prompt and reply take \d+ tokens of a context of 500, and the document"):
        house.session.recall(QUESTION)
    assert house.loads == 0


def test_other_arguments_are_checked():
    session = House().session
    with pytest.raises(InputError, match="unknown mode 'graph': use memorag, rag, memory, closed"):
        session.ask(QUESTION, "graph")
    for tokens in (0, -1):
        with pytest.raises(InputError, match="at least 1"):
            session.ask(QUESTION, max_tokens=tokens)
        with pytest.raises(InputError, match="at least 1"):
            session.summarize(max_tokens=tokens)
    with pytest.raises(InputError, match=r"max_tokens is 6000, too many .* context of 6000"):
        session.ask(QUESTION, max_tokens=6000)
    with pytest.raises(InputError, match="too many"):
        session.summarize(max_tokens=6000)
    with pytest.raises(InputError, match=r"not valid Unicode text \(character 3\)"):
        session.ask("Who\udc80?")


def test_a_question_in_another_language_than_the_document():
    """Clues are asked for in the language they are to be found in, the answer in the language of the question."""
    house = chinese_house(engine=FakeEngine({**ZH_SCRIPT, **EN_SCRIPT}))
    answer = house.session.ask(QUESTION)
    recall, rewrite, draft = house.engine.batches[0]
    assert "的原句" in recall and "小问题" in rewrite and "Short answer:" in draft
    assert "Answer the question from the passages" in house.engine.prompts[0]
    assert answer.language == "en" and answer.clues


def test_single_verbs():
    session = House().session
    assert [clue.text for clue in session.recall(QUESTION)] == [
        "A report was written by the doctors for the king of France."
    ]
    assert [clue.kind for clue in session.rewrite(QUESTION)] == ["rewrite", "rewrite"]


def test_a_draft_that_says_nothing_is_no_draft():
    house = House(script={**EN_SCRIPT, "Short answer:": "Not found."})
    answer = house.session.ask(QUESTION)
    assert answer.draft == ""


def test_answer_from_given_evidence():
    house = House()
    evidence = ["It rained.", "The report was for the king of France."]
    answer = house.session.answer(QUESTION, evidence)
    assert answer.text == "the king of France" and answer.supported
    assert ["".join(evidence)[p.start : p.end] for p in answer.passages] == evidence
    assert [p.cited for p in answer.passages] == [False, True]
    assert house.loads == 0 and house.retriever.queries == []
    assert not house.session.answer(QUESTION, []).supported


def test_evidence_that_does_not_hold_the_answer_is_said():
    refusing = House(script={**EN_SCRIPT, "Answer the question from the passages": "Not found."})
    assert not refusing.session.ask(QUESTION).supported
    inventing = House(script={**EN_SCRIPT, "Answer the question from the passages": "Napoleon Bonaparte"})
    inventing.engine.likelihoods = lambda cache, ids, replies, stop: [-9.0, -1.0]
    assert not inventing.session.ask(QUESTION).supported


def test_a_question_without_any_hit_is_still_asked():
    house = House(sentences=("xyzzy",), script={"Passages:": "Not found."})
    answer = house.session.ask("qqq jjj?", "rag")
    assert answer.passages == () and answer.text == "The document does not say." and not answer.supported
    assert house.engine.prompts == [], "nothing is written from no passages"
    house.engine.script = {"phrase or explanation asked for": "xyzzy"}
    told = house.session.ask("qqq jjj?")
    assert told.text == "xyzzy" and not told.supported, "memory may know, but nothing shows it"


def test_a_short_memory_is_told_as_it_stands_up_to_its_last_full_sentence():
    house = House()
    answer = house.session.summarize()
    assert answer.mode == "summarize" and answer.question == ""
    assert answer.text == "The plague came to Paris in 1348. The fleas of black rats were found guilty."
    assert [clue.kind for clue in answer.clues] == ["point"] and len(house.engine.prompts) == 1
    assert ENGLISH[0] in [p.text for p in answer.passages] and ENGLISH[3] in [p.text for p in answer.passages]
    assert answer.supported and answer.generated_tokens == len(answer.text)
    found, *pieces, last = House().session.stream_summary()
    assert isinstance(found, Found) and isinstance(last, Answer) and last.text == answer.text
    assert "".join(piece.text for piece in pieces) == answer.text


def test_chinese_summary():
    """Defect: with every Chinese clue dropped, Chinese summaries crashed."""
    house = chinese_house()
    answer = house.session.summarize()
    assert answer.text == "黑死病传到了巴黎。\n跳蚤是元凶。" and answer.language == "zh"
    assert [clue.text for clue in answer.clues] == ["黑死病传到了巴黎。", "跳蚤是元凶。"]
    assert answer.passages


def test_another_generator_composes_a_summary_of_what_memory_tells():
    other = FakeEngine({"summary of the whole document": "Fleas."})
    house = House(generator=Writer(other, FakeTokenizer()))
    answer = house.session.summarize()
    assert answer.text == "Fleas." and answer.clues and answer.passages
    assert "- The plague came to Paris in 1348. The fleas" in other.prompts[-1]


@pytest.mark.parametrize("make", [House, chinese_house])
def test_a_summary_of_what_memory_does_not_tell_is_composed_of_passages(make):
    house = make()
    house.engine.script = {"What happens": "", "说了什么": "未提及", "summary": "A plague.", "摘要": "一场瘟疫。"}
    answer = house.session.summarize()
    assert answer.clues == () and answer.text in ("A plague.", "一场瘟疫。")
    assert len(house.retriever.queries[0]) == 1
    assert all(p.text.strip() in house.engine.prompts[-1] for p in answer.passages)


def test_a_base_model_ends_with_its_first_line():
    """It knows no end of turn and goes on with a next question of its own."""
    house = House(chat=False, script={"Passages:": "\nthe king of France\nQuestion: What next?", **EN_SCRIPT})
    answer = house.session.ask(QUESTION, "rag")
    assert house.engine.prompts[-1].endswith("\nAnswer:")
    assert answer.text == "the king of France"
    chat = House(script=house.engine.script).session.ask(QUESTION, "rag")
    assert chat.text == "the king of France\nQuestion: What next?"


def test_a_looping_answer_is_stopped():
    house = House(script={"Question:": "The king. " + "And then he went home again, " * 100})
    answer = house.session.ask(QUESTION, "closed", max_tokens=2000)
    assert answer.generated_tokens < 200
    assert answer.text.startswith("The king. And then he went home again,")


def test_events_and_timings():
    house = House()
    answer = house.session.ask(QUESTION)
    stages = dict.fromkeys(event.stage for event in house.events)
    assert list(stages) == ["retrieve", "answer", "choose", "memory", "recall", "weigh"]
    for stage in stages:
        last = [event for event in house.events if event.stage == stage][-1]
        assert last.done == last.total > 0
    assert set(answer.timings) == {*stages, "total"}
    assert all(seconds >= 0 for seconds in answer.timings.values())
    assert answer.timings["total"] >= answer.timings["answer"]
    assert list(house.session.ask(QUESTION, "closed").timings) == ["answer", "total"]


def test_the_room_behind_a_memory_covers_the_longest_prompts(monkeypatch):
    """What a memo leaves free after its document must hold any question that is let through, in any mode."""
    set_limits(monkeypatch, QUESTION_TOKENS=300)
    for house, letter in ((House(), "w"), (chinese_house(), "为")):
        free = memory_room() + 250  # the fake's tokens are characters: English prompts take more of them
        house.engine.config.max_context = len(house.ids) + free
        assert house.session.ask(letter * 300, "memory", max_tokens=256).generated_tokens > 0


def test_the_loop_imports_nothing_heavy():
    code = "import minimemo.ask, sys; assert not {'torch', 'numpy', 'faiss'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_room_behind_a_memory_stays_what_it_is():
    """A recipe holds what it leaves of the context: with another figure every memo would be built again."""
    assert memory_room() == 1728


def test_yes_or_no_is_retrieved_once_and_shows_the_nearest_sentence():
    house = House()
    question = "Is the king of France told of a heaven?"
    answer = house.session.ask(question, "rag")
    assert house.retriever.queries == [[question]]
    assert not telling(question, [p.text for p in answer.passages]).sentence and answer.text.endswith(
        ENGLISH[1].strip()
    )


def test_what_is_computed_is_not_written_and_cites_what_it_was_computed_from():
    house = House()
    hits = house.retriever._one("three planets that had met", 2)
    span = hits[0].chunk.start, hits[0].chunk.end
    for partial in (False, True):
        house.retriever.figured = lambda _, partial=partial: (Figured("3", (span,), partial), hits)
        answer = house.session.ask("How many planets had met?")
        assert answer.text == (f"3 ({PROMPTS['en'].partial})" if partial else "3")
        assert answer.supported and answer.confidence == 1.0 and not house.engine.prompts
        assert [p.span for p in answer.passages if p.text == ENGLISH[2]] == [span]
        assert all(p.cited for p in answer.passages)
