"""Rows find their header again, and the row that a question names is told with the names of its columns."""

from __future__ import annotations

import pytest

from minimemo.text.tables import counted, extreme, headers, listed, named_rows

HEADER = "order,customer,price,shipped"
ROWS = [f"{7000 + i},{('Mina Sato', 'Ivo Novak')[i % 2]},{i}.50,2024-01-{i + 10}" for i in range(12)]
MARKDOWN = ["Some words before.", "| name | born |", "|---|---:|", "| Ann Lee | 1890 |", "| Bo Ray | 1902 |", "After."]


def test_a_passage_that_begins_inside_a_table_has_its_header() -> None:
    table = "\n".join([HEADER, *ROWS[:4]]), "\n".join(ROWS[4:8]), "\n".join(ROWS[8:]), "Words after it, and more."
    assert headers(table) == ["", HEADER, HEADER, ""]
    assert headers(["\n".join(MARKDOWN[:4]), "\n".join(MARKDOWN[4:])]) == ["", "| name | born |"]


@pytest.mark.parametrize(
    "text",
    [
        "Roses are red, violets are blue,\nSugar is sweet, and so are you.\nOne more, and two more.\nThree, four.",
        "他说，天晴了。\n我说，好的。\n她说，走吧。\n他们走了，没有回头。",
    ],
)
def test_prose_with_commas_is_no_table(text: str) -> None:
    lines = text.split("\n")
    assert headers([lines[0], "\n".join(lines[1:])]) == ["", ""] and named_rows(text, "", lines[2]) == ""


def test_the_row_that_a_question_names_is_told_with_its_columns() -> None:
    passage = "\n".join(ROWS[4:8])
    told = "order: 7005; customer: Ivo Novak; price: 5.50; shipped: 2024-01-15"
    assert named_rows(passage, HEADER, "When was order 7005 shipped?") == told
    assert named_rows(passage, HEADER, "What is the price of the orders?") == "", "the header's words name no row"
    assert named_rows("\n".join(ROWS), HEADER, "What did Ivo Novak order?") == "", "too many to mean one of them"
    assert named_rows("\n".join(MARKDOWN), "", "When was Bo Ray born?") == "name: Bo Ray; born: 1902"
    quoted = 'a,b,c\n1,"x, y",2\n3,"z",4\n5,w,6'
    assert named_rows(quoted, "", "Which a has z?") == "a: 3; b: z; c: 4"


@pytest.mark.parametrize(
    ("question", "count"),
    [
        ("How many orders are in the file?", (12, [0, 1, 2])),
        ("How many orders did Ivo Novak place?", (6, [0, 1, 2])),
        ("How many customers are there?", (2, [0, 1, 2])),
        ("How many rows are there?", (12, [0, 1, 2])),
        ("How many orders were shipped on 2024-01-15?", (1, [1])),
        ("How many valves did Mina Sato buy?", None),
        ("How many orders did Zoe Quist place?", None),
        ("How many orders were cancelled?", None),
        ("When was order 7003 shipped?", None),
    ],
)
def test_rows_of_a_table_are_counted(question: str, count: tuple[int, list[int]] | None) -> None:
    passages = ["\n".join([HEADER, *ROWS[:4]]), "\n".join(ROWS[4:8]), "\n".join(ROWS[8:])]
    assert counted(passages, question) == count
    assert counted(["Some prose, and more.", "It goes on."], question) is None


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("Which order has the highest price?", ("7011 (price: 11.50)", [2])),
        ("Which order is the cheapest?", ("7000 (price: 0.50)", [0])),
        ("What is the lowest price of Ivo Novak?", ("1.50", [0])),
        ("Which order of Mina Sato has the largest price?", ("7010 (price: 10.50)", [2])),
        ("Which order has the latest shipped date?", ("7011 (shipped: 2024-01-21)", [2])),
        ("Which customer placed the most orders?", None),
        ("Who has the highest price?", None),
        ("Which order is the heaviest?", None),
        ("Which order has a price of 3.50?", None),
    ],
)
def test_the_row_with_the_most_is_found(question: str, told: tuple[str, list[int]] | None) -> None:
    passages = ["\n".join([HEADER, *ROWS[:4]]), "\n".join(ROWS[4:8]), "\n".join(ROWS[8:])]
    assert extreme(passages, question) == told
    assert extreme(["Some prose, and more.", "It goes on."], question) is None


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("List all the customers.", ("Mina Sato, Ivo Novak", [0, 1, 2])),
        ("Which orders were shipped on 2024-01-15?", ("7005", [1])),
        ("List the orders of Ivo Novak.", ("7001, 7003, 7005, 7007, 7009, 7011", [0, 1, 2])),
        ("Which orders were cancelled?", None),
        ("List all the valves.", None),
        ("Which order was shipped on 2024-01-15?", None),
    ],
)
def test_values_of_a_table_are_listed_once(question: str, told: tuple[str, list[int]] | None) -> None:
    passages = ["\n".join([HEADER, *ROWS[:4]]), "\n".join(ROWS[4:8]), "\n".join(ROWS[8:])]
    assert listed(passages, question) == told
