"""The question sets of ../shared/data, or of any folder laid out as it is: `docs/<doc_id>.txt`, `qa/<set>.jsonl`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from minimemo.errors import InputError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    doc_id: str
    text: str
    answers: tuple[str, ...]
    evidence: tuple[tuple[int, int], ...]  # characters of the document; empty where the set has none
    answer_span: tuple[int, int] | None = None
    type: str = "extractive"
    lang: str = "en"


def questions(data: Path, name: str, limit: int, documents: int | None = None) -> list[Question]:
    """`limit` questions of a set, spread evenly over it, in its order; those of a smaller limit are among them.

    documents: only those about the set's so many smallest documents. Raises InputError for an unknown set.
    """
    path = data / "qa" / f"{name}.jsonl"
    if not path.exists():
        raise InputError(f"{path}: no such set")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if documents is not None:
        sizes = {row["doc_id"]: (data / "docs" / f"{row['doc_id']}.txt").stat().st_size for row in rows}
        smallest = sorted(sizes, key=lambda doc: (sizes[doc], doc))[:documents]
        rows = [row for row in rows if row["doc_id"] in smallest]
    spread = sorted(range(len(rows)), key=lambda at: at * GOLDEN % 1)  # every beginning of it covers the set evenly
    return [
        Question(
            r["id"],
            r["doc_id"],
            r["question"],
            tuple(r["answers"]),
            tuple((start, end) for start, end in r.get("evidence", ())),
            (r["answer_span"][0], r["answer_span"][1]) if "answer_span" in r else None,
            r.get("type", "extractive"),
            r.get("lang", "en"),
        )
        for r in (rows[at] for at in sorted(spread[:limit]))
    ]


def read_document(data: Path, doc_id: str) -> str:
    """Its text, line ends as they are: offsets count through it."""
    return (data / "docs" / f"{doc_id}.txt").read_bytes().decode()
