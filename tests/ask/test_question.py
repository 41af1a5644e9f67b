"""Which questions ask for a paragraph, and what the loop does for them."""

from __future__ import annotations

import pytest

from minimemo.ask import Answer, Found, Mode, Passage, Piece, Writer
from minimemo.ask.evidence import QUESTION_HITS, quotation, quoted_first
from minimemo.ask.question import kind_of
from minimemo.search.retriever import Hit
from minimemo.text.chunks import Chunk
from tests.ask.fakes import EN_SCRIPT, ENGLISH, FakeEngine, FakeTokenizer, House, set_limits
from tests.ask.test_session_views import SMALL, long_house


@pytest.mark.parametrize(
    "question",
    [
        "Summarize the discussion about the keeper's pay.",
        "Please describe the lamp room.",
        "Could you give me a short overview of the first year?",
        "What did the doctors say about the planets?",
        "What was Anna's opinion on the new road?",
        "What is the relationship between Ann and Ben?",
        "Who is Ann, and what happens to her?",
        "Please, can you describe the lamp room?",
        "What’s the current status of the recordings?",
        "What were the two main problems with the lamp?",
        "What relationship does Ann have with her father?",
        "Where does the story take place?",
        "What was the future of the light?",
        "关于灯塔的维修，会议上讨论了哪些内容？",
        "议员对拨款的态度是什么？",
        "请描述一下灯塔。",
        "關於水庫，會議上討論了哪些問題？",
    ],
)
def test_a_paragraph(question: str) -> None:
    assert kind_of(question) == "paragraph"


@pytest.mark.parametrize(
    "question",
    [
        "When was the light lit for the first time?",
        "Which steamer passed the Point that night, and who was her captain?",
        "Who wrote the summary of 1852?",
        "What is the name of the plot's owner?",
        "Why did the mill burn?",
        "What happens to the keeper's money?",
        "Where is the story's author buried?",
        "What is the lamp's purpose-built house called?",
        "Which changes sank the steamer?",
        "What was the development budget of the harbour?",
        "How many planets had met?",
        "灯塔是哪一年第一次点亮的？",
        "大沙地站在哪里？",
        "灯塔有哪些名字？",
        "谁提出了修路？",
        "",
    ],
)
def test_a_phrase(question: str) -> None:
    assert kind_of(question) == "phrase"


@pytest.mark.parametrize(
    "question",
    [
        'Highlight the parts (if any) of this contract related to "Renewal Term". Details: What is the renewal term?',
        "Please quote what the keeper said of the storm.",
        "Would you quote the oath?",
        "Find the clause on termination.",
        "Find the termination clause.",
        "Extract all the relevant clauses.",
        "Cite the clause on renewal.",
        "Can you show me all the sentences about the lamp?",
        "List every passage that names Hester Vane.",
        "Find a sentence that mentions Aurelia.",
        "Give me a quote about the sea.",
        "Find the sentence about the lamp.",
        "Which clause governs the warranty?",
        "Which sentence mentions the lamp?",
        "Which section of the report mentions insurance?",
        "Where does the contract mention insurance?",
        "Where is it stated that he may leave?",
        "What are the exact words of the letter?",
        "Give me the first article word for word.",
        "摘录关于灯塔的句子。",
        "请您摘录描写暴风雨的段落。",
        "请找出文中关于石桥的段落",
        "把关于石桥的句子摘录出来",
        "哪一条款规定了保修期？",
        "哪一段提到了船长？",
        "文中哪里提到石桥？",
        "原文是怎么写的？",
        "他的原话是什么？",
    ],
)
def test_the_documents_own_words(question: str) -> None:
    assert kind_of(question) == "quotation"


