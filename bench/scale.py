"""How does a library of thousands of memos grow? The bookkeeping alone: no model runs, vectors are synthetic.

    python -m bench.scale --memos 100,1000,10000

Each memo has a manifest and a vector index of unit vectors of the default embedder's length. Seconds and milliseconds
are of the processor, but for list_s: other work on the machine does not count. first_s: to make the library's index;
open_s: until it is there in a new process, with every memo looked at for changes; rss_mb: that process's peak in the
end, torch included; pick_ms, p95_ms: a question's documents, median and 95th percentile; add_ms: an open library takes
one more memo in; rm_ms: one is deleted; list_s: `minimemo list` as a command; store_mb: the index on disk; recall:
share of questions, passages with noise, whose own document comes first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench.common.machine import peak_rss_bytes
from bench.common.report import command, heading, line, numbers, parser, positive
from minimemo.files import memos_dir, store_file
from minimemo.memo.library import StoreIndex, remember, remove
from minimemo.memo.manifest import DocumentInfo, FileInfo, Manifest, ModelInfo, Recipe
from minimemo.search.store import numbers_file
from minimemo.search.vectors import VectorIndex

COLUMNS = (
    ("memos", "<7"), ("passages", "9"), ("first_s", "8.2f"), ("open_s", "7.2f"), ("rss_mb", "7.0f"),
    ("pick_ms", "8.1f"), ("p95_ms", "7.1f"), ("add_ms", "7.1f"), ("rm_ms", "6.1f"), ("list_s", "7.2f"),
    ("store_mb", "9.1f"), ("recall", "7.3f"),
)  # fmt: skip
DIM, QUESTIONS, MODELS = 384, 100, ("model", "embedder")


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser(__doc__, "bench.scale")
    made.add_argument("--memos", type=numbers, default=[100, 1000, 10000], help="one row for each number")
    made.add_argument("--passages", type=positive, default=5, help="of each memo")
    made.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return command(made.parse_args(arguments), "bench.scale", _run)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if args.inside:
        return _inside(args.inside)
    heading(COLUMNS)
    rows = []
    for count in args.memos:
        with TemporaryDirectory(prefix="minimemo-scale-") as folder:
            rows.append(_row(Path(folder), count, args.passages))
        line(COLUMNS, rows[-1])
    return {"rows": rows}


def _row(folder: Path, count: int, passages: int) -> dict[str, Any]:
    os.environ["MINIMEMO_HOME"] = str(folder / "home")
    random = np.random.default_rng(7)
    asked = []
    for number in range(count):
        vectors = _memo(folder / f"{number}.memo", random, passages)
        if number % max(1, count // QUESTIONS) == 0:
            asked.append((number, vectors[number % passages]))
    queries = np.array([vector for _, vector in asked]) + random.normal(0, 0.02, (len(asked), DIM)).astype(np.float32)
    np.save(folder / "queries.npy", queries)
    (folder / "answers.json").write_text(json.dumps([number for number, _ in asked]))
    begin = time.process_time()
    StoreIndex(store_file())
    first = time.process_time() - begin
    inside = [sys.executable, "-m", "bench.scale", "--inside", str(folder)]
    told = json.loads(subprocess.run(inside, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "minimemo", "list"], check=True, stdout=subprocess.DEVNULL)
    listed = time.perf_counter() - begin
    size = store_file().stat().st_size + numbers_file(store_file()).stat().st_size
    row = {"memos": count, "passages": count * passages, "first_s": first, "list_s": listed, "store_mb": size / 1e6}
    return {**row, **{name: told[name] for name, _ in COLUMNS if name in told}}


def _inside(folder: Path) -> dict[str, Any]:
    """What one process sees that opens the library, asks, adds and deletes."""
    queries, answers = np.load(folder / "queries.npy"), json.loads((folder / "answers.json").read_text())
    begin = time.process_time()
    index = StoreIndex(store_file())
    opened = time.process_time() - begin
    took, right = [], 0
    for query, answer in zip(queries, answers, strict=True):
        begin = time.process_time()
        picked = index.pick(query, *MODELS, 4)
        took.append(time.process_time() - begin)
        right += picked[0].name == f"{answer}.memo"
    random = np.random.default_rng(8)
    added, removed = [], []
    for number in range(5):
        _memo(folder / f"new{number}.memo", random, 5)
        begin = time.process_time()
        remember(folder / f"new{number}.memo")
        index.refresh()
        added.append(time.process_time() - begin)
    for number in range(5):
        begin = time.process_time()
        remove(folder / f"new{number}.memo")
        removed.append(time.process_time() - begin)
    return {
        "open_s": opened, "rss_mb": peak_rss_bytes() / 1e6, "pick_ms": 1e3 * float(np.median(took)),
        "p95_ms": 1e3 * float(np.quantile(took, 0.95)), "add_ms": 1e3 * float(np.median(added)),
        "rm_ms": 1e3 * float(np.median(removed)), "recall": right / len(answers),
    }  # fmt: skip


def _memo(folder: Path, random: np.random.Generator, passages: int) -> np.ndarray:
    """A memo as far as the library looks at it; its note is written without the care that thousands would wait for."""
    vectors = random.normal(size=(passages, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    folder.mkdir()
    Manifest(
        DocumentInfo(f"{folder.stem}.txt", "", 1, 1, "en"), ModelInfo("m", MODELS[0]), ModelInfo("e", MODELS[1]),
        Recipe("", *MODELS, "int4", {}, "", 192, 0),
        dict.fromkeys(("memory.bin", "index.bin", "chunks.json"), FileInfo(0, "")),
    ).save(folder)  # fmt: skip
    VectorIndex.build(vectors).save(folder / "index.bin")
    memos_dir().mkdir(parents=True, exist_ok=True)
    name = os.fsencode(folder)
    (memos_dir() / hashlib.sha256(name).hexdigest()[:24]).write_bytes(name)
    return vectors


if __name__ == "__main__":
    sys.exit(main())
