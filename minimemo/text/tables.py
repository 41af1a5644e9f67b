"""Tables in plain text: under which header a passage begins, and the rows that a question names, with their columns.

Rows are those of Markdown, between bars, and of CSV with commas, semicolons, tabs or bars. A table ends where a line
has another number of fields.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from minimemo.text.words import terms

LEAST_ROWS = 3  # below a header that no rule of Markdown marks as one
MOST_ROWS = 3  # that a question names; more are no answer to what it asks of one

_RULE = re.compile(r"\s*\|?(?:\s*:?-{2,}:?\s*\|)+(?:\s*:?-{2,}:?\s*)?\|?\s*")
_NAME = re.compile(r"(?=.*[^\W\d_])[^.!?。！？]{1,40}")  # of a column: no number, no sentence

_HOW_MANY = re.compile(
    r"\bhow\smany\s(?:different\s)?(\w+)|(?:多少|[几幾])[个個条條行位名笔筆份次]?(\w{1,4})", re.IGNORECASE
)
_EXTREME = re.compile(
    r"\b(?:(?P<price>most\sexpensive)|most|largest|biggest|greatest|highest|longest|heaviest|latest|newest|maximum"
    r"|(?P<least>(?P<cheap>cheapest)|least|fewest|smallest|lowest|shortest|lightest|earliest|minimum))\b",
    re.IGNORECASE,
)
_LISTS = re.compile(
    r"^\W*(?:please\s)?(?:list|name|enumerate)\s(?:me\s)?(?:all\s|every\s|each\s)?(?:of\s)?(?:the\s)?(?:different\s)?(\w+)"
    r"|^\W*which\s(\w+s)\s(?!(?:has|is)\b)",
    re.IGNORECASE,
)
# Words of a question that ask for rows, not for some of them.
_PLAIN = frozenset(
    """
    all amount any appear column contain contained data date different document entry every exist file given line list
    listed made make many name number order ordered place placed record recorded row sheet shown table text there total
    value
    """.split()  # noqa: SIM905
)
_Rows: TypeAlias = list[tuple[int, list[str]]]  # the passage that a row stands in, its fields
_ROWS = re.compile(r"\b(?:rows?|lines|entries|records|items)\b|[行条條]|记录|記錄", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Table:
    """The shape of a table: its header's line, what its fields are divided by, their names."""

    header: str
    delimiter: str
    names: tuple[str, ...]

    def fields(self, line: str) -> list[str]:
        """Splits a row; an empty list where the line is none of this table's."""
        fields = _fields(line, self.delimiter)
        return fields if len(fields) == len(self.names) else []


def headers(passages: Sequence[str]) -> list[str]:
    """Gives for each of a document's passages, in order, the header of the table that it begins inside of, or ""."""
    lines = [(number, line) for number, text in enumerate(passages) for line in text.split("\n")]
    plain = [line for _, line in lines]
    found = [""] * len(passages)
    table, before = None, -1
    for at, (number, line) in enumerate(lines):
        if table and (table.fields(line) or _RULE.fullmatch(line)):
            if number != before:
                found[number] = table.header
        else:
            table = _begun(plain[at : at + 1 + LEAST_ROWS])
        before = number
    return found


def named_rows(text: str, header: str, question: str) -> str:
    """Writes the rows that a question names, as "column: value" lines, from a passage that stands under a `header` or
    holds one; "" where it names none, or too many to mean one of them.

    A row is named by terms that few rows have and the header has not: by a number, a code, a name.
    """
    lines = [*([header] if header else []), *text.split("\n")]
    rows = list(_rows(lines))
    asked = set(terms(question)) - {term for table, _ in rows for term in terms(table.header)}
    held = [asked & set(terms(" ".join(fields))) for _, fields in rows]
    rarity = {term: 1 / sum(term in some for some in held) for some in held for term in some}
    weights = [sum(rarity[term] for term in some) for some in held]
    best = max(weights, default=0.0)
    chosen = [row for row, weight in zip(rows, weights, strict=True) if best and weight >= best - 1e-9]
    if len(chosen) > MOST_ROWS:
        return ""
    return "\n".join(
        "; ".join(f"{name}: {value}" for name, value in zip(table.names, fields, strict=True) if value)
        for table, fields in chosen
    )


def counted(passages: Sequence[str], question: str) -> tuple[int, list[int]] | None:
    """Counts in a document's only table what a question asks the number of, and names the passages that hold the rows;
    None where it asks for something else.

    "How many orders did Ann place?" counts the rows with "Ann", if the first column is named so; of another column, or
    "different" ones, each value counts once. "How many valves did she order?" is no count of rows.
    """
    if not (match := _HOW_MANY.search(question)):
        return None
    if not (told := _only_table(passages)):
        return None
    table, rows = told
    noun, header = set(terms(match[1] or match[2])), set(terms(table.header))
    column = next((at for at, name in enumerate(table.names) if noun & set(terms(name))), None)
    if column is None and not _ROWS.search(match[0]):
        return None
    chosen = _matching(rows, set(terms(question)) - header - noun - set(terms(match[0])))
    if chosen is None:
        return None
    values = {fields[column] for _, fields in chosen} if column else chosen
    return len(values), list(dict.fromkeys(number for number, _ in chosen))


