"""What words and numbers settle is counted, listed and compared without a model, and nothing else is."""

from __future__ import annotations

import pytest

from minimemo.text.figures import figured

SHEDS = """List of the sheds, 3 May 2021.

Shed A was painted by Ivo Lind. It holds 1,400 cubic metres. The door is 3 metres wide.

Shed B was painted by Mara Quist. It holds 900 cubic metres. Its roof was mended on 4 June 2020.

Shed C was not painted, because of the rain. It holds 1,750 cubic metres.

Shed D was painted by Ivo Lind. It holds 60 cubic metres. A rope of 40 metres lies beside it.

The price of saw 1 is 250 euro, and that of saw 2 is 310 euro; nine people work here."""


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How much more does Shed A hold than Shed B?", "500 cubic metres (1,400 cubic metres - 900 cubic metres)"),
        ("How much less does shed B hold than shed A?", "500 cubic metres (1,400 cubic metres - 900 cubic metres)"),
        ("How much more does Saw 2 cost than Saw 1?", "60 euro (310 euro - 250 euro)"),
        ("What is the difference in price between saw 1 and saw 2?", "60 euro (310 euro - 250 euro)"),
        ("How much larger is Shed C than Shed A?", "350 cubic metres (1,750 cubic metres - 1,400 cubic metres)"),
        ("Is Shed B larger than Shed D?", "Yes. Shed B: 900 cubic metres; Shed D: 60 cubic metres."),
        ("Does Shed B hold more than Shed A?", "No. Shed B: 900 cubic metres; Shed A: 1,400 cubic metres."),
        ("Which shed is the largest?", "Shed C (1,750 cubic metres)"),
        ("Which shed holds the least?", "Shed D (60 cubic metres)"),
        ("How many sheds are there?", "4 (Shed A, Shed B, Shed C, Shed D)"),
        ("How many sheds did Ivo Lind paint?", "2 (Shed A, Shed D)"),
        ("List all the sheds that Ivo Lind painted.", "Shed A, Shed D"),
        ("Which shed was not painted?", "Shed C"),
    ],
)  # fmt: skip
def test_what_the_text_settles_is_computed(question: str, answer: str) -> None:
    found = figured(SHEDS, question)
    assert found and found.text == answer
    assert all(SHEDS[start:end].endswith((".", ";")) for start, end in found.spans)


@pytest.mark.parametrize(
    "question",
    [
        "How much more does Shed A weigh than Shed B?",  # it is told what they hold
        "How much more does Shed B hold than Shed A?",  # it holds less
        "How much longer is Shed D than Shed A?",  # the rope is, and the door is wide
        "How much more does Shed A hold than Shed E?",
        "Which shed is the oldest?",
        "Which shed was painted?",  # three were
        "How many people work here?",
        "How many sheds did Olga Brandt paint?",
        "How many sheds hold more than 100 cubic metres?",
        "Who painted Shed A?",
    ],
)
def test_what_it_does_not_settle_is_not(question: str) -> None:
    assert figured(SHEDS, question) is None


def test_what_may_lack_something_says_so() -> None:
    by_words, all_of_them = (figured(SHEDS, f"How many sheds {rest}?") for rest in ("did Ivo Lind paint", "are there"))
    assert by_words and by_words.partial and all_of_them and not all_of_them.partial


def test_one_sentence_about_several_is_not_divided_among_them() -> None:
    text = "Ann Lee repaired pump 1 and Bo Ray inspected pump 2. Pump 3 was left alone."
    assert figured(text, "Which pump was repaired?") is None, "whose verb is whose is not told by words"
    row = "Pump 1, pump 2 and pump 3 were repaired. Pump 4 was left alone."
    assert (found := figured(row, "List the pumps that were repaired.")) and found.text == "Pump 1, pump 2, pump 3"
    assert figured("Tanks A, B and C stand here, and Tank D. Tank E is new.", "How many tanks are there?") is None


@pytest.mark.parametrize(
    "text", ["Room 12 is red. Room 14 is blue.", "The inn has eighty rooms. Room 1 is red, and room 2 blue."]
)
def test_what_is_only_mentioned_is_not_all(text: str) -> None:
    assert figured(text, "How many rooms are there?") is None and figured(text, "List all the rooms.") is None


LOG = """2024-03-01 08:00:07 INFO [mailer] 0 errors so far
2024-03-01 08:01:07 ERROR [mailer] queue full
2024-03-01 08:02:07 WARN [gateway] slow
2024-03-01 08:03:07 ERROR [billing] checksum mismatch
2024-03-01 08:04:07 INFO [gateway] ready"""
CHAT = """23/09/2016, 9:32 PM - Noor: who brings it??
23/09/2016, 9:40 PM - Tomas: noor has one
24/09/2016, 8:02 AM - Kei: i can
24/09/2016, 8:05 AM - Noor: perfect
24/09/2016, 8:06 AM - Noor: bring the stove then"""


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        (LOG, "How many errors were logged?", "2"),
        (LOG, "How many errors did the mailer report?", "1"),
        (LOG, "How many lines are there?", "5"),
        (LOG, "How many warnings are there?", "1"),
        (LOG, "List all errors of the billing.", "2024-03-01 08:03:07 ERROR [billing] checksum mismatch"),
        (CHAT, "How many messages did Noor send?", "3"),
        (CHAT, "How many messages are there?", "5"),
        (CHAT, "How many messages did Lena send?", None),
        (LOG, "How many errors did the scheduler report?", None),
        (LOG, "How many mails were sent?", None),
        (SHEDS, "How many lines are there?", None),
    ],
)
def test_lines_of_logs_and_chats_are_counted(text: str, question: str, answer: str | None) -> None:
    found = figured(text, question)
    assert (found.text if found else None) == answer


def test_what_is_told_by_lines_of_a_name_and_a_number_is_compared() -> None:
    text = "Our prices:\n> pine, waxed: 640 euro\n> elm, waxed: 1,090 euro\n> A lock adds 35 euro. The elm has 40 kg."
    found = figured(text, "How much more does a bench of elm cost than one of pine?")
    assert found and found.text == "450 euro (1,090 euro - 640 euro)"
    assert figured(text, "How much more does a bench of elm weigh than one of pine?") is None
    assert figured(text, "How much more does a bench of elm cost than a lock of pine?") is None
