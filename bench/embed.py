"""Passages a second, ours and sentence-transformers' on the same folder and texts, in turns.

    python bench/embed.py EMBEDDER_FOLDER [--document xquad_en] [--threads 2] [--rounds 5]

Each round times both, in alternating order; the table gives the median and the best round. Needs ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from minimemo.retrieval.chunks import DEFAULT_SIZE, split
from minimemo.retrieval.embedder import Embedder


def main() -> None:
    parser = argparse.ArgumentParser(description="embedding throughput")
    parser.add_argument("embedder", type=Path)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[1] / "../shared/data")
    parser.add_argument("--document", default="xquad_en")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-tokens", default="2048", help="ours; several, comma-separated, are timed in turn")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = (args.data / "docs" / f"{args.document}.txt").read_text("utf-8")
    theirs = SentenceTransformer(str(args.embedder), device="cpu")
    ways: dict[str, Callable[[list[str]], np.ndarray]] = {"sentence-transformers": theirs.encode}
    for tokens in map(int, args.batch_tokens.split(",")):
        ours = Embedder.load(args.embedder, max_batch_tokens=tokens, query_prompt="", passage_prompt="")
        ways[f"minimemo {tokens}"] = ours.embed_passages
    offsets = ours.offsets(text)
    passages = [chunk.text for chunk in split(text, offsets, size=min(DEFAULT_SIZE, ours.passage_room))]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    vectors = {name: embed(passages[:8]) for name, embed in ways.items()}  # warms up
    for turn in range(args.rounds):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            begun = time.perf_counter()
            ways[name](passages)
            seconds[name].append(time.perf_counter() - begun)
    first = next(iter(vectors.values()))
    print(f"{len(passages)} passages, {len(offsets)} tokens, {args.threads} threads")
    print("way                     passages/s   best  tokens/s  least cosine")
    results = {}
    for name, times in seconds.items():
        median, best = (len(passages) / value for value in (statistics.median(times), min(times)))
        cosine = float((vectors[name] * first).sum(1).min())
        print(f"{name:22} {median:11.1f} {best:6.1f} {median * len(offsets) / len(passages):9.0f}  {cosine:.6f}")
        results[name] = {"passages_per_s": round(median, 1), "best": round(best, 1)}
    versions = {"torch": torch.__version__, "threads": args.threads, "dtype": str(ours.encoder.dtype)}
    print(json.dumps({"bench": "embed", **versions, "passages": len(passages), "results": results}))


if __name__ == "__main__":
    main()
