"""Questions of ../shared/data answered in several modes and scored.

    python -m bench.answers --sets xquad_en --limit 20 --modes rag,memorag
    python -m bench.answers --sets everyday,unanswerable --mode memorag --limit 999 --generator qwen2.5-coder-1.5b

Means with 95 % bootstrap intervals, in points (0 to 100) of the set's metric, and each mode against `rag` on the same
questions. Memos and answers are kept in minimemo's cache folder: a run may be stopped at any moment, goes on where it
was, and costs nothing when it is run again. Each set begins with its smallest documents.

everyday (files and patterns of --cases), unanswerable (bench/data) and needles_4k to needles_150k (needles at 20 depths
of a haystack, bench/common/needles.py) are judged by rules instead, in percent: right, of that with doubt, wrong with
doubt and without, says no where the document does not say, refuses wrongly. followups (bench/data) is about retrieval:
how often a question that follows up another finds its passage, alone and after it; in mode search nobody writes, and
the first question has the answer that the set gives.

Exit codes: 0 done, 1 stopped before all was answered, 2 a mistake.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.answers.measures import SEARCHED, WAYS, Row, summary
from bench.answers.runner import MODES, Runner
from bench.answers.verdicts import JUDGED, cites, figures
from bench.common.data import DATA, EVERYDAY, Question, questions
from bench.common.intervals import interval
from bench.common.needles import needle_questions
from bench.common.report import command, parser, show
from minimemo.errors import InputError
from minimemo.memory.tiers import DEFAULT, TIERS

SETS = "literaryqa,loogle,qmsum,squality,contracts,nq_long,xquad_en,xquad_zh,cmrc,drcd,vcsum,everyday,unanswerable"
# Tokens of an answer, by the question's type; others get --max-tokens.
ROOM = {"query-summary": 256, "gist": 256, "extractive-long": 160}
COLUMNS = (
    ("set", "<11"), ("mode", "<17"), ("metric", "<10"), ("n", "4"), ("mean", "6.1f"), ("low", "6.1f"),
    ("high", "6.1f"), ("em", "5.2f"), ("evidence", "5.2f"), ("s", "6.2f"), ("prompt", "6.0f"), ("reply", "6.0f"),
)  # fmt: skip
JUDGED_COLUMNS = (
    ("set", "<12"), ("mode", "<17"), ("figure", "<24"), ("n", "4"), ("mean", "6.1f"), ("low", "6.1f"),
    ("high", "6.1f"), ("s", "6.2f"),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser(__doc__, "bench.answers")
    made.add_argument("--sets", default=SETS)
    made.add_argument("--modes", "--mode", default="closed,rag,memory,memorag", help=f"some of {','.join(MODES)}")
    made.add_argument("--limit", type=int, default=20, help="questions a set")
    made.add_argument("--docs", type=int, help="only about the so many smallest documents of each set")
    made.add_argument("--model", help="name in the catalogue, .gguf file or directory (default: the catalogue's)")
    made.add_argument("--generator", help="a second model, that writes the answers")
    made.add_argument("--embedder")
    made.add_argument("--memory", choices=TIERS, default=DEFAULT)
    made.add_argument("--max-tokens", type=int, default=64, help="of answers that are not long by their type")
    made.add_argument("--data", type=Path, default=DATA)
    made.add_argument("--cases", type=Path, default=EVERYDAY, help="of the set everyday")
    made.add_argument("--out", type=Path, help="a JSONL file for every answer with its scores")
    made.add_argument("--fresh", action="store_true", help="ask again what was asked before")
    return command(made.parse_args(arguments), "bench.answers", _run)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    names, modes = args.sets.split(","), args.modes.split(",")
    if unknown := sorted(set(modes) - set(MODES)):
        raise InputError(f"--modes {','.join(unknown)}: unknown; choose from {','.join(MODES)}")
    asked = {
        name: needle_questions(args.data, name, args.limit)
        or questions(args.data, name, args.limit, args.docs, args.cases)
        for name in names
    }
    runner = Runner(args.model, args.embedder, args.memory, args.fresh, args.generator)
    answered = answer_all(runner, asked, modes, args.max_tokens, args.out)
    tables = {name: TABLES.get(rows[0].type, compared) for name, rows in asked.items() if rows}
    sets = {name: tables[name](rows) for name, rows in answered.items() if rows}
    flat = [(name, {"set": name, "mode": mode}, each) for name in sets for mode, each in sets[name].items()]
    show(COLUMNS, [{**of, **row} for name, of, row in flat if tables[name] is compared])
    show(JUDGED_COLUMNS, [{**of, **row} for name, of, rows in flat if tables[name] is not compared for row in rows])
    left = sum(map(len, asked.values())) - sum(map(len, answered.values()))
    return {"model": runner.model.located.source, "memory": args.memory, "unanswered": left, "sets": sets}


def answer_all(
    runner: Runner,
    asked: dict[str, list[Question]],
    modes: Sequence[str],
    max_tokens: int = 64,
    out: Path | None = None,
) -> dict[str, list[dict[str, Row]]]:
    """set -> for each question that was answered in every mode: mode -> its row.

    Stops early with Ctrl-C. `out` gets every row as it comes.
    """
    answered: dict[str, list[dict[str, Row]]] = {name: [] for name in asked}
    with ExitStack() as stack:
        file = stack.enter_context(out.open("w", encoding="utf-8")) if out else None
        try:
            for name, question in in_order(asked):
                rows: dict[str, Row] = {}
                # `gold` needs evidence; a question without it is compared in the other modes
                unfit = {"search"} if question.evidence else {"search", "gold"}
                fit = {"search", *SEARCHED} if question.first else set(modes) - unfit
                for mode in (m for m in modes if m in fit):
                    room = max(max_tokens, ROOM.get(question.type, 0))
                    rows[mode] = row = Row(question, mode, runner.answer(question, mode, room))
                    if file:
                        print(json.dumps({"set": name, **row.as_dict()}, ensure_ascii=False), file=file, flush=True)
                answered[name].append(rows)
        except KeyboardInterrupt:
            print("bench.answers: stopped; the same command goes on from here", file=sys.stderr)
    return answered


def in_order(asked: dict[str, list[Question]]) -> Iterator[tuple[str, Question]]:
    """Set by set, the smallest document first, all questions about a document together."""
    for name, rows in asked.items():
        for question in sorted(rows, key=lambda q: (q.path.stat().st_size, q.doc_id)):
            yield name, question


def by_mode(rows: Sequence[dict[str, Row]]) -> dict[str, list[Row]]:
    table: dict[str, list[Row]] = defaultdict(list)
    for answers in rows:
        for mode, row in answers.items():
            table[mode].append(row)
    return table


def verdicts(rows: Sequence[dict[str, Row]]) -> dict[str, list[dict[str, Any]]]:
    """mode -> its figures (see `figures`), and what each mode gains over rag in right answers."""
    table: dict[str, list[dict[str, Any]]] = {}
    for mode, judged in by_mode(rows).items():
        table[mode] = figures([(row.question, row.verdict, row.record["seconds"], cites(row.record)) for row in judged])
        pairs = [(r[mode], r["rag"]) for r in rows if {mode, "rag"} <= r.keys() and r[mode].question.answers]
        if mode != "rag" and pairs:
            gains = [100.0 * (one.is_right - rag.is_right) for one, rag in pairs]
            table[f"{mode}_minus_rag"] = [{"figure": "right", "n": len(gains), **interval(gains)}]
    return table


def followed(rows: Sequence[dict[str, Row]]) -> dict[str, list[dict[str, Any]]]:
    """mode -> for how many of the follow-ups, and of the questions that stand alone, the right passage is retrieved."""
    table: dict[str, list[dict[str, Any]]] = {}
    for mode, some in by_mode(rows).items():
        records = [(row.question.why == "alone", row.record) for row in some]
        for kind, alone in (("follow-ups", False), ("others", True)):
            for way in WAYS:
                hits = [100.0 * record[way] for each, record in records if each == alone]
                if hits:
                    seconds = statistics.median(record[f"{way}_s"] for each, record in records if each == alone)
                    row = {"figure": f"{kind}, {way}", "n": len(hits), **interval(hits), "s": seconds}
                    table.setdefault(mode, []).append(row)
    return table


TABLES = {**dict.fromkeys(JUDGED, verdicts), "followup": followed}  # by the type of questions; others are `compared`


def compared(rows: Sequence[dict[str, Row]]) -> dict[str, Any]:
    """mode -> its summary, and each mode's gain over rag on the questions that both answered."""
    table: dict[str, Any] = {mode: summary(answers) for mode, answers in by_mode(rows).items()}
    for mode in [*table]:
        gains = [r[mode].points - r["rag"].points for r in rows if {mode, "rag"} <= r.keys()]
        if mode != "rag" and gains:
            table[f"{mode}_minus_rag"] = interval(gains)
    return table


if __name__ == "__main__":
    sys.exit(main())
