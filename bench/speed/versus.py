"""Two checkouts of minimemo side by side: the same script measures both, in processes that take turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import minimemo
from bench.common.report import show
from bench.speed import turn
from minimemo.errors import InputError
from minimemo.files import cache_dir, models_dir, profiles_dir
from minimemo.memo.calibration_text import shipped_texts

FIGURES = ("prefill_tps", "decode_0_tps", f"decode_{turn.DEEP}_tps", "load_s", "first_ask_s", "warm_ask_s")
COLUMNS = (
    ("figure", "<16"), ("here", "10.3f"), ("there", "10.3f"), ("speed", "6.3f"), ("low", "6.3f"), ("high", "6.3f"),
    ("spread_here", "6.1%"), ("spread_there", "6.1%"),
)  # fmt: skip
CHARACTERS = 18_000  # of English: a view of 4,096 tokens is full


def compare(other: Path, model: str, embedder: str | None, document: Path | None, repeat: int) -> dict[str, Any]:
    """Measures this checkout ("here") and the one in `other` ("there"), `repeat` turns each, and prints a table.

    speed: how many times as quick this one is, of the medians; low, high: the same of turns that stood side by side;
    spread: the range of a tree's turns over their median. Raises InputError where the other tree has no interpreter.
    """
    theirs = other / ".venv" / "bin" / "python"
    if not theirs.exists():
        raise InputError(f"--vs {other}: no {theirs.relative_to(other)} there; make it: make -C {other} install")
    trees = {"here": Path(sys.executable), "there": theirs.absolute()}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as folder:
        if document is None:
            document = Path(folder) / "document.txt"
            document.write_text("\n\n".join(shipped_texts())[:CHARACTERS], encoding="utf-8")

        home = Path(folder) / "home"  # for both, so that neither moves the other's profiles
        home.mkdir()
        for shared in (models_dir(), cache_dir() / "converted", cache_dir() / "hashes", profiles_dir()):
            shared.mkdir(parents=True, exist_ok=True)
            (home / shared.name).symlink_to(shared)

        def run(what: str, name: str) -> str:
            print(f"{what} {name}", file=sys.stderr, flush=True)
            arguments = [model, embedder or "", str(document), f"{folder}/{name}.memo", str(torch.get_num_threads())]
            script = [str(trees[name]), "-I", turn.__file__, what, *arguments]
            env = {**os.environ, "MINIMEMO_HOME": str(home)}
            done = subprocess.run(script, cwd=folder, env=env, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise InputError(f"{what} with {trees[name]}: failed, see above")
            return done.stdout

        for name in trees:
            run("build", name)
        for number in range(repeat):
            for name in ("here", "there") if number % 2 == 0 else ("there", "here"):
                found[name].append(json.loads(run("measure", name).splitlines()[-1]))
    packages = {name: turns[0]["package"] for name, turns in found.items()}
    if packages["here"] != str(Path(minimemo.__file__).parent) or len(set(packages.values())) == 1:
        raise InputError(f"--vs {other}: the two interpreters import {packages}, not each its own tree")
    rows = [compared(figure, *found.values()) for figure in FIGURES]
    print(f"{packages['here']} against {packages['there']}, {repeat} turns each; speed: times as quick")
    show(COLUMNS, rows)
    return {"rows": rows, "turns": found}


def compared(figure: str, here: Sequence[dict[str, Any]], there: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def speed(a: float, b: float) -> float:
        return b / a if figure.endswith("_s") else a / b

    ours, theirs = ([one[figure] for one in turns] for turns in (here, there))
    ratios = list(map(speed, ours, theirs))
    a, b = statistics.median(ours), statistics.median(theirs)
    spreads = {"spread_here": (max(ours) - min(ours)) / a, "spread_there": (max(theirs) - min(theirs)) / b}
    row = {"figure": figure, "here": a, "there": b, "speed": speed(a, b)}
    return {**row, "low": min(ratios), "high": max(ratios), **spreads}
