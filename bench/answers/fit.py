"""Weights of minimemo/ask/trust.toml, from answers that were judged.

    python -m bench.answers --sets everyday,unanswerable --mode rag --limit 999 --generator NAME --out answers.jsonl
    python -m bench.answers.fit answers.jsonl --part large

--part whole takes answers of --mode memorag, those from whole documents.

A logistic regression with a penalty on the squares of the weights, of answers that their questions leave nothing open
in. What it prints of its worth is by leaving out: an answer is judged by the weights that all other documents give.
Refused answers count by what they would have been. The bars are those of `bench.answers`, of the answers given here:
for limits in use (SURE and REFUSED of minimemo/ask/answer.py) and for others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.common.report import command, parser, show
from minimemo.ask.answer import REFUSED, SURE

PARTS = ("large", "whole", "small", "words")
PENALTY = 1.0
WORDS = ("held", "around", "figures", "named", "zh")
WRITER = ("around", "figures", "named", "zh", "margin", "stated")
WHOLE = ("zh", "margin", "stated", "same", "first")
SURES, REFUSALS = (0.55, 0.6, 0.65, 0.7), (0.25, 0.3, 0.33, 0.4, 0.45)
COLUMNS = (("figure", "<28"), ("n", "5"), ("share", "7.3f"))
BINS = (("from", "5.1f"), ("n", "5"), ("told", "7.3f"), ("right", "7.3f"))
BARS = (
    ("sure", "5.2f"), ("refused", "8.2f"), ("right", "7.1f"), ("right, doubted", "15.1f"), ("wrong, sure", "12.1f"),
    ("refuses wrongly", "16.1f"), ("says no", "8.1f"),
)  # fmt: skip
_Numbers = npt.NDArray[np.float64]
_Flags = npt.NDArray[np.bool_]


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser(__doc__, "bench.answers.fit")
    made.add_argument("answers", nargs="+", type=Path, help="JSONL of bench.answers --out")
    made.add_argument("--part", choices=PARTS, default="large", help="of trust.toml: what wrote the answers")
    return command(made.parse_args(arguments), "bench.answers.fit", _run)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    rows = [json.loads(line) for path in args.answers for line in path.open(encoding="utf-8")]
    names = {"words": WORDS, "whole": WHOLE}.get(args.part, WRITER)
    rows = [r for r in rows if "stated" in r.get("signals", ()) and ("same" in r["signals"]) == (names == WHOLE)]
    x = np.array([[1.0, *(row["signals"][name] for name in names)] for row in rows])
    y = np.array([row["right"] for row in rows], np.float64)
    is_open, said_none = (np.array([row["signals"][name] for row in rows], bool) for name in ("open", "refused"))
    asked = np.array([bool(row["expected"]) for row in rows])
    used = ~(is_open | said_none)
    weights = dict(zip(("bias", *names), fit(x[used], y[used]).round(2).tolist(), strict=True))
    print("\n".join([f"[{args.part}]", *(f"{name} = {weight}" for name, weight in weights.items())]), end="\n\n")
    chance = left_out(x, y, [row["doc_id"] for row in rows], used)
    sure, refused = chance >= SURE, chance < REFUSED
    figures = [
        {"figure": "area under the curve", "n": int(used.sum()), "share": area(chance[used], y[used])},
        {"figure": "right, of the sure", "n": int(sum(sure & used)), "share": float(y[sure & used].mean())},
        {"figure": "right, of the refused", "n": int(sum(refused & used)), "share": float(y[refused & used].mean())},
    ]
    show(COLUMNS, figures)
    edges = np.linspace(0, 1, 6)
    bins = [(low, used & (chance >= low) & (chance < high)) for low, high in pairwise(edges)]
    reliability = [
        {"from": float(low), "n": int(some.sum()), "told": float(chance[some].mean()), "right": float(y[some].mean())}
        for low, some in bins
        if some.any()
    ]
    show(BINS, reliability)
    table = [
        bars(chance, y > 0, asked, is_open, said_none, *pair) for pair in ((SURE, REFUSED), *product(SURES, REFUSALS))
    ]
    show(BARS, table)
    documents = len({row["doc_id"] for row in rows})
    return {"part": args.part, "weights": weights, "documents": documents, "figures": figures, "bars": table[0]}


def bars(
    chance: _Numbers, right: _Flags, asked: _Flags, is_open: _Flags, said_none: _Flags, sure: float, refused: float
) -> dict[str, float]:
    """Percentages of answers (n,) by their probability; right: the answer, given or not; asked: the document answers;
    is_open: of these none is refused, none sure; said_none: the writer itself refused."""
    no = said_none | ((chance < refused) & ~is_open)
    certain = ~no & ~is_open & (chance >= sure)
    return {
        "sure": sure,
        "refused": refused,
        "right": 100 * float((right & ~no)[asked].mean()),
        "right, doubted": 100 * float((right & ~no & ~certain)[asked].mean()),
        "wrong, sure": 100 * float((~right & certain).mean()),
        "refuses wrongly": 100 * float(no[asked].mean()),
        "says no": 100 * float(no[~asked].mean()) if not asked.all() else 0.0,
    }


def fit(x: _Numbers, y: _Numbers) -> _Numbers:
    """Weights (d,) of rows x (n, d), whose first column is 1, and labels y (n,) of 0 and 1, by Newton's method."""
    weights = np.zeros(x.shape[1])
    penalty = np.diag([1e-3, *[PENALTY] * (x.shape[1] - 1)])
    for _ in range(30):
        chance = 1 / (1 + np.exp(-x @ weights))
        curve = (x * (chance * (1 - chance))[:, None]).T @ x + penalty
        weights -= np.linalg.solve(curve, x.T @ (chance - y) + penalty @ weights)
    return weights


def left_out(x: _Numbers, y: _Numbers, documents: Sequence[str], used: _Flags) -> _Numbers:
    """The probability of each row by the weights that the rows `used` of all other documents give."""
    chance = np.empty(len(y))
    for document in set(documents):
        rows = np.array([other == document for other in documents])
        chance[rows] = 1 / (1 + np.exp(-x[rows] @ fit(x[~rows & used], y[~rows & used])))
    return chance


def area(chance: _Numbers, y: _Numbers) -> float:
    """How often a right answer has a higher probability than a wrong one."""
    right, wrong = chance[y > 0], chance[y == 0]
    return float(np.mean((right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)))


if __name__ == "__main__":
    sys.exit(main())
