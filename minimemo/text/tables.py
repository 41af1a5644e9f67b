"""Tables in plain text: under which header a passage begins, the rows that a question names, with their columns, and
all tables with all their rows.

Rows are those of Markdown, between bars, and of CSV with commas, semicolons, tabs or bars. A table ends where a line
has another number of fields.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minimemo.text.words import terms

LEAST_ROWS = 3  # below a header that no rule of Markdown marks as one
MOST_ROWS = 3  # that a question names; more are no answer to what it asks of one

_RULE = re.compile(r"\s*\|?(?:\s*:?-{2,}:?\s*\|)+(?:\s*:?-{2,}:?\s*)?\|?\s*")
_NAME = re.compile(r"(?=.*[^\W\d_])[^.!?。！？]{1,40}")  # of a column: no number, no sentence

_GAP = re.compile(r"\t+| {2,}")  # between columns that are aligned
_FIELD = re.compile(r"\S+(?: \S+)*")
_LINE = re.compile(r"[\s=_-]*[=_-]{3}[\s=_-]*")  # drawn under a header, above a total


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


@dataclass(frozen=True, slots=True)
class Grid:
    """A whole table: the names of its columns, its rows with as many fields each, where those stand in the text, and
    the line above it."""

    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    spans: tuple[tuple[int, int], ...]
    title: str = ""


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


def grids(text: str) -> list[Grid]:
    """Gives the tables of a text that are whole: none that goes on with a line of another shape, as one does whose rows
    have too few fields."""
    lines = [(match.start(), match[0].rstrip()) for match in re.finditer(r"[^\n]+|(?<=\n)(?=\n)|^(?=\n)", text)]
    plain = [line for _, line in lines]
    found: list[Grid] = []
    at, title = 0, ""
    while at < len(lines):
        table = _begun(plain[at : at + 1 + LEAST_ROWS])
        if table is None:
            rows, past = _aligned(plain, at)
            if rows:
                spans = tuple((lines[n][0], lines[n][0] + len(plain[n])) for n, _ in rows[1:])
                found.append(Grid(rows[0][1], tuple(fields for _, fields in rows[1:]), spans, title))
            title = plain[at] if plain[at].strip() and not rows else title
            at = max(past, at + 1)
            continue
        kept: list[tuple[int, list[str]]] = []
        at += 1
        while at < len(lines):
            if fields := table.fields(plain[at]):
                if not _RULE.fullmatch(plain[at]):
                    kept.append((at, fields))
            elif plain[at].strip() or not _goes_on(table, plain[at + 1 : at + 2 + LEAST_ROWS]):
                break
            at += 1
        left = plain[at].count(table.delimiter) if at < len(lines) else 0
        if not left or (table.delimiter != "|" and 2 * left < len(table.names) - 1):
            spans = tuple((lines[n][0], lines[n][0] + len(plain[n])) for n, _ in kept)
            found.append(Grid(table.names, tuple(tuple(fields) for _, fields in kept), spans, title))
    return found


def _goes_on(table: Table, lines: Sequence[str]) -> bool:
    """Whether a table goes on behind an empty line, and no other begins there."""
    return bool(lines and table.fields(lines[0])) and not _begun(lines)


def _aligned(lines: Sequence[str], at: int) -> tuple[list[tuple[int, tuple[str, ...]]], int]:
    """The numbers and fields of the lines of a table that begins here and whose columns are divided by tabs or by two
    spaces and more, its header first, and the line behind it; nothing where a line of the paragraph has another number
    of fields, or a column is aligned neither on its left nor on its right."""
    names = tuple(_GAP.split(lines[at].strip()))
    if len(names) < 2 or not all(_NAME.fullmatch(name) and not re.search(r"\d|:", name) for name in names):
        return [], at
    past = at + 1
    while past < len(lines) and lines[past].strip() and not (past > at + 1 and _LINE.fullmatch(lines[past])):
        past += 1
    body = [number for number in range(at + 1, past) if not _LINE.fullmatch(lines[number])]
    rows = [tuple(_GAP.split(lines[number].strip())) for number in body]
    if len(rows) < LEAST_ROWS or any(len(row) != len(names) for row in rows):
        return [], at
    if not any(all(any(map(str.isdigit, field)) for field in column) for column in zip(*rows, strict=True)):
        return [], at
    places = [[(_width(line, m.start()), _width(line, m.end())) for m in _FIELD.finditer(line)] for line in
              (lines[number] for number in body)]  # fmt: skip
    if not any("\t" in lines[number] for number in body):
        for column in zip(*places, strict=True):
            if len({start for start, _ in column}) > 1 and len({end for _, end in column}) > 1:
                return [], at
    return [(at, names), *zip(body, rows, strict=True)], past


def _width(line: str, end: int) -> int:
    """How far to the right a place of a line stands; a Han character is two columns wide."""
    return end + sum(unicodedata.east_asian_width(char) in "WF" for char in line[:end])


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
