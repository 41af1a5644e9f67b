"""Prefill and decode tokens a second by the depth of the memory, beside llama.cpp's and the machine's own ceiling."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.common import machine
from bench.common.report import show
from bench.speed import peer
from minimemo.engine.cache import KVCache
from minimemo.engine.engine import Engine
from minimemo.kernels import PACK_GROUP
from minimemo.models.config import ModelConfig
from minimemo.models.decoder import DecoderWeights, Row

CHUNK = 512  # tokens of a prefill
STEPS = 32  # of a decode
BATCH = 3  # rows over one memory
COLUMNS = (
    ("depth", "6"), ("prefill", "8.1f"), ("peer_prefill", "8.1f"), ("ratio_prefill", ".2f"), ("decode", "7.1f"),
    ("peer_decode", "7.1f"), ("ratio_decode", ".2f"), ("ratio_mean", ".2f"), ("batch3", "7.1f"),
    ("batch3_ratio", ".2f"), ("ceiling_share", ".2f"),
)  # fmt: skip


def measure(engine: Engine, depths: Sequence[int], repeat: int, program: Path | None, model: Path) -> dict[str, Any]:
    """Ours and the peer (llama-bench on the same GGUF file, its cache of 16-bit floats) take turns; medians over the
    repeats. Tokens a second: of a prefill of 512; of one row's decode, by the median of 32 steps, and by all of them
    together (mean, as llama-bench counts, and the fairer ratio where other processes interrupt); of three rows that
    share the memory, added up. Share of the ceiling: bytes of weights, keys and values that a step reads, over its time
    and what the memory was read with in the same run.
    """
    ours: dict[int, list[dict[str, float]]] = {depth: [] for depth in depths}
    theirs: dict[int, list[peer.PeerSpeeds]] = {depth: [] for depth in depths}
    memory, peak, threads = 0.0, 0, torch.get_num_threads()
    for turn in range(repeat):
        for depth in depths:
            print(f"repeat {turn + 1} of {repeat}, depth {depth}", file=sys.stderr)
            ours[depth].append(_speeds(engine, depth))
            if program:
                sizes = {"prefill_tokens": CHUNK, "decode_tokens": STEPS}
                theirs[depth].append(peer.run(program, model, threads=threads, depth=depth, **sizes))
        peak = peak or machine.peak_rss_bytes()  # before the probe's buffer
        memory = max(memory, machine.memory_gb_s())
    weights = weight_bytes_read(engine.decoder.weights)
    rows = []
    for depth in depths:
        row = {name: statistics.median(one[name] for one in ours[depth]) for name in ours[depth][0]}
        # The steps of one row run at positions from depth + 1, past the one that warms up.
        read = weights + kv_bytes_read(engine.config, depth + 1 + STEPS // 2, kv_element_bytes(engine))
        row |= {"depth": depth, "batch3_ratio": row["batch3"] / row["decode"]}
        row["ceiling_share"] = read * row["decode"] / 1e9 / memory
        if program:
            row["peer_prefill"] = statistics.median(run.prefill for run in theirs[depth])
            row["peer_decode"] = statistics.median(run.decode for run in theirs[depth])
            row["ratio_prefill"] = row["prefill"] / row["peer_prefill"]
            row["ratio_decode"], row["ratio_mean"] = (row[n] / row["peer_decode"] for n in ("decode", "decode_mean"))
        rows.append(row)
    runs = [run for each in theirs.values() for run in each]
    show(COLUMNS, rows)
    print(f"peak memory {peak / 1e6:.0f} MB; a token reads {weights / 1e6:.0f} MB of weights; memory {memory:.1f} GB/s")
    return {
        "kv_dtype": f"int{engine.memory_bits}" if engine.memory_bits else str(engine.kv_dtype).removeprefix("torch."),
        "depths": rows,
        "weight_bytes": weights,
        "memory_gb_s": memory,
        "peak_rss_bytes": peak,
        "peer": f"llama.cpp {runs[0].build}" if runs else None,
    }


def _speeds(engine: Engine, depth: int) -> dict[str, float]:
    """Tokens a second of one timed chunk and STEPS timed steps of each kind, after one of each that warms up."""
    cache = deep_cache(engine, depth)
    ids = torch.randint(engine.config.vocab_size, (CHUNK,), generator=torch.Generator().manual_seed(depth))
    _seconds(engine, ids, [cache])
    cache.truncate(depth)
    chunk = _seconds(engine, ids, [cache])
    cache.truncate(depth)
    steps = [_seconds(engine, ids[at : at + 1], [cache]) for at in range(STEPS + 1)][1:]
    cache.truncate(depth)
    tails = [engine.new_cache(STEPS + 1) for _ in range(BATCH)]
    batch = [_seconds(engine, ids[at : at + BATCH], tails, prefix=cache) for at in range(STEPS + 1)][1:]
    return {
        "prefill": CHUNK / chunk,
        "decode": 1 / statistics.median(steps),
        "decode_mean": STEPS / sum(steps),
        "batch3": BATCH / statistics.median(batch),
    }


def deep_cache(engine: Engine, depth: int) -> KVCache:
    """A memory of `depth` tokens of normal random keys and values, with room for a chunk."""
    config, cache = engine.config, engine.new_memory(depth, depth + CHUNK)
    random = torch.Generator().manual_seed(depth)
    for at in range(0, depth, CHUNK):
        shape = (config.num_layers, config.num_kv_heads, min(CHUNK, depth - at), config.head_dim)
        cache.append(*(torch.randn(shape, generator=random) for _ in range(2)))
    return cache


def _seconds(engine: Engine, ids: Tensor, caches: Sequence[KVCache], prefix: KVCache | None = None) -> float:
    """Of one pass that appends as many of ids to each cache."""
    rows = [Row(cache, len(ids) // len(caches)) for cache in caches]
    start = time.perf_counter()
    engine.decoder.forward(ids, rows, prefix=prefix, logits="likeliest")  # as greedy decoding does
    return time.perf_counter() - start


def weight_bytes_read(weights: DecoderWeights) -> int:
    """Bytes of matrices that a greedy step reads; of a head with a shortlist its coarse copy, the rest being little."""
    layers = sum(m.nbytes for layer in weights.layers for m in (layer.qkv, layer.out, layer.gate_up, layer.down))
    return layers + (weights.head if weights.shortlist is None else weights.shortlist.coarse).nbytes


def kv_element_bytes(engine: Engine) -> float:
    """Of a number of a memory; of a packed one with its share of scales and lows, two halves each."""
    if engine.memory_bits is None:
        return engine.kv_dtype.itemsize
    return engine.memory_bits / 8 + 2 / PACK_GROUP + 2 / engine.config.head_dim


def kv_bytes_read(config: ModelConfig, position: int, element_bytes: float) -> float:
    """Bytes of keys and values that the decode step at `position` reads over all layers; a window bounds them."""
    keys = sum(position + 1 if window is None else min(position + 1, window) for window in config.windows)
    return 2 * keys * config.num_kv_heads * config.head_dim * element_bytes
