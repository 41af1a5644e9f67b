"""Printed lines become paragraphs: columns, cut words, running heads, notes below the text, tables, numbered lines."""

from __future__ import annotations

from collections.abc import Iterable

from minimemo.readers.prose import Line, Mark, Page, prose

PITCH = 12.0


def line(text: str, left: float = 72, bottom: float = 700, size: float = 10, gaps: int = 0, right: float = 0) -> Line:
    return Line(text, left, bottom, right or left + 5 * len(text), bottom + size, size, 0, gaps)


def column(texts: Iterable[str], left: float = 72, top: float = 700, right: float = 300) -> list[Line]:
    """Lines below each other, each as wide as the column unless it is marked by "|" as the last of its paragraph."""
    return [
        line(text.rstrip("|"), left, top - PITCH * row, right=left + 100 if text.endswith("|") else right)
        for row, text in enumerate(texts)
    ]


def pages(*lines: list[Line]) -> list[Page]:
    return [Page("", 612, 792, False, tuple(of)) for of in lines]


def text_of(*lines: list[Line]) -> str:
    return prose(pages(*lines))[0]


FILLER = [
    "The keeper wrote down what he saw in",
    "the book that lay beside the lamp and",
    "went up the stairs again at midnight.|",
]


def test_words_cut_at_line_ends_are_whole() -> None:
    text = text_of(
        column(
            [
                "The harbour of the island was re\ufffe",
                "built in spring, and its well-",
                "known lamp, which a sub-com-",
                "mittee had bought in Soekarno\ufffe",
                "Hatta for the years 2018\u2013",
                "19, is written up at https://a.org/",
                "lamp. A water\ufffe",
                "proof coat hung there: it was water-proof|",
            ]
        )
    )
    for whole in (
        "was rebuilt in",
        "its well-known lamp",
        "sub-committee",
        "Soekarno-Hatta",
        "2018\u201319",
        "a.org/lamp",
    ):
        assert whole in text
    assert "A water-proof coat" in text  # as the document itself writes it elsewhere


def test_compounds_keep_their_hyphen_where_no_word_is_cut() -> None:
    lines = ["The present day is long, and the", "day is present in the present-", "day town, as ever it has been|"]
    assert "present-day town" in text_of(column(lines))
    assert "presentday town" in text_of(column([*lines, "and this pres\ufffe", "ent day a present|"]))


def test_chinese_lines_join_without_a_space() -> None:
    """Beside full-width marks too, and before a number unless the text has spaces there."""
    lines = ["灯塔第一次点亮是在秋天，", "40名船员看见了灯光。那是在1852", "年的十月，写作“斯卡恩", "角”|"]
    assert text_of(column(lines)) == "".join(lines).rstrip("|")
    assert "在 1852 年" in text_of(column([*lines[:1], "看见了灯光。那是在 1852", "年的十月"]))
    counts = ["公司于 2019 年 3 月在 5 个城市成立，2023 年收入", "3.2 亿元，员工 214 人，其中 12 人在 2 个分部"]
    assert "收入 3.2 亿元" in text_of(column(counts))


def test_paragraphs_end_where_the_next_word_would_have_fitted() -> None:
    text = text_of(column([*FILLER, *FILLER, "- one thing|", "- another|"]))
    first = " ".join(FILLER).rstrip("|")
    assert text.split("\n\n") == [first, first + "\n- one thing\n- another"]


def test_a_page_goes_on_within_a_paragraph_and_notes_wait_for_its_end() -> None:
    first = [*column([*FILLER, *FILLER]), line("1 See the log of 1874.", bottom=60, size=7)]
    second = column(["and the storm began then.|", *FILLER])
    text, places = prose(pages([*first[:5], first[-1]], second))
    assert "beside the lamp and and the storm began then.\n\n1 See the log of 1874.\n\nThe keeper" in text
    starts = {place.start: place.page for place in places}
    assert [starts[text.index(part)] for part in ("and the storm", "1 See", "The keeper wrote")] == [2, 1, 1]
    assert [place.page for place in places] == [1, 2, 1, 2]


