"""Rows find their header again, and the row that a question names is told with the names of its columns."""

from __future__ import annotations

import pytest

from minimemo.text.tables import grids, headers, named_rows

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


INVOICE = """Order no.: 771        Date: 3 May

Pos  Goods               Qty   Amount
1    Rope, 40 m           12   120.00
2    Hook                  3     9.30
3    Tin of paint          1    14.00

Sum                             143.30"""


def test_whole_tables_are_found_with_their_rows() -> None:
    (table,) = grids(INVOICE)
    assert table.names == ("Pos", "Goods", "Qty", "Amount") and table.rows[0] == ("1", "Rope, 40 m", "12", "120.00")
    assert INVOICE[slice(*table.spans[1])].split() == ["2", "Hook", "3", "9.30"]
    windows = "\r\n".join([HEADER, *ROWS])
    assert [len(grid.rows) for grid in grids(windows)] == [12]
    assert [
        len(grid.rows) for grid in grids("\n".join([HEADER, *ROWS[:6], "", *ROWS[6:], "", "A word, and more."]))
    ] == [12]
    titled = "\n".join(["## Births", "", *MARKDOWN[1:]])
    assert [(grid.title, len(grid.rows)) for grid in grids(titled)] == [("## Births", 2)]
    assert [grid.names for grid in grids("\n".join([*MARKDOWN[1:5], "", *MARKDOWN[1:5]]))] == [("name", "born")] * 2


@pytest.mark.parametrize(
    "text",
    [
        "\n".join([HEADER, *ROWS[:4], "7004,Ivo Novak,3.50", *ROWS[5:]]),  # a row with a field too few
        INVOICE.replace("2    Hook                  3     9.30", "2    Hook                        9.30"),
        INVOICE.replace("2    Hook                  3     9.30", "2  Hook  3  9.30"),
        "Ann came home.  She slept.\nBo did not.  He sang.\nNo one heard.  All slept.\nThe end.  Or not.",
    ],
)
def test_a_torn_table_is_none(text: str) -> None:
    assert grids(text) == []
