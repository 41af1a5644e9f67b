"""What the words of a document say to a question that asks yes or no."""

from __future__ import annotations

import pytest

from minimemo.ask.polarity import ASSERTED, DENIED, telling, weight

TEXT = """Tank A was inspected. Its lining was found sound and no repair is needed.

Tank B is old. A crack was found near the outlet.

學堂很大。1903年動工的石橋上禁止汽車通行。"""


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("Does Tank A need a repair?", "Its lining was found sound and no repair is needed."),
        ("Is it true that Tank B has no crack?", "A crack was found near the outlet."),
        ("Was Tank C inspected?", ""),
        ("Is the gate painted?", ""),
        ("1903年动工的石桥允许汽车通行吗？", "1903年動工的石橋上禁止汽車通行。"),
    ],
)
def test_the_sentence_that_tells_it_names_its_subject_or_follows_one_that_does(question: str, sentence: str) -> None:
    told = telling(question, [TEXT])
    assert told.sentence == sentence and (told.weight < 0) == bool(sentence)


@pytest.mark.parametrize(
    ("question", "sentence", "says"),
    [
        # A "not" counts against the word that it governs.
        ("Was the budget approved?", "The budget was approved, but not the loan.", "yes"),
        ("Was the loan approved?", "The budget was approved, but the loan was not.", "no"),
        ("Was the loan granted?", "The loan was granted with no vote against.", "yes"),
        ("Are parcels that nobody fetched sent back?", "Parcels that nobody fetched are not sent back.", "no"),
        ("Are parcels that nobody fetched sent back?", "Parcels that were fetched are not sent back.", ""),
        ("Was the gate never painted?", "The gate was never painted.", "yes"),
        ("Isn't the gate locked?", "The gate isn't locked at night.", "no"),
        ("Does the stove come with the hut?", "stove doesnt come with the hut", "no"),
        ("Is the deposit 200 euro?", "The deposit is not less than 200 euro.", "yes"),
        # Opposites deny each other, a denied one asserts.
        ("Was the appeal accepted?", "The appeal was rejected.", "no"),
        ("Was the appeal rejected?", "The appeal was turned down.", "yes"),
        ("Was the appeal accepted?", "The appeal was not rejected.", "yes"),
        ("Was the fair held in May?", "The fair in May was cancelled.", "no"),
        ("May drones be flown here?", "It is forbidden that drones are flown here.", "no"),
        # What is not about the question says nothing.
        ("Was the appeal accepted?", "No rain fell in June.", ""),
        ("Was the appeal of the bakers accepted?", "The appeal of the bakers was read.", ""),
        # Nor does a sentence whose parts do not agree.
        ("Is the mill open on Monday?", "The mill is open on Tuesday, on Monday it is closed.", ""),
        # Chinese: up to the end of the clause, or of what describes a noun.
        ("汽车可以通行吗？", "桥上禁止汽车通行，但是行人可以通过。", "no"),
        ("行人可以通过吗？", "桥上禁止汽车通行，但是行人可以通过。", "yes"),
        ("展览是否如期举行？", "展览推迟到九月举行。", "no"),
        ("提案有没有通过？", "提案未获通过。", "no"),
        ("合同是不是已经签订？", "合同尚未签订。", "no"),
        ("未参加培训的员工可以上岗吗？", "未参加培训的员工不得上岗。", "no"),
        ("押金会不会退还？", "押金不但退还，还付利息。", "yes"),
    ],
)  # fmt: skip
def test_what_a_sentence_says(question: str, sentence: str, says: str) -> None:
    found = weight(question, sentence)
    assert ("yes" if found > 0 else "no" if found < 0 else "") == says, found


def test_what_a_sentence_lacks_is_told_by_one_behind_it() -> None:
    minutes = "The request of Ruth Adler for a gate was read. It was put to the board and turned down. Ivo was elected."
    told = telling("Was the request of Ruth Adler for a gate approved?", [minutes])
    assert told.sentence.endswith("turned down.") and told.weight <= DENIED / 2
    assert telling("Was Ivo elected?", [minutes]) == ("Ivo was elected.", ASSERTED)


def test_what_the_document_asks_itself_is_answered_behind_it() -> None:
    chat = "[01.02.25, 10:00:01] Kai: is the oven clean?\n[01.02.25, 10:02:09] Bea: nope, not yet\n"
    told = telling("Is the oven clean?", [chat])
    assert told.sentence.endswith("Bea: nope, not yet") and told.weight < 0
    assert telling("Is the oven clean?", ["Is the oven clean?\n\nYes, since Monday."]).weight > 0
    assert not telling("Is the oven clean?", ["Is the oven clean?\n\nAsk Bea."]).sentence


def test_a_row_that_names_it_goes_before_one_behind_it() -> None:
    log = "2025-01-03T10:00 job north-4: checksum mismatch\n2025-01-03T10:01 job north-5: checksum ok\n"
    assert (
        telling("Was the checksum of north-4 ok?", [log]).weight
        < 0
        < telling("Was the checksum of north-5 ok?", [log]).weight
    )
