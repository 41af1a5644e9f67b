"""Questions of ../shared/data answered in several modes and scored: `python -m bench.qa --sets xquad_en --limit 20`.

Means with 95 % bootstrap intervals, and each mode against `rag` on the same questions. Prints a table and one JSON
line: `{"sets": {set: {mode: {metric, mean, low, high, n, ...}, "memorag_minus_rag": {mean, low, high}}}, ...}`, in
points (0 to 100) of the set's metric. Memos and answers are kept in minimemo's folder: a run may be stopped at any
moment, goes on where it was, and costs nothing when it is run again. Each set begins with its smallest documents.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.answering import MODES, Runner
from bench.bootstrap import interval
from bench.measures import Row, summary
from bench.questions import DATA, Question, questions
from minimemo.errors import InputError, MinimemoError
from minimemo.memory.tiers import DEFAULT

SETS = "literaryqa,loogle,qmsum,squality,contracts,nq_long,xquad_en,xquad_zh,cmrc,drcd,vcsum"
# Tokens of an answer, by the question's type; others get --max-tokens.
ROOM = {"query-summary": 256, "gist": 256, "extractive-long": 160}
GUIDED = ("literaryqa", "loogle", "qmsum", "squality", "vcsum")  # where memory is meant to help; see `guided`
_GUIDED_TYPES = ("abstractive", "long-dependency", "query-summary", "gist")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 stopped before all was answered, 2 a mistake."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", default=SETS)
    parser.add_argument("--modes", default="closed,rag,memory,memorag", help=f"some of {','.join(MODES)}")
    parser.add_argument("--limit", type=int, default=20, help="questions a set")
    parser.add_argument("--docs", type=int, help="only about the so many smallest documents of each set")
    parser.add_argument("--minutes", type=float, help="stop then, between two answers; the same command goes on")
    parser.add_argument("--model")
    parser.add_argument("--embedder")
    parser.add_argument("--memory", default=DEFAULT)
    parser.add_argument("--max-tokens", type=int, default=64, help="of answers that are not long by their type")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, help="a JSONL file for every answer with its scores")
    parser.add_argument("--fresh", action="store_true", help="ask again what was asked before")
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    parser.add_argument("--show", action="store_true", help="each answer")
    options = parser.parse_args(argv)
    try:
        names, modes = options.sets.split(","), options.modes.split(",")
        if unknown := sorted(set(modes) - set(MODES)):
            raise InputError(f"--modes {','.join(unknown)}: known are {','.join(MODES)}")
        asked = {name: questions(options.data, name, options.limit, options.docs) for name in names}
        runner = Runner(options.data, options.model, options.embedder, options.memory, options.fresh)
        until = time.monotonic() + 60 * options.minutes if options.minutes else None
        found = answered(runner, asked, modes, options.max_tokens, until, options.out, options.show)
        told = {
            "model": runner.model.located.source,
            "memory": options.memory,
            "unanswered": sum(len(rows) for rows in asked.values()) - sum(len(rows) for rows in found.values()),
            "sets": {name: compared(rows) for name, rows in found.items() if rows},
            "guided": guided(found),
        }
    except MinimemoError as error:
        print(f"bench.qa: {error}", file=sys.stderr)
        return 2
    if not options.json:
        print_table(told)
    print(json.dumps(told))
    return 1 if told["unanswered"] else 0


def evaluate(
    runner: Runner, sets: Sequence[str], modes: Sequence[str], limit: int, max_tokens: int = 64
) -> dict[str, dict[str, Any]]:
    """set -> what `compared` tells of `limit` of its questions."""
    found = answered(runner, {name: questions(runner.data, name, limit) for name in sets}, modes, max_tokens)
    return {name: compared(rows) for name, rows in found.items()}


def answered(
    runner: Runner,
    asked: dict[str, list[Question]],
    modes: Sequence[str],
    max_tokens: int = 64,
    until: float | None = None,
    out: Path | None = None,
    show: bool = False,
) -> dict[str, list[dict[str, Row]]]:
    """set -> for each question that was answered in every mode: mode -> its row.

    Stops early at `until` (of the monotonic clock) or with Ctrl-C. `out` gets every row as it comes.
    """
    found: dict[str, list[dict[str, Row]]] = {name: [] for name in asked}
    with ExitStack() as stack:
        file = stack.enter_context(out.open("w", encoding="utf-8")) if out else None
        try:
            for name, question in in_order(runner.data, asked):
                rows: dict[str, Row] = {}
                # `gold` needs evidence; a question without it is compared in the other modes
                for mode in (m for m in modes if m != "gold" or question.evidence):
                    if until is not None and time.monotonic() >= until:
                        return found
                    room = max(max_tokens, ROOM.get(question.type, 0))
                    rows[mode] = row = Row(question, mode, runner.answer(question, mode, room))
                    if file:
                        print(json.dumps({"set": name, **row.told()}, ensure_ascii=False), file=file, flush=True)
                    if show:
                        print(f"[{mode}] {question.text}\n  {row.record['text']!r}\n  right: {question.answers}",
                              file=sys.stderr)  # fmt: skip
                found[name].append(rows)
        except KeyboardInterrupt:
            print("bench.qa: stopped; the same command goes on from here", file=sys.stderr)
    return found


def in_order(data: Path, asked: dict[str, list[Question]]) -> Iterator[tuple[str, Question]]:
    """Set by set, the smallest document first, all questions about a document together."""
    for name, rows in asked.items():
        sizes = {q.doc_id: (data / "docs" / f"{q.doc_id}.txt").stat().st_size for q in rows}
        for question in sorted(rows, key=lambda q: (sizes[q.doc_id], q.doc_id)):
            yield name, question


def compared(rows: Sequence[dict[str, Row]]) -> dict[str, Any]:
    """mode -> its summary, and each mode's gain over rag on the questions that both answered."""
    by_mode: dict[str, list[Row]] = defaultdict(list)
    for answers in rows:
        for mode, row in answers.items():
            by_mode[mode].append(row)
    told: dict[str, Any] = {mode: summary(answers) for mode, answers in by_mode.items()}
    for mode in by_mode:
        gains = [r[mode].points - r["rag"].points for r in rows if {mode, "rag"} <= r.keys()]
        if mode != "rag" and gains:
            told[f"{mode}_minus_rag"] = dict(zip(("mean", "low", "high"), interval(gains), strict=True))
    return told


