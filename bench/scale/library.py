"""How the library grows: memos with a manifest and synthetic unit vectors; no model runs."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench.common.machine import peak_rss_bytes
from minimemo.files import store_file, words_file
from minimemo.memo.library import StoreIndex, remove
from minimemo.memo.manifest import DocumentInfo, FileInfo, Manifest, ModelInfo, Recipe
from minimemo.memo.registry import list_file, remember, remember_all
from minimemo.search.numbers import numbers_file
from minimemo.search.vectors import VectorIndex

COLUMNS = (
    ("memos", "<7"), ("passages", "9"), ("first_s", "8.2f"), ("open_s", "7.2f"), ("rss_mb", "7.0f"),
    ("pick_ms", "8.1f"), ("p95_ms", "7.1f"), ("add_ms", "7.1f"), ("rm_ms", "6.1f"), ("list_s", "7.2f"),
    ("list_wall_s", "12.2f"), ("disk_mb", "8.1f"), ("recall", "7.3f"),
)  # fmt: skip
DIM, QUESTIONS, MODELS = 384, 100, ("model", "embedder")
_INSIDE = "import sys; from bench.scale.library import inside; inside(sys.argv[1])"
_WORDS = 120  # of a passage
_FEW = 5  # memos that are added, and deleted, one by one


def row(count: int, passages: int) -> dict[str, Any]:
    """The figures of a library of `count` memos; see the command's help."""
    with TemporaryDirectory(prefix="minimemo-scale-") as name:
        folder = Path(name)
        os.environ["MINIMEMO_HOME"] = str(folder / "home")
        random = np.random.default_rng(7)
        asked = []
        for number in range(count):
            vectors = memo(folder / f"{number}.memo", unit(random, passages))
            if number % max(1, count // QUESTIONS) == 0:
                asked.append((number, vectors[number % passages]))
        remember_all([folder / f"{number}.memo" for number in range(count)])
        noise = random.normal(0, 0.02, (len(asked), DIM)).astype(np.float32)
        np.save(folder / "queries.npy", np.array([vector for _, vector in asked]) + noise)
        (folder / "answers.json").write_text(json.dumps([number for number, _ in asked]))
        begun = time.process_time()
        StoreIndex(store_file())
        first = time.process_time() - begun
        inside = [sys.executable, "-c", _INSIDE, name]
        told = json.loads(subprocess.run(inside, check=True, stdout=subprocess.PIPE).stdout)
        listed, wall = command_seconds("list")
        tables = (store_file(), words_file())
        files = (*tables, *map(numbers_file, tables), list_file())
        disk = sum(file.stat().st_size for file in files) / 1e6
        sizes = {"memos": count, "passages": count * passages, "disk_mb": disk}
        return {**sizes, "first_s": first, "list_s": listed, "list_wall_s": wall, **told}


def command_seconds(*words: str) -> tuple[float, float]:
    """Seconds of the processor, and on the wall, that a command takes, Python's start included; the least of three. Its
    modules are compiled before, as those of an installed package are, whatever PYTHONDONTWRITEBYTECODE says."""
    taken = []
    compiled = Path(os.environ["MINIMEMO_HOME"]) / "compiled"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(compiled)}
    called = [sys.executable, "-m", "minimemo", *words]
    for _ in range(3):
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(called, check=True, stdout=subprocess.DEVNULL, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        taken.append((own, time.perf_counter() - begun))
    return min(own for own, _ in taken), min(wall for _, wall in taken)


def inside(name: str) -> None:
    """Prints what one process sees that opens the library, asks, adds and deletes."""
    folder = Path(name)
    queries, answers = np.load(folder / "queries.npy"), json.loads((folder / "answers.json").read_text())
    begun = time.process_time()
    index = StoreIndex(store_file())
    opened = time.process_time() - begun
    took, right = [], 0
    for query, answer in zip(queries, answers, strict=True):
        begun = time.process_time()
        picked = index.pick(query, *MODELS, 4, question="What does w1 say of w2f, w3 and w77 in w1a2, w9 and w4c?")
        took.append(time.process_time() - begun)
        right += picked[0].name == f"{answer}.memo"
    rss = peak_rss_bytes()
    random = np.random.default_rng(8)
    added, removed = [], []
    for number in range(_FEW):
        memo(folder / f"new{number}.memo", unit(random, 5))
        begun = time.process_time()
        remember(folder / f"new{number}.memo")
        index.refresh()
        added.append(time.process_time() - begun)
    for number in range(_FEW):
        begun = time.process_time()
        remove(folder / f"new{number}.memo")
        removed.append(time.process_time() - begun)
    told = {
        "open_s": opened, "rss_mb": rss / 1e6, "pick_ms": 1e3 * float(np.median(took)),
        "p95_ms": 1e3 * float(np.quantile(took, 0.95)), "add_ms": 1e3 * float(np.median(added)),
        "rm_ms": 1e3 * float(np.median(removed)), "recall": right / len(answers),
    }  # fmt: skip
    print(json.dumps(told))


def unit(random: np.random.Generator, rows: int) -> np.ndarray:
    """Random unit vectors (rows, DIM)."""
    vectors = random.normal(size=(rows, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def memo(folder: Path, vectors: np.ndarray, texts: Sequence[str] = ()) -> np.ndarray:
    """A memo as far as the library looks at it; without texts, of words that are drawn as a language has them."""
    if not texts:
        drawn = np.random.default_rng(zlib.crc32(folder.name.encode())).zipf(1.1, (len(vectors), _WORDS)) % 100_000
        texts = [" ".join(f"w{number:x}" for number in row) for row in drawn]
    folder.mkdir()
    Manifest(
        DocumentInfo(f"{folder.stem}.txt", "", 1, 1, "en"), ModelInfo("m", MODELS[0]), ModelInfo("e", MODELS[1]),
        Recipe("", *MODELS, "int4", {"num_layers": 1, "num_kv_heads": 1, "head_dim": 2}, "", 192, 0),
        dict.fromkeys(("memory.bin", "index.bin", "chunks.json"), FileInfo(0, "")),
    ).save(folder)  # fmt: skip
    VectorIndex.build(vectors).save(folder / "index.bin")
    (folder / "chunks.json").write_text(json.dumps({"chunks": [{"text": text} for text in texts]}))
    return vectors
