"""Where a decode step or a prefill chunk spends its time.

A step is one native call, which cannot be looked into. Its parts are therefore timed by calling the same kernels one
by one, layer after layer so that each matrix comes from memory as in a step; what the whole step takes beyond their sum
is `rest`: norms, rotations, activations, cache writes, the embedding, Python. A call from Python, with its own start of
all threads, costs each part some microseconds (many on a busy machine) that a step does not pay: short parts look
slower than they are in it, attention over an empty cache is nothing else, and `rest` comes out low, even below zero.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minimemo.engine.cache import KVCache
from minimemo.engine.engine import Engine
from minimemo.kernels import PACK_GROUP, attend
from minimemo.kernels.native.shortlist import largest_linear
from minimemo.models.config import ModelConfig
from minimemo.models.decoder import Decoder, Row, _sources

HEADINGS = f"{'op':10} {'ms':>9} {'share':>6} {'rate':>8} {'':7} {'of ceiling':>10}"


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the machine does at best: GB/s read; GFLOP/s of products with weights, and of attention."""

    memory: float
    products: float
    attention: float


@dataclass(frozen=True, slots=True)
class Part:
    """share: of the whole pass. rate: in `unit`, GB/s where memory limits a part, GFLOP/s where arithmetic does."""

    op: str
    ms: float
    share: float
    rate: float | None = None
    unit: str = ""
    ceiling_share: float | None = None

    def line(self) -> str:
        text = f"{self.op:10} {self.ms:9.3f} {self.share:6.1%}"
        if self.rate is None or self.ceiling_share is None:
            return text
        return f"{text} {self.rate:8.1f} {self.unit:7} {self.ceiling_share:10.2f}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def keys_seen(config: ModelConfig, layer: int, position: int) -> int:
    """Keys that the query at `position` of a sequence attends to in a layer, itself included."""
    window = config.windows[layer]
    return position + 1 if window is None else min(position + 1, window)


def kv_element_bytes(engine: Engine) -> float:
    """Of a number of a memory; of a packed one with its share of scales and lows, two halves each."""
    if engine.memory_bits is None:
        return engine.kv_dtype.itemsize
    return engine.memory_bits / 8 + 2 / PACK_GROUP + 2 / engine.config.head_dim


def kv_bytes_read(config: ModelConfig, position: int, element_bytes: float) -> float:
    """Bytes of keys and values that one decode step reads over all layers."""
    keys = sum(keys_seen(config, layer, position) for layer in range(config.num_layers))
    return 2 * keys * config.num_kv_heads * config.head_dim * element_bytes


def profile(engine: Engine, cache: KVCache, tokens: int, ceilings: Ceilings, passes: int) -> list[Part]:
    """Medians over `passes` of a pass of `tokens` (1: a decode step) after what the cache holds; its length stays."""
    decoder, config, depth = engine.decoder, engine.config, cache.length
    ids = torch.arange(tokens) % config.vocab_size
    whole: list[float] = []
    seconds: dict[str, list[float]] = {}
    for _ in range(passes + 1):
        start = time.perf_counter()
        decoder.forward(ids, [Row(cache, tokens)], logits="likeliest")  # as greedy decoding does
        whole.append(time.perf_counter() - start)
        cache.truncate(depth)
        for op, spent in _parts(decoder, cache, tokens).items():
            seconds.setdefault(op, []).append(spent)
    step = statistics.median(whole[1:])  # the first pass warms up
    found = []
    for op, spent_each in seconds.items():
        spent = statistics.median(spent_each[1:])
        work, ceiling, unit = _work(op, engine, cache, tokens, ceilings)
        found.append(Part(op, spent * 1e3, spent / step, work / spent, unit, work / spent / ceiling))
    rest = step - sum(part.ms for part in found) / 1e3
    return [*found, Part("rest", rest * 1e3, rest / step), Part("whole", step * 1e3, 1.0)]


@torch.inference_mode()
def _parts(decoder: Decoder, cache: KVCache, tokens: int) -> dict[str, float]:
    """Seconds of each kind of kernel in one pass over the layers."""
    config, spent = decoder.config, dict.fromkeys(("qkv", "attention", "out", "gate_up", "down", "head"), 0.0)

    def timed(op: str, kernel: Callable[..., Tensor], *arguments: object) -> None:
        start = time.perf_counter()
        kernel(*arguments)
        spent[op] += time.perf_counter() - start

    x = torch.randn(tokens, config.hidden_size, dtype=decoder.dtype)
    mixed = torch.randn(tokens, config.num_heads * config.head_dim, dtype=decoder.dtype)
    fed = torch.randn(tokens, config.intermediate_size, dtype=decoder.dtype)
    q = mixed.view(tokens, config.num_heads, config.head_dim).transpose(0, 1)
    end = cache.length + tokens
    for index, layer in enumerate(decoder.weights.layers):
        sources = list(_sources(cache, index, end, 0, tokens, cache.length, config.windows[index]))
        timed("qkv", layer.qkv, x)
        timed("attention", attend, q, sources, config.query_scale)
        timed("out", layer.out, mixed)
        timed("gate_up", layer.gate_up, x)
        timed("down", layer.down, fed)
    short = decoder.weights.shortlist
    timed("head", decoder.weights.head if short is None else partial(largest_linear, matrix=short), x[-1:])  # one token
    return spent


def _work(op: str, engine: Engine, cache: KVCache, tokens: int, ceilings: Ceilings) -> tuple[float, float, str]:
    """What an op does in a pass, in 1e9 of bytes or floating-point operations; the ceiling of that, and its unit."""
    config, weights = engine.config, engine.decoder.weights
    if op == "attention":
        if tokens == 1:
            read = kv_bytes_read(config, cache.length, kv_element_bytes(engine))
            return read / 1e9, ceilings.memory, "GB/s"
        positions = range(cache.length, cache.length + tokens)
        pairs = sum(keys_seen(config, layer, at) for layer in range(config.num_layers) for at in positions)
        return 4e-9 * pairs * config.num_heads * config.head_dim, ceilings.attention, "GFLOP/s"
    if op == "head":
        return (
            (weights.head if weights.shortlist is None else weights.shortlist.coarse).nbytes / 1e9,
            ceilings.memory,
            "GB/s",
        )
    matrices = [getattr(layer, op) for layer in weights.layers]
    if tokens == 1:
        return sum(matrix.nbytes for matrix in matrices) / 1e9, ceilings.memory, "GB/s"
    return (
        sum(2e-9 * tokens * rows * columns for rows, columns in (m.shape for m in matrices)),
        ceilings.products,
        ("GFLOP/s"),
    )
