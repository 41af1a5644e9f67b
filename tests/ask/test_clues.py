"""Clues: what small models write is turned into searches, in any script."""

import time

import pytest

from minimemo.ask.clues import (
    CAPS,
    MAX_CHARS,
    MAX_DRAFT,
    Clue,
    collapse_loops,
    full_sentences,
    is_informative,
    is_looping,
    parse_draft,
    parse_lines,
    select_clues,
    without_inventions,
)
from minimemo.ask.prompts import PROMPTS


@pytest.mark.parametrize(
    ("line", "item"),
    [
        ("1. The king fled.", "The king fled."),
        ("1) The king fled.", "The king fled."),
        ("(2) The king fled.", "The king fled."),
        ("- The king fled.", "The king fled."),
        ("* **The king fled.**", "The king fled."),
        ("• The king fled.", "The king fled."),
        ("12: The king fled.", "The king fled."),
        ('3. "The king fled."', "The king fled."),
        ("Passage 1: The king fled.", "The king fled."),
        ("1. Question 2: Who fled?", "Who fled?"),
        ("> The king fled.", "The king fled."),
        ("（1）国王逃走了。", "国王逃走了。"),
        ("一、国王逃走了。", "国王逃走了。"),
        ("（二）国王逃走了。", "国王逃走了。"),
        ("① 国王逃走了。", "国王逃走了。"),
        ("1、国王逃走了。", "国王逃走了。"),
        ("第一，国王逃走了。", "国王逃走了。"),
        ("问题1：谁逃走了？", "谁逃走了？"),
        ("“国王逃走了。”", "国王逃走了。"),
        ("「國王逃走了。」", "國王逃走了。"),
    ],
)
def test_marks_are_stripped(line, item):
    assert parse_lines(line) == [item]


@pytest.mark.parametrize(
    "line",
    [
        "1913 was a hard year.",
        "3.5 million people lived there.",
        "12:30 was the hour.",
        "-5 degrees were measured.",
        'He said "no" and "yes".',
        "十年后他回来了。",
        "一八九六年出版。",
        "“你好”和“再见”",
        "A. Lincoln spoke.",
    ],
)
def test_what_only_looks_like_a_mark_stays(line):
    assert parse_lines(line) == [line]


def test_lists_one_a_line():
    assert parse_lines("Here are the passages:\n\n1. One fact.\r\n2. Two facts.\n") == ["One fact.", "Two facts."]
    assert parse_lines("以下是相关句子：\n一、甲地下雨。\n二、乙地下雪。") == ["甲地下雨。", "乙地下雪。"]
    assert parse_lines("") == []


def test_json_and_quoted_lists():
    expected = ["The king's men fled.", "It rained."]
    assert parse_lines('["The king\'s men fled.", "It rained."]') == expected
    assert parse_lines('```json\n["The king\'s men fled.",\n "It rained."]\n```') == expected
    assert parse_lines("['The king\\'s men fled.', 'It rained.']") == expected
    assert parse_lines("['The king's men fled.', 'It rained.']") == expected
    assert parse_lines('{"passages": ["The king\'s men fled.", "It rained."]}') == expected
    assert parse_lines('{"a": "The king\'s men fled.", "b": "It rained."}') == expected
    assert parse_lines('["The king\'s men fled.", "It rained.", "It was cut he') == expected
    assert parse_lines('["国王逃走了。", "下\\u96e8了。"]') == ["国王逃走了。", "下雨了。"]
    assert parse_lines("[The king fled.]") == ["[The king fled.]"]  # no strings in it: a line


def test_long_lines_are_cut_at_sentences_into_pieces_that_say_something():
    """A 0.5B model copies half a page on one line; cut after every full stop it gave "pestis strains Y." as a clue."""
    expected = [
        "The study found two clades of the Y. pestis genome, known as Y. p. orientalis and Y. p. medievalis. "
        "They came in two waves, many years apart.",
        "The first entered Europe through the port of Marseille around November 1347, and spread through France over "
        "the next two years!",
        "It reached England in 3.5 years. The second is thought to have come from the Low Countries, where remains of "
        "it were found in a plague pit of the town of Bergen op Zoom by the sea.",
    ]
    assert parse_lines(" ".join(expected)) == expected
    pieces = parse_lines("".join(f"第{n}天国王带着他的人马一路向北方逃走了。" for n in range(40)))
    assert (
        len(pieces) == 20
        and pieces[0] == "第0天国王带着他的人马一路向北方逃走了。第1天国王带着他的人马一路向北方逃走了。"
    )
    assert [len(item) for item in parse_lines("".join(map(str, range(999))))] == [MAX_CHARS]  # no sentence ends


def test_runaway_repetition_is_said_once():
    assert collapse_loops("the king fled, " * 9) == "the king fled, "
    assert collapse_loops("国王逃走了。" * 9) == "国王逃走了。"
    assert collapse_loops("哈" * 30) == "哈"
    assert collapse_loops("It cost 1000000 or 10101010101010.") == "It cost 1000000 or 10101010101010."
    assert collapse_loops("very very good") == "very very good"
    assert parse_lines("1. The king fled.\n1. The king fled.\n1. The king fled.\n") == ["The king fled."]


def test_repetition_search_stays_fast():
    """128 tokens are at most about 1,000 characters; a pattern with back references could take minutes on them."""
    begin = time.perf_counter()
    text = "".join(chr(0x4E00 + (i * i) % 5003) for i in range(2000))
    assert collapse_loops(text) == text
    assert not is_looping(text)
    assert time.perf_counter() - begin < 2.0