def listed(passages: Sequence[str], question: str) -> tuple[str, list[int]] | None:
    """Lists from a document's only table what a question asks for all of, each value once, with the passages that hold
    the rows: "List all customers.", "Which orders did Ann Lee place?". None where it asks for something else."""
    if not (match := _LISTS.search(question)) or not (told := _only_table(passages)):
        return None
    table, rows = told
    noun, header = set(terms(match[1] or match[2])), set(terms(table.header))
    column = next((at for at, name in enumerate(table.names) if noun & set(terms(name))), None)
    chosen = _matching(rows, set(terms(question)) - header - noun - {"list"})
    if column is None or not chosen:
        return None
    values = list(dict.fromkeys(fields[column] for _, fields in chosen if fields[column]))
    return ", ".join(values), list(dict.fromkeys(number for number, _ in chosen))


def extreme(passages: Sequence[str], question: str) -> tuple[str, list[int]] | None:
    """Tells from a document's only table which row has the most or the least of what a question asks for, or how much
    that is, with the passages that hold it; None where it asks for something else.

    "Which order has the highest unit price?" gives that order, and its price; "What is the highest unit price?" the
    price. Words of the question that stand in fields ("order of Mina Sato") choose among the rows. The first column
    names the rows: "the most" of it would be a count.
    """
    if not (match := _EXTREME.search(question)) or not (told := _only_table(passages)):
        return None
    table, rows = told
    asked = set(terms(question.replace("'s", "")))
    named = [set(terms(name)) for name in table.names]
    chosen = _matching(rows, asked - {term for some in named for term in some} - set(terms(match[0])))
    if not chosen:
        return None
    after = asked & set(terms(question[match.start() :]))
    after |= {"price", "cost"} if (match["price"] or match["cheap"]) else set()
    values = {
        at: [_value(fields[at]) for _, fields in chosen] for at, words in enumerate(named) if at and words & after
    }
    columns = [at for at in values if values[at] and None not in values[at]]
    if len(columns) != 1:
        return None
    column = columns[0]
    best = (min if match["least"] else max)(value for value in values[column] if value is not None)
    best_rows = [row for row, value in zip(chosen, values[column], strict=True) if value == best]
    of = re.match(r"\W*(?:which|what)\s(\w+)", question, re.IGNORECASE)
    key = next((at for at, words in enumerate(named) if of and set(terms(of[1])) & words), None)
    if len(best_rows) > MOST_ROWS or (key is None and not re.match(r"\W*what\s(?:is|was)\b", question, re.IGNORECASE)):
        return None
    name = table.names[column]
    said = [
        f"{fields[key]} ({name}: {fields[column]})" if key is not None else fields[column] for _, fields in best_rows
    ]
    return ", ".join(dict.fromkeys(said)), list(dict.fromkeys(number for number, _ in best_rows))


def _matching(rows: _Rows, sought: set[str]) -> _Rows | None:
    """The rows that have all that is sought, less words that every question on a table may have; None where the table
    has not all of it: what else is asked is told otherwise, or nowhere. Pairs of Han characters are looked for where
    there are some."""
    held = [set(terms(" ".join(fields))) for _, fields in rows]
    everything = frozenset().union(*held)
    sought = {term for term in sought - _PLAIN if term.isascii() or term in everything}
    return [row for row, words in zip(rows, held, strict=True) if sought <= words] if sought <= everything else None


def _value(field: str) -> tuple[float, str] | None:
    """What a field is compared by, a number or a date; None where it is neither."""
    if re.fullmatch(r"\d{4}-\d\d(?:-\d\d)?", field):
        return 0.0, field
    number = re.fullmatch(r"[$€£¥]?\s?(-?\d+(?:\.\d+)?)\s?[%€]?", re.sub(r"(?<=\d),(?=\d{3}\b)", "", field))
    return (float(number[1]), "") if number else None


def _only_table(passages: Sequence[str]) -> tuple[Table, _Rows] | None:
    """A document's table and its rows, each with the passage that it stands in; None where it has none, or several."""
    lines = [(number, line) for number, text in enumerate(passages) for line in text.split("\n")]
    tables: list[Table] = []
    rows: _Rows = []
    table = None
    for at, (number, line) in enumerate(lines):
        if table and (fields := table.fields(line)):
            rows.append((number, fields))
        elif not (table and _RULE.fullmatch(line)):
            table = _begun([line for _, line in lines[at : at + 1 + LEAST_ROWS]])
            tables += [table] if table else []
    return (tables[0], rows) if len(tables) == 1 else None


def _rows(lines: Sequence[str]) -> Iterator[tuple[Table, list[str]]]:
    table = None
    for at, line in enumerate(lines):
        if table and (fields := table.fields(line)):
            yield table, fields
        elif not (table and _RULE.fullmatch(line)):
            table = _begun(lines[at : at + 1 + LEAST_ROWS], least=1 if at == 0 else LEAST_ROWS)


def _begun(lines: Sequence[str], least: int = LEAST_ROWS) -> Table | None:
    """The table that begins with the first of some lines."""
    if "|" in lines[0] and len(lines) > 1 and _RULE.fullmatch(lines[1]):
        return Table(lines[0], "|", tuple(_fields(lines[0], "|")))
    for delimiter in ",;\t|":
        names = _fields(lines[0], delimiter)
        if len(names) < 2 or not all(map(_NAME.fullmatch, names)) or len(lines) <= least:
            continue
        rows = [_fields(line, delimiter) for line in lines[1:]]
        if all(len(row) == len(names) for row in rows) and any(
            all(any(map(str.isdigit, field)) for field in column) for column in zip(*rows, strict=True)
        ):
            return Table(lines[0], delimiter, tuple(names))
    return None


def _fields(line: str, delimiter: str) -> list[str]:
    if delimiter not in line:
        return []
    if delimiter == "|":
        return [field.strip() for field in line.strip().removeprefix("|").removesuffix("|").split("|")]
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter, strict=True), [])]
    except csv.Error:
        return []
