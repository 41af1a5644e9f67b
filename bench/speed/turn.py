"""One turn of `bench.speed --vs`, run as a script in either tree's interpreter: only minimemo's public names and the
engine's, which both trees have, so that nothing but the package differs.

    python -I turn.py build MODEL EMBEDDER DOCUMENT MEMO THREADS
    python -I turn.py measure MODEL EMBEDDER DOCUMENT MEMO THREADS

build: a memo of the document, in the tree's own format. measure: one JSON line of prefill tokens/s (2,048 tokens),
decode tokens/s after 0 and 4,096 tokens (the median step), seconds of loading the memory's first view, of a first ask
(loading the view for it included) and of a warm one.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

PREFILL, DEEP, STEPS, LOADS = 2048, 4096, 32, 3
QUESTION = "Who is named first in this document?"


def main(what: str, model: str, embedder: str, document: str, memo: str, threads: str) -> None:
    import torch

    import minimemo

    if int(threads):
        torch.set_num_threads(int(threads))
    opened = minimemo.load_model(model), minimemo.open_embedder(embedder or None)
    if what == "build":
        minimemo.build(document, memo, model=opened[0], embedder=opened[1])
        return
    figures: dict[str, Any] = {"package": os.path.dirname(minimemo.__file__)}
    figures |= _engine(opened[0].engine)
    figures |= _memo(lambda listener: minimemo.open(memo, model=opened[0], embedder=opened[1], on_event=listener))
    print(json.dumps(figures))


def _engine(engine: Any) -> dict[str, float]:
    import torch

    random, config = torch.Generator().manual_seed(0), engine.config
    ids = torch.randint(config.vocab_size, (PREFILL,), generator=random).tolist()
    cache = engine.new_cache(DEEP + PREFILL)
    engine.prefill(cache, ids[:64])  # warms up
    cache.truncate(0)
    begin = time.perf_counter()
    engine.prefill(cache, ids)
    figures = {"prefill_tps": PREFILL / (time.perf_counter() - begin)}
    for depth in (0, DEEP):
        cache.truncate(0)
        for _ in range(0, depth, 512):
            shape = (config.num_layers, config.num_kv_heads, 512, config.head_dim)
            cache.append(*(torch.randn(shape, generator=random) for _ in range(2)))
        moments = []
        for _ in engine.generate(cache, ids[:1], max_tokens=STEPS + 2):
            moments.append(time.perf_counter())
        steps = [after - before for before, after in pairwise(moments[1:])]
        figures[f"decode_{depth}_tps"] = 1 / statistics.median(steps)
    return figures


def _memo(open_memo: Callable[[Callable[[Any], None]], Any]) -> dict[str, float]:
    loading: list[float] = []  # when each block of a view was there
    opened = None
    seconds = []
    for _ in range(LOADS):
        opened = open_memo(lambda event: loading.append(time.perf_counter()) if event.stage == "load memory" else None)
        opened.session()
        loading.clear()
        opened.recall(QUESTION)
        seconds.append((loading[-1] - loading[0]) * len(loading) / max(1, len(loading) - 1))
    assert opened is not None
    figures = {"load_s": statistics.median(seconds), "load_blocks": len(loading)}
    for name in ("first_ask_s", "warm_ask_s"):
        begin = time.perf_counter()
        opened.ask(QUESTION, max_tokens=32)
        figures[name] = time.perf_counter() - begin
    return figures


if __name__ == "__main__":
    main(*sys.argv[1:])
