"""What is measured of an answer and of many: score, evidence, time and tokens."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from bench.answers.verdicts import JUDGED, is_right, verdict
from bench.common.data import Question
from bench.common.intervals import interval
from bench.common.scores import FREE, scores

WAYS = ("alone", "conversation")  # how a question that follows up another is asked
SEARCHED = ("rag", "memorag", "gist")  # modes whose passages were searched for


class Row:
    """One answer to one question in one mode."""

    def __init__(self, question: Question, mode: str, record: dict[str, Any]) -> None:
        self.question = question
        self.mode = mode
        self.record = record
        self.scores = scores(record["text"], question.answers, question.type)
        self.metric = "rouge_l" if question.type in FREE else "f1"

    @property
    def verdict(self) -> str:
        """Of a question that is judged by rules."""
        return verdict(self.question, self.record)

    @property
    def is_right(self) -> bool:
        """As `verdict` has it, doubted or not."""
        return self.verdict.startswith("right")

    @property
    def points(self) -> float:
        """0 to 100, by the main metric of the question's type."""
        return 100 * self.scores[self.metric]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able. `mode` is the one asked in; `gold` is answered as `rag` is."""
        q, record = self.question, self.record
        if not (q.type in JUDGED or q.first):
            return {**record, "mode": self.mode, "type": q.type, "answers": q.answers, "scores": self.scores}
        asked = {"mode": self.mode, "id": q.id, "doc_id": q.doc_id, "why": q.why, "question": q.text}
        asked |= {"expected": list(q.answers) or None, "seconds": record["seconds"]}
        if q.first:
            return {**asked, "first": q.first, **{name: record[name] for name in ("asked", *WAYS)}}
        places = [[p["start"], p["end"], p["cited"]] for p in record["passages"]]
        told = {"answer": record["text"], "verdict": self.verdict, "supported": record["supported"]}
        if signals := record.get("signals"):  # also of an answer that was not given for them
            right = bool(q.answers) and is_right(record["guess"] or record["text"], q)
            told |= {"guess": record["guess"], "signals": signals, "right": right, "confidence": record["confidence"]}
        return {**asked, **told, "passages": places}

    def evidence(self) -> float | None:
        """Share of the evidence's characters that stood in the prompt; None where that is not known."""
        passages = self.record["passages"] if self.mode in SEARCHED else ()
        return covered(self.question.evidence, passages) if passages else None


def covered(evidence: Iterable[tuple[int, int]], passages: Iterable[dict[str, Any]]) -> float | None:
    """Share of the evidence's characters that the passages hold, 0 to 1; None without evidence."""
    sought = {at for start, end in evidence for at in range(start, end)}
    held = {at for p in passages for at in range(p["start"], p["end"])}
    return len(sought & held) / len(sought) if sought else None


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Of one mode: points with their interval; em and f1 (0 to 1); the evidence shown (mean over the questions that
    have it); seconds (median), tokens (means)."""
    return {
        "metric": "/".join(sorted({row.metric for row in rows})),
        **interval([row.points for row in rows]),
        "n": len(rows),
        "em": statistics.fmean(row.scores["em"] for row in rows),
        "f1": statistics.fmean(row.scores["f1"] for row in rows),
        "evidence": _mean(row.evidence() for row in rows),
        "s": statistics.median(row.record["seconds"] for row in rows),
        "prompt": statistics.fmean(row.record["prompt_tokens"] for row in rows),
        "reply": statistics.fmean(row.record["generated_tokens"] for row in rows),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
