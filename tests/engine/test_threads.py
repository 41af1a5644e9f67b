"""Threads that share engines, and processes that are forked from one that has used them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minimemo.engine.engine import Engine
from minimemo.errors import MinimemoError
from minimemo.kernels import native
from minimemo.models.layers import PackedLinear, Scratch
from minimemo.models.weights import load_decoder
from tests.kernels.native.test_stack import _pack
from tests.kernels.native.test_stack import _packed as _packed_matrix
from tests.models.test_decoder import _reference
from tests.tiny import dense, tiny_decoder, tiny_engine

IDS = [(37 * i) % 60 + 3 for i in range(70)]


def _packed(folder: Path, **shape: Any) -> Engine:
    """Packed weights, which products of many rows widen into one bfloat16 buffer that all layers share."""
    _reference("qwen3" if shape else "qwen2", folder, **shape)
    decoder, scratch = _pack(load_decoder(folder, dtype=torch.float32)), Scratch(torch.bfloat16)
    decoder.weights = replace(decoder.weights, head=_packed_matrix(dense(decoder.weights.head), scratch, 8))
    for layer in decoder.weights.layers:
        for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down):
            assert isinstance(matrix, PackedLinear)
            matrix.scratch = scratch
    return Engine(decoder, kv_dtype=torch.bfloat16, chunk=24)


def _dense(_: Path) -> Engine:
    return Engine(tiny_decoder(), kv_dtype=torch.bfloat16, chunk=24)


def _passes(engine: Engine) -> list[Callable[[], Any]]:
    """One job of each kind, with caches of their own."""

    def memory() -> Any:
        cache = engine.new_cache(200)
        engine.extend(cache, IDS)
        return cache

    def read() -> Any:
        return torch.cat([piece.keys for piece in engine.read(engine.new_cache(200), IDS)], dim=2).tolist()

    return [
        lambda: list(engine.generate(memory(), IDS[:40], max_tokens=12)),
        lambda: engine.generate_batch(memory(), [IDS[:30], [*IDS[:20], 5], [7]], max_tokens=8),
        lambda: engine.likelihoods(memory(), IDS[:30], [[5, 6, 7], [8]], [3]),
        lambda: engine.logits(memory(), IDS).tolist(),
        read,
    ]


@pytest.mark.parametrize(
    "make",
    [_dense, pytest.param(_packed, marks=pytest.mark.skipif(native.unavailable() is not None, reason="no library"))],
    ids=["dense", "packed"],
)
def test_four_threads_on_two_engines_equal_each_alone(make: Callable[[Path], Engine], tmp_path: Path) -> None:
    """Two memos of one model share its engine: their answers were silently wrong where their passes interleaved."""
    engines = [make(tmp_path) for _ in range(2)]
    jobs = [job for engine in engines for job in _passes(engine)]
    alone = [job() for job in jobs]
    counts = [(engine.prefilled, engine.decoded) for engine in engines]
    with ThreadPoolExecutor(4) as pool:
        for repeat in range(3):
            assert list(pool.map(lambda job: job(), jobs)) == alone, repeat
    assert [(engine.prefilled, engine.decoded) for engine in engines] == [(4 * p, 4 * d) for p, d in counts]


def test_a_batch_has_its_memory_for_itself() -> None:
    """Two batches over one memory: each puts what its prompts share behind it, and takes it away again."""
    engine = tiny_engine(chunk=8)
    memory = engine.new_cache(200)
    engine.extend(memory, IDS)
    batches = [[[*IDS[:30], number], [*IDS[:30], number + 1, 9]] for number in (5, 15, 25, 35)]

    def batch(prompts: list[list[int]]) -> list[list[int]]:
        return engine.generate_batch(memory, prompts, max_tokens=6)

    alone = [batch(prompts) for prompts in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(6):
            assert list(pool.map(batch, batches)) == alone
    assert memory.length == len(IDS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_what_to_do() -> None:
    """It would wait for ever for torch's threads, which stayed in the parent."""
    engine = tiny_engine()
    engine.prefill(engine.new_cache(9), [1, 2, 3])
    child = os.fork()
    if child == 0:
        try:
            engine.prefill(engine.new_cache(9), [1, 2, 3])
        except MinimemoError as error:
            os._exit(7 if "fork first and load the model in each process" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    engine.prefill(engine.new_cache(9), [1, 2, 3])  # the parent goes on
