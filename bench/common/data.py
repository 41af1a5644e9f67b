"""The documents, questions and needles of ../shared/data and ../shared/cases, or of any folders laid out as they are.

data: docs.jsonl, docs/<doc_id>.txt, qa/<set>.jsonl, needle/needles_<language>.jsonl, embed/<set>/
cases/everyday: questions.jsonl (`right`: a pattern of right answers, null where the file does not say), files/
bench/data: sets of this project's own about documents of data
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimemo.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared"
DATA, EVERYDAY = SHARED / "data", SHARED / "cases" / "everyday"
SETS = Path(__file__).resolve().parents[1] / "data"
GOLDEN = (5**0.5 - 1) / 2
HAY_SHARE = 0.5  # of a haystack's tokens at least: the rest are needles


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    doc_id: str
    text: str
    answers: tuple[str, ...]
    evidence: tuple[tuple[int, int], ...]  # characters of the document; empty where the set has none
    answer_span: tuple[int, int] | None = None
    type: str = "extractive"
    path: Path = Path()  # of the document
    why: str = ""  # it is hard, or has no answer: of sets of bench/data
    first: str = ""  # The question that this one follows up,
    first_answer: str = ""  # its answer,
    held: str = ""  # and what the passage that answers this one holds.


def questions(
    data: Path, name: str, limit: int, documents: int | None = None, everyday: Path = EVERYDAY
) -> list[Question]:
    """`limit` questions of a set, spread evenly over it, in its order; those of a smaller limit are among them.

    documents: only those about the set's so many smallest documents. Raises InputError for an unknown set.
    """
    if name == "everyday":
        rows = _everyday_rows(everyday)
    else:
        shipped, path = SETS / f"{name}.jsonl", data / "qa" / f"{name}.jsonl"
        if not (shipped.exists() or path.exists()):
            raise InputError(f"{path}: no such set")
        rows = read_rows(shipped if shipped.exists() else path)
    paths = {row["doc_id"]: row.get("path", data / "docs" / f"{row['doc_id']}.txt") for row in rows}
    if documents is not None:
        sizes = {doc: path.stat().st_size for doc, path in paths.items()}
        smallest = sorted(sizes, key=lambda doc: (sizes[doc], doc))[:documents]
        rows = [row for row in rows if row["doc_id"] in smallest]
    return spread_over([{**row, "path": paths[row["doc_id"]]} for row in rows], limit)


def spread_over(rows: Sequence[dict[str, Any]], limit: int) -> list[Question]:
    """`limit` of a set's rows, each with the `path` of its document, as questions."""
    spread = sorted(range(len(rows)), key=lambda at: at * GOLDEN % 1)  # every beginning of it covers the set evenly
    return [_question(rows[at]) for at in sorted(spread[:limit])]


def _question(row: dict[str, Any]) -> Question:
    spans = tuple((start, end) for start, end in row.get("evidence", ()))
    more: dict[str, Any] = {
        name: row[name] for name in ("type", "path", "why", "first", "first_answer", "held") if name in row
    }
    if "answer_span" in row:
        more["answer_span"] = tuple(row["answer_span"])
    return Question(row["id"], row["doc_id"], row["question"], tuple(row["answers"]), spans, **more)


def _everyday_rows(folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "id": f"everyday-{number}",
            "doc_id": row["file"],
            "question": row["question"],
            "answers": [] if row["right"] is None else [row["right"]],
            "type": "pattern",
            "path": folder / "files" / row["file"],
        }
        for number, row in enumerate(read_rows(folder / "questions.jsonl"))
    ]


def document_text(data: Path, doc_id: str, characters: int = -1) -> str:
    """A document, or its first characters, line ends as they are: offsets count through it. Raises InputError."""
    path = data / "docs" / f"{doc_id}.txt"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read(characters)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; choose from {path.parent}") from error


def needle_groups(data: Path, language: str) -> list[list[dict[str, Any]]]:
    """Needles that go in together, for one question each time."""
    path = data / "needle" / f"needles_{language}.jsonl"
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in read_rows(path) if path.exists() else ():
        groups[row.get("group", row["id"])].append(row)
    return list(groups.values())


def hide(hay: str, start: int, places: Sequence[int], needles: Sequence[str]) -> str:
    """hay from character `start` on, each needle a paragraph of its own at the last break before its place: never
    behind it, where a long paragraph would push it out of the memory."""
    parts = []
    for place, needle in zip(places, needles, strict=True):
        end = max(start, hay.rfind("\n", start, place) + 1)
        parts += [hay[start:end], needle, "\n\n"]
        start = end
    return "".join((*parts, hay[start:]))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. Raises InputError where there is none."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        how = "give --data or --cases FOLDER laid out so"
        raise InputError(f"{path}: cannot be read: {error.strerror}; {how}") from error
