"""Tables in plain text: under which header a passage begins, and the rows that a question names, with their columns.

Rows are those of Markdown, between bars, and of CSV with commas, semicolons, tabs or bars. A table ends where a line
has another number of fields.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minimemo.text.words import terms

LEAST_ROWS = 3  # below a header that no rule of Markdown marks as one
MOST_ROWS = 3  # that a question names; more are no answer to what it asks of one

_RULE = re.compile(r"\s*\|?(?:\s*:?-{2,}:?\s*\|)+(?:\s*:?-{2,}:?\s*)?\|?\s*")
_NAME = re.compile(r"(?=.*[^\W\d_])[^.!?。！？]{1,40}")  # of a column: no number, no sentence

_HOW_MANY = re.compile(
    r"\bhow\smany\s(?:different\s)?(\w+)|(?:多少|[几幾])[个個条條行位名笔筆份次]?(\w{1,4})", re.IGNORECASE
)
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
    lines = [(number, line) for number, text in enumerate(passages) for line in text.split("\n")]
    tables: list[Table] = []
    rows: list[tuple[int, list[str]]] = []
    table = None
    for at, (number, line) in enumerate(lines):
        if table and (fields := table.fields(line)):
            rows.append((number, fields))
        elif not (table and _RULE.fullmatch(line)):
            table = _begun([line for _, line in lines[at : at + 1 + LEAST_ROWS]])
            tables += [table] if table else []
    if len(tables) != 1:
        return None
    noun, header = set(terms(match[1] or match[2])), set(terms(tables[0].header))
    column = next((at for at, name in enumerate(tables[0].names) if noun & set(terms(name))), None)
    if column is None and not _ROWS.search(match[0]):
        return None
    held = [set(terms(" ".join(fields))) for _, fields in rows]
    sought = (set(terms(question)) - header - noun) & frozenset().union(*held)
    chosen = [row for row, words in zip(rows, held, strict=True) if sought <= words]
    values = {fields[column] for _, fields in chosen} if column else chosen
    return len(values), list(dict.fromkeys(number for number, _ in chosen))


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