@pytest.mark.parametrize(
    "question",
    [
        "Where did the king say that he was born?",
        "Where does the keeper say that he was born?",
        "Who found the sentence carved into the wall?",
        "Show me the way to the harbour.",
        "What was the prisoner's sentence?",
        "What sentence did the prisoner get?",
        "What sentence covers his crimes?",
        "Which keeper wrote the longest passage?",
        "Which passage leads to the sea?",
        "Which passage requires a pilot?",
        "List the parts of the lamp.",
        "Give me a one sentence summary of the second chapter.",
        "Give me a sentence about the keeper.",
        "Tell me in a sentence who the keeper was.",
        "Highlight the main differences between the two lamps.",
        "Highlight the main parts of the meeting.",
        "Cite the reasons why the mill burned.",
        "Find the passage to the harbour.",
        "Find the passage from Dover to Calais.",
        "Find the passage in the wall that leads to the cellar.",
        "List the provisions taken aboard.",
        "List the sentences that the court imposed.",
        "What provisions did the ship carry?",
        "Give me the quote from the builder for the repair.",
        "Quote prices: which builder was cheapest?",
        "Who copied the letter verbatim?",
        "Was the speech recorded word for word?",
        "Explain why the exact wording mattered.",
        "Answer in your own words, not verbatim: who was the keeper?",
        "他引用了谁的话？",
        "引用的是哪本书？",
        "引用次数是多少？",
        "段落里提到的人是谁？",
        "原文是谁写的？",
        "原文是什么时候发表的？",
        "这首诗的原文在哪里？",
        "列出每个段落的主要内容",
        "给出条款生效的日期",
        "合同里有哪些条款？",
        "哪个段落最长？",
    ],
)
def test_not_the_documents_own_words(question: str) -> None:
    assert kind_of(question) != "quotation"


@pytest.mark.parametrize(
    "question",
    [
        "Summarize the whole meeting.",
        "Please, could you summarize the whole meeting?",
        "What is the plot of the story?",
        "Summarize the plot of the book.",
        "Please give me an overview of the document.",
        "What is this document about?",
        "What were the main points of the report?",
        "总结会议的内容。",
        "这份文档讲的是什么？",
        "请概括一下全文的主要内容",
    ],
)
def test_about_the_whole(question: str) -> None:
    assert kind_of(question) == "whole"


@pytest.mark.parametrize(
    "question",
    [
        "Summarize the discussion about the keeper's pay.",
        "Who wrote the summary of the report?",
        "What is the book on the table about to fall on?",
        "What is the plot of land called?",
        "关于灯塔的维修，会议上讨论了哪些内容？",
        "这份文档是谁写的？",
        "",
    ],
)
def test_about_a_part(question: str) -> None:
    assert kind_of(question) != "whole"


@pytest.mark.parametrize("mode", ["memorag", "rag"])
def test_a_quotation_is_the_documents_own(mode: Mode) -> None:
    """No model writes it, another one neither; offsets are the document's."""
    house = House(generator=Writer(FakeEngine(EN_SCRIPT), FakeTokenizer()))
    found, piece, answer = house.session.stream("Quote the sentence about the report for the king.", mode)
    assert isinstance(answer, Answer) and isinstance(piece, Piece) and isinstance(found, Found)
    assert answer.text == piece.text == ENGLISH[1].strip() and answer.supported and not house.engine.prompts
    assert [house.document[p.start : p.end] for p in answer.passages] == [p.text for p in answer.passages]
    assert [p.text for p in answer.passages if p.cited] == [ENGLISH[1]] and len(answer.passages) > 1
    assert found.passages == answer.passages and answer.generated_tokens == answer.prefilled_tokens == 0


def test_sentences_of_two_documents_are_told_in_order() -> None:
    """By document and place, though found in another order, on a line each; passages that hold one are cited."""

    def hit(document: int, start: int, text: str, score: float = 1.0) -> Hit:
        return Hit(Chunk(0, start, start + len(text), text), score, ("lexical",), document)

    passages = [hit(1, 0, "Bees sleep. Cats\nswim."), hit(0, 40, "Dogs fly. Mice sing."), hit(0, 0, "Nobody cares.")]
    found = [hit(1, 12, "Cats\nswim."), hit(0, 50, "Mice sing."), hit(1, 0, "Bees sleep.")]
    assert quotation(found, ["a", "b"]) == "Mice sing.\nBees sleep.\nCats swim."
    ranked = [
        Passage(p.chunk.start, p.chunk.end, p.chunk.text, p.score, document="ab"[p.document]) for p in passages[::-1]
    ]
    marked = quoted_first(ranked, found, ["a", "b"])
    assert [(p.document, p.start, p.cited) for p in marked] == [("a", 40, True), ("b", 0, True), ("a", 0, False)]


def test_what_shares_no_word_is_not_supported() -> None:
    house = House()
    house.retriever.sources = ("embedding",)
    assert not house.session.ask("Quote the sentence about the report for the king.").supported


def test_from_given_texts_a_paragraph_is_written() -> None:
    house = House(script={"in a detailed paragraph": "The report was for the king."})
    answer = house.session.answer("Quote the sentence about the report.", ["It was for the king of France."])
    assert answer.text == "The report was for the king."


