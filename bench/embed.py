"""Passages a second, ours and sentence-transformers' with the same model folder and texts, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from minimemo.runtime import find
from minimemo.search.embedder import Embedder

ROUNDS = 3


def side_by_side(name: str, passages: Sequence[str], threads: int = 2, rounds: int = ROUNDS) -> dict[str, float]:
    """way -> passages a second, median of `rounds`, each of which times both ways in alternating order.

    sentence-transformers runs in its own default precision (float32), and in bfloat16 where ours does; without prompts
    on either side. `least_cosine`: of our vectors with its float32 ones, over the first passages.
    """
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    folder = find(name)[1]
    ours = Embedder.load(folder, query_prompt="", passage_prompt="")
    theirs = SentenceTransformer(str(folder), device="cpu")
    ways: dict[str, Callable[[list[str]], np.ndarray]] = {
        "minimemo": ours.embed_passages,
        "sentence_transformers": lambda texts: theirs.encode(texts, normalize_embeddings=True),
    }
    if ours.encoder.dtype != torch.float32:
        narrow = SentenceTransformer(str(folder), device="cpu", model_kwargs={"torch_dtype": ours.encoder.dtype})
        ways["sentence_transformers_bfloat16"] = lambda texts: narrow.encode(
            texts, normalize_embeddings=True, convert_to_numpy=False
        )
    texts = list(passages)
    first = {way: embed(texts[:8]) for way, embed in ways.items()}  # warms up
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds):
        for way in list(ways)[:: 1 if turn % 2 else -1]:
            begin = time.perf_counter()
            ways[way](texts)
            seconds[way].append(time.perf_counter() - begin)
    told = {way: len(texts) / statistics.median(times) for way, times in seconds.items()}
    told["least_cosine"] = float((first["minimemo"] * first["sentence_transformers"]).sum(1).min())
    return told