def test_looping_end_is_seen():
    assert is_looping("First. " + "and then he went, " * 3)
    assert is_looping("他说，" + "然后他又回到了家里，" * 3)
    assert not is_looping("and then he went, " * 2)
    assert not is_looping("1" * 100)
    assert not is_looping("")


def test_chinese_clues_survive():
    """A filter that counts words between spaces drops all of these: the loop would silently be plain retrieval."""
    texts = ["黑死病最初被归咎于天堂", "医疗报告是写给法国国王的", "王熙凤"]
    assert select_clues({"recall": texts}) == tuple(Clue("recall", text) for text in texts)


@pytest.mark.parametrize(
    "text",
    ["国王逃走了", "北京", "2003年", "王は北へ逃げた", "왕은 북쪽으로 도망쳤다", "Paris fell", "พระราชาหนีไปทางเหนือ"],
)
def test_informative(text):
    assert is_informative(text)


@pytest.mark.parametrize(
    "text", ["", "...", "a", "人", "Yes.", "of the and", "None", "N/A", "Not found.", "没有相关内容", "未提及。", "無"]
)
def test_not_informative(text):
    assert not is_informative(text)


def test_echoes_are_dropped():
    clues = select_clues(
        {"recall": ["Sentences of the document that help to answer, one per line", "The king fled north."]},
        question="Where did the king flee?",
        instructions=[PROMPTS["en"].recall],
    )
    assert clues == (Clue("recall", "The king fled north."),)
    clues = select_clues(
        {"rewrite": ["上面文档中有助于回答的原句", "国王逃到哪里？", "国王的都城在哪里？"]},
        question="国王逃到哪里？",
        instructions=[PROMPTS["zh"].recall],
    )
    assert clues == (Clue("rewrite", "国王的都城在哪里？"),)


def test_near_duplicates_are_dropped_across_kinds():
    clues = select_clues(
        {
            "recall": ["The king fled to the north in winter.", "the KING fled to the north, in winter", "It rained."],
            "rewrite": ["king fled to the north", "Who followed the king's army to its camp?"],
            "draft": ["It rained"],
        }
    )
    assert [clue.text for clue in clues] == [
        "The king fled to the north in winter.",
        "It rained.",
        "Who followed the king's army to its camp?",
    ]
    clues = select_clues(
        {"recall": ["国王在冬天逃往北方。", "国王在冬天，逃往北方", "国王在冬天逃往北方，王后留在都城。"]}
    )
    assert [clue.text for clue in clues] == ["国王在冬天逃往北方。", "国王在冬天逃往北方，王后留在都城。"]


def test_clues_are_capped_by_kind():
    towns = ["Aachen", "Bremen", "Cologne", "Dresden", "Erfurt", "Frankfurt", "Goslar", "Hamburg"]
    clues = select_clues(
        {"recall": [f"{t} burned down" for t in towns], "rewrite": [f"When was {t[::-1]} built" for t in towns]}
    )
    assert sum(clue.kind == "recall" for clue in clues) == CAPS["recall"] < len(towns)
    assert sum(clue.kind == "rewrite" for clue in clues) == CAPS["rewrite"] < len(towns)


def test_draft():
    assert parse_draft("Answer: the king of\nFrance.\n\nI hope this helps!") == "the king of France."
    assert parse_draft("答案：法国国王。") == "法国国王。"
    assert parse_draft("Not found.") == parse_draft("未提及") == parse_draft(" \n") == ""
    copied = "The study found two clades of Y. pestis. " + "".join(f"Then thing {n} was found. " for n in range(30))
    assert parse_draft(copied) == "The study found two clades of Y. pestis."
    assert len(parse_draft("".join(map(str, range(999))))) == MAX_DRAFT


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("The king came. He went", "The king came."),
        ('He said "Go!" And then', 'He said "Go!"'),
        ("It cost 3.50 marks and", "It cost 3.50 marks and"),
        ("国王来了。他走", "国王来了。"),
        ("他说：“走！”然后", "他说：“走！”"),
        ("Doctors found Y. pestis and", "Doctors found Y. pestis and"),
        ("The king came. Then Mr. Smith of", "The king came."),
        ("He went (1990). She", "He went (1990)."),
        ("1. He went\n2. She", "1. He went\n2. She"),
        ("Done.", "Done."),
        ("", ""),
    ],
)
def test_full_sentences(text: str, full: str) -> None:
    assert full_sentences(text) == full


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Kings fled. They met Lord Bonaparte in Paris. All was well.", "Kings fled. All was well."),
        ("Lamps in the United States are old. It was in 1999 in France.", "It was in 1999 in France."),
        ("He met Mr. White. He saw Dr. No in New Orleans.", "He met Mr. White."),
        ("They fled to King Paris.", "They fled to King Paris."),  # one word of a name is held
        ("The prices rose by 5%. Overall, Trade Unions grew: Many People said so.",) * 2,
        (
            "**Main Themes**\n\nThe sheep ate\nSeveral Dogs barked",
            "**Main Themes**\n\nThe sheep ate\nSeveral Dogs barked",
        ),
        ("They took vitamin B12, H2O and a 3D printer at 5 p.m. Nobody Else came.",) * 2,
        ("Die Häuser brannten, die Hunde bellten.",) * 2,
        ("国王逃走了。他在1999年回来。", "国王逃走了。他在1999年回来。"),
        ("", ""),
    ],
)
def test_sentences_with_names_that_the_document_does_not_hold_are_left_out(text, kept):
    assert without_inventions(text, lambda word: word == "Paris") == kept


def test_an_escape_that_json_does_not_know_stays_as_it_is() -> None:
    assert parse_lines(r'["The drive C:\docs is full", "It was emptied"]') == [
        r"The drive C:\docs is full",
        "It was emptied",
    ]
