"""What does lookup decoding save? Replies of each use are written once and then drafted again from what they may copy.

    python -m bench.lookup --model qwen2.5-coder-0.5b --doc xquad_en

a_step: tokens of a reply's step, with drafts; drafting: the share of steps that have some. time: of the steps with
drafts, those without being 1, by what passes of one row and of several take here, timed over a memory of that depth.
Uses: phrase (from passages in the prompt), paragraph (over a view of memory), recall (with a rewritten question and a
draft, in one batch over a view), walk (recall and summary, view by view).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

from bench.common.data import DATA, document_text, questions
from bench.common.report import command, parser, positive, show
from bench.serve import memo_of
from minimemo import Memo
from minimemo.ask.question import CLUE_TOKENS
from minimemo.engine.engine import Engine
from minimemo.engine.lookup import Lookup
from minimemo.engine.scheduler import DRAFT_ROWS
from minimemo.errors import InputError
from minimemo.memory.load import StoredMemory
from minimemo.memory.view import MemoryView
from minimemo.models.decoder import Row
from minimemo.runtime import Runtime

COLUMNS = (
    ("use", "<10"), ("replies", "7"), ("tokens", "6"), ("depth", "6"), ("a_step", "6.2f"), ("drafting", "8.2f"),
    ("time", "5.2f"),
)  # fmt: skip
PASSES = 7  # timed of each number of rows; the median counts


class Batch(NamedTuple):
    """Replies that are written at the same time, with the ids that each may copy; depth: tokens before them."""

    sources: list[list[int]]
    replies: list[list[int]]
    depth: int


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser(__doc__, "bench.lookup")
    made.add_argument("--model", help="of the memo (default: the catalogue's)")
    made.add_argument("--doc", default="xquad_en", metavar="SET", help="a set whose smallest document is asked")
    made.add_argument("--questions", type=positive, default=8)
    made.add_argument("--data", type=Path, default=DATA)
    return command(made.parse_args(arguments), "bench.lookup", _run)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    asked = questions(args.data, args.doc, args.questions, 1)
    if not asked:
        raise InputError(f"{args.doc}: no questions")
    text = document_text(args.data, asked[0].doc_id)
    with memo_of(text, args.doc, Runtime(args.model)) as (memo, _):
        texts = [question.text for question in asked]
        uses: dict[str, Callable[[], object]] = {
            "phrase": lambda: [memo.ask(text, mode="rag") for text in texts],
            "paragraph": lambda: [_paragraph(memo, text) for text in texts[: len(texts) // 2]],
            "recall": lambda: [_clues(memo, text) for text in texts],
            "walk": lambda: (memo.ask(texts[0], mode="gist", max_tokens=1), memo.summarize()),
        }
        engine = memo.model().engine
        rows = show(COLUMNS, ({"use": use, **_saved(engine, _recorded(ask))} for use, ask in uses.items()))
    return {"doc": args.doc, "rows": rows}


def _paragraph(memo: Memo, text: str) -> object:
    return memo.ask(f"Explain in detail: {text}", mode="memory", max_tokens=160)


def _clues(memo: Memo, text: str) -> object:
    """What the memory is asked where passages alone do not settle a question."""
    session = memo.session()
    return session._memory.clues(session._question(text, "memorag", CLUE_TOKENS), ("recall", "rewrite", "draft"))


def _recorded(ask: Callable[[], object]) -> list[Batch]:
    """What engines write meanwhile. The ids of the view that was loaded last stand before a reply over a memory."""
    batches: list[Batch] = []
    views: dict[int, list[int]] = {}  # by the cache that holds them
    load, generate, together = StoredMemory.load, Engine.generate, Engine.generate_batch

    def loading(self: StoredMemory, view: MemoryView, room: int) -> Any:
        cache = load(self, view, room)
        views[id(cache)] = self.ids(view)
        return cache

    def view(cache: Any) -> list[int]:
        ids = views.get(id(cache), [])
        return ids if len(ids) == cache.length else []  # another cache may have come in its place

    def generating(self: Engine, cache: Any, ids: Sequence[int], **options: Any) -> Iterator[int]:
        source = [*view(cache), *ids]
        batches.append(Batch([source], [[]], cache.length + len(ids)))
        reply = batches[-1].replies[0]
        for token in generate(self, cache, ids, **options):
            reply.append(token)
            yield token

    def batching(self: Engine, memory: Any, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
        replies = together(self, memory, prompts, **options)
        batches.append(Batch([[*view(memory), *prompt] for prompt in prompts], replies, memory.length))
        return replies

    with (
        patch.object(StoredMemory, "load", loading),
        patch.object(Engine, "generate", generating),
        patch.object(Engine, "generate_batch", batching),
    ):
        ask()
    return batches


def _saved(engine: Engine, batches: Sequence[Batch]) -> dict[str, Any]:
    with_drafts, without = (
        sum((_passes(batch, drafts) for batch in batches), Counter[int]()) for drafts in (DRAFT_ROWS, 1)
    )
    depth = int(median(batch.depth for batch in batches))
    most = max(with_drafts)
    seconds = _timed(engine, depth, most, shared=any(len(batch.replies) > 1 for batch in batches))
    tokens = sum(len(reply) for batch in batches for reply in batch.replies)
    cost = [sum(seconds(rows) * count for rows, count in counts.items()) for counts in (with_drafts, without)]
    return {
        "replies": sum(len(batch.replies) for batch in batches),
        "tokens": tokens,
        "depth": depth,
        "a_step": without.total() / with_drafts.total(),
        "drafting": 1 - with_drafts[1] / with_drafts.total(),
        "time": cost[0] / cost[1],
        "ms": {rows: 1e3 * seconds(rows) for rows in sorted(with_drafts)},
    }


def _passes(batch: Batch, drafts: int) -> Counter[int]:
    """How many passes of how many rows a batch takes; `drafts` rows at most of each reply."""
    pairs = zip(batch.sources, batch.replies, strict=True)
    left = [(Lookup(source, len(reply)), reply, [0]) for source, reply in pairs]
    passes = Counter[int]()
    while left := [(lookup, reply, at) for lookup, reply, at in left if at[0] < len(reply)]:
        rows = 0
        for lookup, reply, at in left:
            lookup.push(reply[at[0]])
            at[0] += 1
            draft = lookup.draft(min(drafts, len(reply) - at[0] + 1) - 1)
            rows += 1 + len(draft)
            for token in draft:
                if at[0] == len(reply) or reply[at[0]] != token:
                    break
                lookup.push(token)
                at[0] += 1
        passes[rows] += 1
    return passes


def _timed(engine: Engine, depth: int, most: int, shared: bool) -> Callable[[int], float]:
    """Seconds of a pass of so many rows behind `depth` tokens, which are a memory of their own where it is `shared`."""
    memory = engine.new_cache(depth + most)
    engine.extend(memory, [at % engine.config.vocab_size for at in range(depth)])

    @cache
    def seconds(rows: int) -> float:
        times = []
        for _ in range(PASSES):
            tail = engine.new_cache(most) if shared else memory
            each = [Row(tail.ahead(number), 1) for number in range(rows)]
            begin = time.perf_counter()
            prefix = memory if shared else None
            engine._forward([7] * rows, each, prefix=prefix, logits="likeliest", step=True)
            times.append(time.perf_counter() - begin)
        return median(times)

    return seconds


if __name__ == "__main__":
    sys.exit(main())