def test_memory_alone_cannot_quote() -> None:
    house = House()
    answer = house.session.ask("Quote the sentence about the report for the king.", "memory")
    assert answer.text == EN_SCRIPT["Answer the question from the document above, in"] and not answer.passages


def test_a_paragraph_is_written_from_all_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(script={"in a detailed paragraph": "Plague, fleas."})
    answer = house.session.ask("Describe what the report said about the planets.", "rag")
    assert answer.text == "Plague, fleas."
    assert len(answer.passages) == 5, "the whole document is fewer passages than asked for"
    assert "short phrase" not in house.engine.prompts[-1]
    set_limits(monkeypatch, PARAGRAPH_HITS=2)
    few = House().session.ask("Describe the report.", "rag")
    assert len(few.passages) == 2


def test_memory_writes_a_paragraph_and_retrieval_finds_its_sources() -> None:
    house = House(script={"one detailed paragraph": "A conjunction of three planets."})
    answer = house.session.ask("Describe what the report said about the planets.")
    assert answer.text == "A conjunction of three planets." and answer.mode == "memorag"
    assert len(answer.passages) == 5 and any(p.cited for p in answer.passages)
    (prompt,) = house.engine.prompts
    assert not any(p.text in prompt for p in answer.passages), "they need no prefill: the memory holds them"
    assert house.loads == 1 and house.untouched()
    alone = house.session.ask("Describe what the report said about the planets.", "memory")
    assert alone.text == answer.text and alone.passages == ()


@pytest.mark.parametrize("mode", ["memorag", "rag", "memory"])
def test_a_short_paragraph_is_held_to_go_on(mode: Mode) -> None:
    asked = "Describe what the report said about the planets."
    house = House(script={"detailed paragraph": "Three planets met."})
    house.engine.more = " In 1345."
    answer = house.session.ask(asked, mode)
    assert answer.text == "Three planets met. In 1345." and answer.generated_tokens == len(answer.text)
    assert house.session.ask(asked, mode, max_tokens=10).text == "Three plan"
    house.engine.script = {"detailed paragraph": "It is not mentioned."}
    assert house.session.ask(asked, mode).text == "It is not mentioned.", "there is nothing to go on with"
    house.engine.script = {"nswer the question": "Yes."}
    assert house.session.ask("What did planets do?", mode).text == "Yes.", "a phrase may be short"
    if mode != "rag":
        assert house.untouched()


def test_a_foreign_generator_gets_the_passages_of_a_paragraph() -> None:
    other = FakeEngine({"in a detailed paragraph": "Plague, fleas."})
    house = House(generator=Writer(other, FakeTokenizer()))
    answer = house.session.ask("Describe what the report said about the planets.")
    assert answer.text == "Plague, fleas." and answer.clues
    assert all(p.text.strip() in other.prompts[-1] for p in answer.passages)


@pytest.mark.parametrize("mode", ["memorag", "gist"])
def test_what_is_asked_about_the_whole_walks_through_a_long_memory(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, **SMALL)
    house = long_house(script={**EN_SCRIPT, "summary of the whole document": "Sheep and a king."})
    answer = house.session.ask("Summarize the document.", mode)
    assert answer.text == "Sheep and a king." and answer.mode == mode
    assert {clue.kind for clue in answer.clues} == {"point"} and len(house.memory.views) == 6
    assert house.session.summarize().text == answer.text
    assert len(house.memory.views) == 6, "the same walk is not walked again"


def test_what_is_asked_about_the_whole_of_a_short_memory_is_its_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, ROOM_TOKENS=3000)
    house = House(script={**EN_SCRIPT, "What happens, or is discussed": "A king and three planets."})
    answer = house.session.ask("What is this document about?")
    assert answer.text == "A king and three planets." == house.session.summarize().text
    assert len(house.memory.views) == 1


def test_a_chinese_paragraph_is_written_from_memory_too() -> None:
    script = {"写成一段话": "三颗行星相合。"}
    question = "关于 a conjunction of three planets，报告讨论了哪些原因？"
    house = House(script=script)
    answer = house.session.ask(question)
    assert answer.text == "三颗行星相合。" and not house.engine.batches
    few = House(script=script).session.ask(question, "rag")
    assert few.text == answer.text and 0 < len(few.passages) <= QUESTION_HITS