def test_columns_that_the_file_goes_through_side_by_side() -> None:
    left = column(
        [
            "Anna came to the island in the", "spring of the year and she", "built the lamp there with her",
            "own two hands, alone, while the", "others slept until the end", "of the first winter of all.|",
        ],
        right=280,
    )  # fmt: skip
    right = column(
        [
            "Bruno was the keeper after her", "for nine years, and he wrote", "many letters to the mainland",
            "which nobody ever answered; he", "left in a boat that he", "had made from old doors.|",
        ],
        left=310,
        right=520,
    )  # fmt: skip
    mixed = [one for pair in zip(left, right, strict=True) for one in pair]
    assert text_of(mixed) == text_of([*left, *right])
    assert "she built the lamp there with her own two hands" in text_of(mixed)


def test_tables_stay_row_by_row() -> None:
    cells = [
        ("Name of the keeper", "Place of the birth"), ("Anna Berg of Oslo", "Bergen, in Norway"),
        ("Bruno Ek of Umeå", "Luleå, in Sweden"), ("Carl Lind of Visby", "Kalmar, in Sweden"),
        ("Dora Holm of Ystad", "Malmö, in Sweden"), ("Emil Falk of Lund", "Lund, in Sweden"),
    ]  # fmt: skip
    at = [(row, column) for row in range(len(cells)) for column in (0, 1)]
    rows = [line(cells[row][column], 72 + 228 * column, 700 - PITCH * row, gaps=1) for row, column in at]
    assert text_of(rows).split("\n") == [" ".join(pair) for pair in cells]


def test_running_heads_page_numbers_and_stamps_are_left_out_and_rows_of_numbers_are_not() -> None:
    def page(number: int, head: str) -> list[Line]:
        rows = [line(f"{number} 17 {90 + number}", bottom=70 + PITCH * row, gaps=2) for row in range(3)]
        return [
            line(f"{head}   {number}", bottom=760), *column([f"In {10 * chr(96 + number)}", *FILLER]), *rows,
            line(f"- {number} -", 290, 30),
            Line("stamp of the press", 10, 100, 16, 300, 6),
        ]  # fmt: skip

    book = [page(number, "The first winter" if number < 5 else "The second winter") for number in range(1, 10)]
    text = text_of(*book)
    assert "winter" not in text and "- 1 -" not in text and "stamp" not in text
    assert text.count("The keeper wrote") == 9
    assert all(f"{number} 17 {90 + number}" in text for number in range(1, 10))


def test_numbers_of_lines_are_left_out() -> None:
    spoken = [f"{row} and then the keeper said {chr(96 + row)} to all" for row in range(1, 26)]
    lines = column(spoken)
    assert not any(char.isdigit() for char in text_of(lines))
    apart = [line(str(row), 60, 700 - PITCH * (row - 1), right=68) for row in range(1, 26)]
    assert not any(char.isdigit() for char in text_of([*apart, *column(one.split(" ", 1)[1] for one in spoken)]))


def test_what_is_printed_twice_is_read_once_and_forms_are_plain() -> None:
    twice = [line("The ﬁrst ２０１１ ＡＢ，年报"), line("The ﬁrst ２０１１ ＡＢ，年报", left=72.4)]
    assert text_of(twice) == "The first 2011 AB，年报"
    assert text_of([line("Age\u02c6ncia Aviac\u00b8a\u02dco")]) == "Agência Aviação"


def test_chinese_lines_are_joined_without_a_space() -> None:
    assert (
        text_of(column(["灯塔建于一八七四年，由安娜", "主持修建。"], right=135))
        == "灯塔建于一八七四年，由安娜主持修建。"
    )


def test_the_outline_gives_headings() -> None:
    lines = [
        line("1. The lamp", size=14, bottom=730),
        *column(FILLER),
        line("2. The storm", size=14, bottom=600),
        *column(FILLER, top=580),
    ]
    marks = [Mark(1, 745, ("Part", "1 The lamp")), Mark(1, None, ("Part", "The storm"))]
    text, places = prose(pages(lines, column(FILLER)), marks)
    assert [(place.start, place.page, place.heading) for place in places] == [
        (0, 1, ("Part", "1 The lamp")),
        (text.index("2. The storm"), 1, ("Part", "The storm")),
        (text.rindex("The keeper"), 2, ("Part", "The storm")),
    ]
