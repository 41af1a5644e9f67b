"""What leans on the turns before is given them; what stands alone passes word for word."""

import json
from dataclasses import replace
from unittest.mock import ANY

import pytest

from bench.common.data import DATA, questions
from minimemo.ask.conversation import TURNS, Conversation, leans
from minimemo.ask.question import kind_of
from minimemo.errors import InputError
from tests.ask.fakes import QUESTION, ZH_QUESTION, House, chinese_house, set_limits

LEANING = (
    "Why?",
    "And when?",
    "And in Paris?",
    "How thick?",
    "Who held the record before him?",
    "What is the name of his sister?",
    "Which ravine was named for her?",
    "When did they sell it?",
    "How many people lived there after that?",
    "Who else?",
    "Which one of them is older?",
    "And the other one?",
    "Who took her place in the second?",
    "What happened then?",
    "What happened in that year?",
    "What does this mean?",
    "And interceptions, how many?",
    "What about the harbour?",
    "What had the company that they financed designs for?",
    "Did she leave?",
    "为什么？",
    "那灯塔呢？",
    "她后来怎么样了？",
    "他的墓在哪里？",
    "谁允许他的公司撤离？",
    "它是哪一年出版的？",
    "后来呢？",
    "哪一年呢？",
    "面积有多大呢？",
    "澳门那家呢？",
    "在他之前由谁保持？",
    "那一年发生了什么？",
    "人口呢？",
    "還有誰？",
)
STANDING = (
    "When did Tesla say that he was ill?",
    "Is it true that the tower burned?",
    "How long does it take to cross the bay?",
    "What did the king say before he died?",
    "How many lamps were there?",
    "What does the contract say about this document?",
    "Other than his achievements, what was Tesla known for?",
    "And when did Tesla die?",
    "What is friction?",
    "Which tools do carpenters use to see their marks?",
    "Who is the leader of the Northern Party?",
    "Summarize.",
    "Where is Ebba Lind buried, and who paid for it?",
    "Did Erik Lund win both the first and the second?",
    "特斯拉是哪一天去世的？",
    "为什么灯塔在1871年被拆除呢？",
    "这份文档讲的是什么？",
    "其他国家有哪些首都？",
    "李正是谁？",
    "特斯拉认为他的发明有什么用？",
    "该如何申请？",
)


@pytest.mark.parametrize("question", LEANING)
def test_what_lacks_something_leans(question):
    assert leans(question)


@pytest.mark.parametrize("question", STANDING)
def test_what_has_it_stands_alone(question):
    assert not leans(question)


@pytest.mark.skipif(not DATA.exists(), reason="../shared is not here")
@pytest.mark.parametrize("name", ["xquad_en", "xquad_zh", "followups"])
def test_questions_of_sets_pass_unchanged(name):
    asked = [q.text for q in questions(DATA, name, 999 if name == "followups" else 80) if q.why in ("", "alone")]
    assert [question for question in asked if leans(question)] == []


def test_a_question_that_leans_is_answered_with_the_turns_that_it_leans_on():
    house = House()
    talk = Conversation(house.session)
    talk.ask(QUESTION, "rag")
    answer = talk.ask("And when did he die?", "rag")
    assert answer.question == "And when did he die?"
    assert answer.asked == f"{QUESTION} the king of France. And when did he die?"
    assert house.retriever.queries == [[QUESTION], [answer.asked]]
    assert answer.asked in house.engine.prompts[-1]
    assert answer.to_dict()["asked"] == answer.asked
    assert json.loads(json.dumps(talk.turns)) == [
        {"question": QUESTION, "asked": QUESTION, "answer": "the king of France"},
        {"question": answer.question, "asked": answer.asked, "answer": answer.text},
    ]
    talk.forget()
    assert talk.turns == []
    assert talk.ask("And when did he die?", "rag").asked == "And when did he die?"


def test_a_question_that_stands_alone_is_asked_as_it_is():
    house = House()
    talk = Conversation(house.session)
    talk.ask("When did the plague come to Paris?", "rag")
    assert talk.ask(QUESTION, "rag") == replace(house.session.ask(QUESTION, "rag"), timings=ANY)


def test_turns_go_back_to_the_one_that_stood_alone():
    talk = Conversation(House().session)
    for question in ("When did the plague come to Paris?", QUESTION, "Where did he live?", "Why?"):
        answer = talk.ask(question, "rag")
    told = "the king of France."
    assert answer.asked == f"{QUESTION} {told} Where did he live? {told} Why?"
    for _ in range(2 * TURNS):
        answer = talk.ask("Why?", "rag")
    assert answer.asked.count("Why?") == TURNS + 1


def test_in_chinese_without_spaces():
    talk = Conversation(chinese_house().session)
    talk.ask(ZH_QUESTION, "rag")
    assert talk.ask("他后来呢？", "rag").asked == f"{ZH_QUESTION}法国国王。他后来呢？"


def test_the_kind_is_that_of_what_was_typed():
    """Not of the turns before it, whose words may ask for a paragraph."""
    house = House()
    talk = Conversation(house.session)
    talk.ask("Describe the plague.", "rag")
    assert kind_of(talk.alone("Did it end?")) == "paragraph"
    talk.ask("Did it end?", "rag")
    assert house.retriever.regions[:2] == [True, False]


def test_what_the_document_did_not_say_is_not_put_in_front(monkeypatch):
    set_limits(monkeypatch, REFUSED=1.01)
    talk = Conversation(House().session)
    assert talk.ask(QUESTION, "rag").guess
    assert talk.turns[0]["answer"] == ""
    assert talk.alone("Why?") == f"{QUESTION} Why?"


def test_a_turn_left_half_read_is_none():
    talk = Conversation(House().session)
    steps = talk.stream(QUESTION, "rag")
    next(steps)
    steps.close()
    assert talk.turns == []
    with pytest.raises(InputError):
        talk.stream("???")
