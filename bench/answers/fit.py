"""Weights of minimemo/ask/trust.toml, from answers that were judged.

    python -m bench.answers --sets everyday,unanswerable --mode rag --limit 999 --generator NAME --out answers.jsonl
    python -m bench.answers.fit answers.jsonl --part large

A logistic regression with a penalty on the squares of the weights. What it prints of its worth is by leaving out: an
answer is judged by the weights that all other documents give. Refused answers count by what they would have been.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.common.report import command, parser, show
from minimemo.ask.answer import REFUSED, SURE

PARTS = ("large", "small", "words")
PENALTY = 1.0
WORDS = ("held", "related", "asked", "named", "fits", "new")
COLUMNS = (("figure", "<28"), ("n", "5"), ("share", "7.3f"))
_Numbers = npt.NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser(__doc__, "bench.answers.fit")
    made.add_argument("answers", nargs="+", type=Path, help="JSONL of bench.answers --out")
    made.add_argument("--part", choices=PARTS, default="large", help="of trust.toml: what wrote the answers")
    return command(made.parse_args(arguments), "bench.answers.fit", _run)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    rows = [json.loads(line) for path in args.answers for line in path.open(encoding="utf-8")]
    rows = [row for row in rows if "likely" in row.get("signals", ())]
    names = WORDS if args.part == "words" else tuple(name for name in rows[0]["signals"] if name != "open")
    x = np.array([[1.0, *(row["signals"][name] for name in names)] for row in rows])
    y = np.array([row["right"] for row in rows], np.float64)
    weights = dict(zip(("bias", *names), fit(x, y).round(2).tolist(), strict=True))
    print("\n".join([f"[{args.part}]", *(f"{name} = {weight}" for name, weight in weights.items())]), end="\n\n")
    chance = left_out(x, y, [row["doc_id"] for row in rows])
    chance = np.where([row["signals"]["open"] > 0 for row in rows], np.minimum(chance, 0.5), chance)
    sure, refused = chance >= SURE, chance < REFUSED[args.part == "small"]
    figures = [
        {"figure": "area under the curve", "n": len(y), "share": area(chance, y)},
        {"figure": "right, of the sure", "n": int(sure.sum()), "share": float(y[sure].mean())},
        {"figure": "right, of the refused", "n": int(refused.sum()), "share": float(y[refused].mean())},
        {"figure": "sure, of the right", "n": int(y.sum()), "share": float(sure[y > 0].mean())},
        {"figure": "refused, of the wrong", "n": int((1 - y).sum()), "share": float(refused[y == 0].mean())},
    ]
    show(COLUMNS, figures)
    return {"part": args.part, "weights": weights, "documents": len({r["doc_id"] for r in rows}), "figures": figures}


def fit(x: _Numbers, y: _Numbers) -> _Numbers:
    """Weights (d,) of rows x (n, d), whose first column is 1, and labels y (n,) of 0 and 1, by Newton's method."""
    weights = np.zeros(x.shape[1])
    penalty = np.diag([1e-3, *[PENALTY] * (x.shape[1] - 1)])
    for _ in range(30):
        chance = 1 / (1 + np.exp(-x @ weights))
        curve = (x * (chance * (1 - chance))[:, None]).T @ x + penalty
        weights -= np.linalg.solve(curve, x.T @ (chance - y) + penalty @ weights)
    return weights


def left_out(x: _Numbers, y: _Numbers, documents: Sequence[str]) -> _Numbers:
    """The probability of each row by the weights that the rows of all other documents give."""
    chance = np.empty(len(y))
    for document in set(documents):
        rows = np.array([other == document for other in documents])
        chance[rows] = 1 / (1 + np.exp(-x[rows] @ fit(x[~rows], y[~rows])))
    return chance


def area(chance: _Numbers, y: _Numbers) -> float:
    """How often a right answer has a higher probability than a wrong one."""
    right, wrong = chance[y > 0], chance[y == 0]
    return float(np.mean((right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)))


if __name__ == "__main__":
    sys.exit(main())