def guided(found: dict[str, list[dict[str, Row]]]) -> dict[str, Any] | None:
    """memorag's gain over rag, the mean of the GUIDED sets (of loogle the long dependencies); None without any."""
    gains = {
        name: [
            row["memorag"].points - row["rag"].points
            for row in found.get(name, ())
            if {"memorag", "rag"} <= row.keys() and row["rag"].question.type in _GUIDED_TYPES
        ]
        for name in GUIDED
    }
    gains = {name: own for name, own in gains.items() if own}
    if not gains:
        return None
    return {"sets": list(gains), **dict(zip(("mean", "low", "high"), interval(*gains.values()), strict=True))}


def print_table(told: dict[str, Any]) -> None:
    print(f"{told['model']}, {told['memory']}, {told['unanswered']} questions left")
    heads = ("em", "evidence", "held", "shown", "cited", "s", "prompt", "reply")
    print(f"{'set':<11}{'mode':<8}{'metric':<8}{'n':>4}{'mean':>6}   95 %        " + "".join(f"{h:>9}" for h in heads))
    for name, modes in told["sets"].items():
        for mode, row in modes.items():
            at = f"{row['mean']:>6.1f} {row['low']:>6.1f} {row['high']:>6.1f}"
            if mode.endswith("_minus_rag"):
                print(f"{name:<11}{mode:<20}{at:>23}")
                continue
            cells = "".join(f"{'' if row[head] is None else format(row[head], '.2f'):>9}" for head in heads)
            print(f"{name:<11}{mode:<8}{row['metric']:<8}{row['n']:>4}{at}{cells}")
    if told["guided"]:
        print("memorag minus rag, mean of {sets}: {mean:.1f} ({low:.1f} to {high:.1f})".format(**told["guided"]))


if __name__ == "__main__":
    sys.exit(main())
