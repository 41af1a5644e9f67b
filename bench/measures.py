"""What is told of an answer and of many: score, evidence, citations, time and tokens."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.bootstrap import interval
from bench.questions import Question
from bench.scores import MAIN, scores, units
from minimemo.ask import PROMPTS
from minimemo.ask.answer import is_refusal

_SHOWN = ("rag", "gold_clue", "memorag", "gist")  # modes whose passages were searched for


class Row:
    """One answer to one question in one mode."""

    def __init__(self, question: Question, mode: str, record: dict[str, Any]) -> None:
        self.question = question
        self.mode = mode
        self.record = record
        self.scores = scores(record["text"], question.answers, question.type)
        self.metric = MAIN.get(question.type, "f1")

    @property
    def points(self) -> float:
        """0 to 100, by the main metric of the question's type."""
        return 100 * self.scores[self.metric]

    def told(self) -> dict[str, Any]:
        """JSON-able. `mode` is the one asked in; `gold` is answered as `rag` is."""
        q = self.question
        return {**self.record, "mode": self.mode, "type": q.type, "answers": q.answers, "scores": self.scores}

    def searched(self) -> bool:
        return self.mode in _SHOWN and bool(self.record["passages"])

    def evidence(self) -> float | None:
        """Share of the evidence's characters that stood in the prompt; None where that is not known."""
        return covered(self.question.evidence, self.record["passages"]) if self.searched() else None

    def held(self) -> float | None:
        """Whether the whole answer stood in the prompt, by its place; None where the set does not tell it."""
        span = self.question.answer_span
        if span is None or not self.searched():
            return None
        return float(covered([span], self.record["passages"]) == 1)

    def shown(self) -> float | None:
        """Whether a passage of an answered extractive question has a right answer's words; None for others."""
        return self._holds(lambda passage: True)

    def cited(self) -> float | None:
        """The same of the passages that are cited."""
        return self._holds(lambda passage: bool(passage["cited"]))

    def _holds(self, wanted: Callable[[dict[str, Any]], bool]) -> float | None:
        if not self.searched() or self.question.type != "extractive" or self._refused():
            return None
        texts = [_flat(p["text"]) for p in self.record["passages"] if wanted(p)]
        return float(any(_flat(answer) in text for answer in self.question.answers for text in texts))

    def _refused(self) -> bool:
        return any(is_refusal(self.record["text"], prompts.not_found) for prompts in PROMPTS.values())


def covered(evidence: Iterable[tuple[int, int]], passages: Iterable[dict[str, Any]]) -> float | None:
    """Share of the evidence's characters that the passages hold, 0 to 1; None without evidence."""
    wanted = {at for start, end in evidence for at in range(start, end)}
    held = {at for p in passages for at in range(p["start"], p["end"])}
    return len(wanted & held) / len(wanted) if wanted else None


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Of one mode: points with their interval, and the mean by type where there are several; beside them em and f1
    (0 to 1), what `Row` tells (means over the questions that it is known of), seconds (median), tokens (means)."""
    mean, low, high = interval([row.points for row in rows])
    types: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        types[row.question.type].append(row)
    by_type = {
        kind: {"metric": some[0].metric, "mean": statistics.fmean(row.points for row in some), "n": len(some)}
        for kind, some in types.items()
    }
    return {
        "metric": "/".join(sorted({row.metric for row in rows})),
        "mean": mean,
        "low": low,
        "high": high,
        "n": len(rows),
        **({"types": by_type} if len(by_type) > 1 else {}),
        "em": statistics.fmean(row.scores["em"] for row in rows),
        "f1": statistics.fmean(row.scores["f1"] for row in rows),
        "evidence": _mean(row.evidence() for row in rows),
        "held": _mean(row.held() for row in rows),
        "shown": _mean(row.shown() for row in rows),
        "cited": _mean(row.cited() for row in rows),
        "s": statistics.median(row.record["seconds"] for row in rows),
        "prompt": statistics.fmean(row.record["prompt_tokens"] for row in rows),
        "reply": statistics.fmean(row.record["generated_tokens"] for row in rows),
        "prefilled": statistics.fmean(row.record["prefilled_tokens"] for row in rows),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _flat(text: str) -> str:
    """Units with single spaces around each, so that whole words are looked for."""
    return f" {' '.join(units(text))} "
