"""How many readers does one memory serve? Threads ask one memo through the library, each its own questions.

    python -m bench.serve --model qwen2.5-coder-0.5b --doc xquad_en --readers 1,4,8,16
    python -m bench.serve --model qwen2.5-coder-0.5b --doc xquad_en --readers 1,8 --kind phrase
    python -m bench.serve --model qwen2.5-coder-0.5b --doc xquad_en --readers 8 --peer llama-server --slots 2
    python -m bench.serve --model qwen2.5-coder-0.5b --doc xquad_en --soak 30

paragraph: answers that are mostly decoded, from memory. phrase: short answers from passages, mostly prefilled. Each
answer is compared with what one reader got. first, whole: seconds to the first text and to the end. rows: replies a
decoding step, the mean. rss_mb: the most so far. other: answers that differ from those that one reader gets. --peer:
llama-server with the model's GGUF file, the document before each question: seconds to the first text of each slot, all
asked at once, and `again` of slots that have read it. --soak: see bench/soak.py; questions of several kinds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

import minimemo
from bench import slots
from bench.common.data import DATA, document_text, questions
from bench.common.machine import peak_rss_bytes
from bench.common.report import command, numbers, parser, positive, show
from bench.soak import soak
from minimemo import Answer, Memo
from minimemo.ask import Piece
from minimemo.errors import InputError
from minimemo.hub.catalog import resolve
from minimemo.runtime import Runtime

COLUMNS = (
    ("readers", "<7"), ("questions", "9"), ("first_p50", "9.2f"), ("first_p95", "9.2f"), ("whole_p50", "9.2f"),
    ("whole_p95", "9.2f"), ("per_minute", "10.1f"), ("tokens_s", "8.1f"), ("gain", "5.2f"), ("rows", "5.2f"),
    ("rss_mb", "7.0f"), ("other", "5"),
)  # fmt: skip
SOAK = (
    ("minutes", "7.1f"), ("answers", "7"), ("wrong", "5"), ("lost", "4"), ("left", "4"), ("builds", "6"),
    ("failed", "6"), ("whole_p50", "9.2f"), ("whole_p95", "9.2f"), ("rss_mb", "7.0f"),
)  # fmt: skip
KINDS = {"paragraph": "Explain in detail: {}", "phrase": "{}"}


class Asked(NamedTuple):
    """An answer, and seconds to its first text and to its end."""

    answer: Answer
    first: float
    whole: float


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser(__doc__, "bench.serve")
    made.add_argument("--model", help="of the memo (default: the catalogue's)")
    made.add_argument("--embedder", help="of the memo (default: the catalogue's)")
    made.add_argument("--doc", default="xquad_en", metavar="SET", help="a set whose smallest document is asked")
    made.add_argument("--readers", type=numbers, default=[1, 4, 8, 16], help="threads that ask, a row for each number")
    made.add_argument("--kind", default="paragraph", choices=KINDS)
    made.add_argument("--each", type=positive, default=2, help="questions of each reader")
    made.add_argument("--max-tokens", type=positive, default=96)
    made.add_argument("--soak", type=float, metavar="MINUTES", help="8 readers, a build and leavers for so long")
    made.add_argument("--peer", metavar="PROGRAM", help="llama-server: ask it too")
    made.add_argument("--slots", type=positive, default=2, help="of the peer, a question each")
    made.add_argument("--data", type=Path, default=DATA)
    args = made.parse_args(arguments)
    return command(args, "bench.serve", _soak if args.soak else _run)


def _soak(args: argparse.Namespace) -> dict[str, Any]:
    asked = questions(args.data, args.doc, 8, 1)
    kinds = [("memorag", "{}"), ("memory", KINDS["paragraph"]), ("rag", "{}")]
    bodies = [
        {"documents": ["doc"], "question": form.format(question.text), "mode": mode, "max_tokens": 40}
        for question, (mode, form) in zip(asked, kinds * 3, strict=False)
    ]
    given = {"--model": args.model, "--embedder": args.embedder}
    options = [word for name, value in given.items() if value for word in (name, value)]
    with TemporaryDirectory() as folder:
        source, memo = Path(folder) / "doc.txt", Path(folder) / "doc.memo"
        source.write_text(text := document_text(args.data, asked[0].doc_id), encoding="utf-8")
        subprocess.run([sys.executable, "-m", "minimemo", "build", source, "-o", memo, *options, "--quiet"], check=True)
        *_, last = show(SOAK, soak(memo, bodies, text, args.soak, 8, options))
    return {"doc": args.doc, "readers": 8, **last}


def _run(args: argparse.Namespace) -> dict[str, Any]:
    asked = questions(args.data, args.doc, max(args.readers) * args.each, 1)
    if not asked:
        raise InputError(f"{args.doc}: no questions")
    program = which(args.peer) if args.peer else None
    if args.peer and not program:
        raise InputError(f"{args.peer}: no such program; give --peer PATH of llama-server")
    texts = [KINDS[args.kind].format(question.text) for question in asked]
    document = document_text(args.data, asked[0].doc_id)
    with memo_of(document, args.doc, Runtime(args.model, args.embedder)) as (memo, build_s):
        memo.ask(texts[0], max_tokens=8)  # models and files are loaded before anyone counts
        alone, speeds = {text: _ask(memo, text, args.max_tokens) for text in texts}, list[float]()

        def row(readers: int) -> dict[str, Any]:
            told = _row(memo, readers, texts[: readers * args.each], alone, args.max_tokens)
            speeds.append(told["tokens_s"])
            return {**told, "gain": speeds[-1] / (speeds[0] or math.nan)}

        rows = show(COLUMNS, map(row, args.readers))
    result = {"doc": args.doc, "kind": args.kind, "max_tokens": args.max_tokens, "build_s": build_s, "rows": rows}
    if program:
        del memo
        path, threads = resolve(args.model), torch.get_num_threads()
        result["peer"] = told = slots.asked(Path(program), path, threads, document, texts[: args.slots])
        print("peer: first", " ".join(f"{seconds:.1f}" for seconds in told["first"]), f"again {told['again']:.1f}")
    return result


@contextmanager
def memo_of(text: str, name: str, runtime: Runtime) -> Iterator[tuple[Memo, float]]:
    """A memo of a text, whose model writes alone, and the seconds until it was open, models loaded before."""
    model, embedder = runtime.decoder(), runtime.opened_embedder()
    with TemporaryDirectory() as folder:
        path, begin = Path(folder) / "doc.memo", time.perf_counter()
        minimemo.build(minimemo.Document.of(text, name), path, model=model, embedder=embedder).close()
        with minimemo.open(path, model=model, embedder=embedder, generator=model) as memo:
            yield memo, time.perf_counter() - begin


def _row(memo: Memo, readers: int, texts: Sequence[str], alone: dict[str, Asked], max_tokens: int) -> dict[str, Any]:
    scheduler = memo.model().engine.scheduler
    steps, rows, begin = scheduler.steps, scheduler.rows, time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        told = list(pool.map(lambda text: _ask(memo, text, max_tokens), texts))
    seconds = time.perf_counter() - begin
    steps, rows = scheduler.steps - steps, scheduler.rows - rows
    return {
        "readers": readers,
        "questions": len(texts),
        **_shares("first", [one.first for one in told]),
        **_shares("whole", [one.whole for one in told]),
        "per_minute": 60 * len(texts) / seconds,
        "tokens_s": sum(one.answer.generated_tokens for one in told) / seconds,
        "rows": rows / steps if steps else 0.0,
        "rss_mb": peak_rss_bytes() / 1e6,
        "other": sum(one.answer.text != alone[text].answer.text for text, one in zip(texts, told, strict=True)),
    }


def _ask(memo: Memo, text: str, max_tokens: int) -> Asked:
    begin, first = time.perf_counter(), 0.0
    for step in memo.stream(text, max_tokens=max_tokens):
        if isinstance(step, Piece) and not first:
            first = time.perf_counter() - begin
    assert isinstance(step, Answer)
    whole = time.perf_counter() - begin
    return Asked(step, first or whole, whole)


def _shares(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}_p50": statistics.median(values), f"{name}_p95": sorted(values)[int(0.95 * len(values))]}


if __name__ == "__main__":
    sys.exit(main())
