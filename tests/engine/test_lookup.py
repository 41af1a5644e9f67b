"""Drafts make replies shorter in steps and change nothing of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from minimemo.engine.engine import Engine
from minimemo.engine.lookup import Lookup
from minimemo.engine.scheduler import MOST_ROWS, Scheduler, Step
from minimemo.kernels import native
from minimemo.models.decoder import Row
from tests.engine.test_threads import IDS, _packed
from tests.tiny import tiny_engine

needs_library = pytest.mark.skipif(native.unavailable() is not None, reason="no library")
TOKENS = 60


def test_a_draft_is_what_followed_the_longest_match_last() -> None:
    assert Lookup([1, 2, 3, 4, 5, 9, 2, 3, 4, 6, 7, 8, 1, 2, 3, 4], 0).draft(2) == [5, 9], "four tokens match there"
    assert Lookup([2, 3, 4, 5, 9, 2, 3, 4, 6, 7, 2, 3, 4], 0).draft(3) == [6, 7, 2], "of two as long, the last"
    assert Lookup([4, 5, 6, 9, 4], 0).draft(3) == [], "one token says nothing"
    assert Lookup([5, 5, 5, 5], 0).draft(3) == [5], "nothing beyond the end"
    assert Lookup([3, 4, 5, 6, 9, 3, 4], 0).draft(0) == []
    assert Lookup([], 0).draft(3) == Lookup([7], 0).draft(3) == []


def test_what_is_pushed_can_be_copied() -> None:
    lookup = Lookup([1, 2, 3], 5)
    for token in (4, 1, 2, 3):
        lookup.push(token)
    assert lookup.draft(3) == [4, 1, 2]


def _reply(engine: Engine, number: int, source: list[int] | None, **options: int) -> list[int]:
    cache, reply = engine.new_cache(20 + number + TOKENS), list[int]()
    for token in engine.generate(cache, IDS[: 20 + number], max_tokens=TOKENS, source=source, **options):
        assert cache.length == 20 + number + len(reply), "the cache is as long as if each token were a step"
        reply.append(token)
    return reply


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_replies_with_drafts_are_those_without_in_fewer_steps(dtype: torch.dtype, tmp_path: Path) -> None:
    engine = _packed(tmp_path)
    engine.kv_dtype = dtype
    for number in range(4):
        alone, before = _reply(engine, number, None), engine.scheduler.steps
        assert _reply(engine, number, []) == alone
        assert _reply(engine, number, alone) == alone
        assert engine.scheduler.steps - before < 2 * (TOKENS - 1) * 2 / 3
        assert _reply(engine, number, [], min_tokens=20, stop=(alone[9],)) == _reply(
            engine, number, None, min_tokens=20, stop=(alone[9],)
        )


@needs_library
@pytest.mark.parametrize("head_dim", [12, 16, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_of_drafts_have_the_bits_of_steps(dtype: torch.dtype, head_dim: int, tmp_path: Path) -> None:
    """Wherever the keys end: before and behind the edges of blocks and of the pieces that attention is cut into."""
    engine = _packed(tmp_path) if head_dim == 12 else _packed(tmp_path, head_dim=head_dim)
    engine.kv_dtype = dtype
    random = torch.Generator().manual_seed(5)
    for length in (3, 62, 300, 510, 1023, 4095, 8190, 9000):
        cache = engine.new_cache(length + 4)
        shape = cache.keys.shape[0], cache.keys.shape[1], length, cache.keys.shape[3]
        cache.append(*(torch.randn(shape, generator=random) for _ in range(2)))
        steps = [engine._forward([token], [Row(cache, 1)]) for token in IDS[:4]]
        cache.truncate(length)
        drafts = engine.scheduler.step(IDS[:4], cache, "last")
        assert torch.equal(drafts, torch.cat(steps)), length
        assert cache.length == length + 1


@needs_library
@pytest.mark.parametrize("cheap", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_replies_that_draft_change_nobody_elses(dtype: torch.dtype, cheap: bool, tmp_path: Path) -> None:
    engine = _packed(tmp_path, head_dim=64)
    engine.kv_dtype = dtype
    engine.scheduler = Scheduler(engine._steps, together=True, cheap=cheap)
    alone = [_reply(engine, number, None) for number in range(8)]
    sources: list[list[int] | None] = [reply if number % 2 else None for number, reply in enumerate(alone)]
    for readers in (2, 8):
        with ThreadPoolExecutor(readers) as pool:
            jobs = pool.map(lambda number: _reply(engine, number, sources[number]), range(8))
            assert list(jobs) == alone


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_batch_with_drafts_is_that_without_in_fewer_steps(dtype: torch.dtype, tmp_path: Path) -> None:
    engine = _packed(tmp_path, head_dim=64)
    engine.kv_dtype = dtype
    memory, prompts = engine.new_cache(90), [IDS[:30], [*IDS[:20], 5], [7]]
    engine.extend(memory, IDS)
    engine.scheduler = Scheduler(engine._steps, together=True, cheap=False)
    alone = engine.generate_batch(memory, prompts, max_tokens=40)
    assert {*map(len, alone)} == {40}
    stop = (alone[0][25], alone[1][9])
    ended, passes = engine.generate_batch(memory, prompts, max_tokens=40, stop=stop), list[int]()
    forward = engine._forward

    def counted(ids: Sequence[int], *arguments: Any, **options: Any) -> torch.Tensor:
        passes.append(len(ids))
        return forward(ids, *arguments, **options)

    engine.scheduler = Scheduler(engine._steps, together=True, cheap=True)
    with patch.object(engine, "_forward", counted):
        assert engine.generate_batch(memory, prompts, max_tokens=40, source=[*chain(*alone)]) == alone
    assert len(passes) < 30 and max(passes[2:]) <= MOST_ROWS
    assert engine.generate_batch(memory, prompts, max_tokens=40, stop=stop, source=[*chain(*alone)]) == ended
    assert memory.length == len(IDS)


@needs_library
def test_drafts_take_the_rows_that_replies_leave(tmp_path: Path) -> None:
    """Where rows are cheap; the first replies' come first."""
    engine, sizes = _packed(tmp_path), list[list[int]]()

    def run(steps: Sequence[Step]) -> torch.Tensor:
        sizes.append([len(step.tokens) for step in steps])
        return engine._steps(steps)

    for cheap in (False, True):
        for count in (1, 3, 14, 16):
            steps = [Step([5, 6, 7, 8], engine.new_cache(4), "last") for _ in range(count)]
            Scheduler(run, together=True, cheap=cheap)._lead(steps)
            assert [0 if step.logits is None else len(step.logits) for step in steps] == sizes[-1]
    assert sizes == [[4], [1] * 3, [1] * 14, [1] * MOST_ROWS, [4], [4] * 3, [3, *[1] * 13], [1] * MOST_ROWS]


@needs_library
def test_a_cache_without_room_for_drafts_holds_the_reply(tmp_path: Path) -> None:
    engine = _packed(tmp_path)
    alone = _reply(engine, 0, None)
    cache = engine.new_cache(20 + 11)
    assert list(engine.generate(cache, IDS[:20], max_tokens=12, source=alone)) == alone[:12]


def test_nothing_is_drafted_where_rows_differ() -> None:
    engine = tiny_engine()
    alone = _reply(engine, 0, None)
    assert _reply(engine, 0, alone) == alone
    assert engine.scheduler.steps == engine.decoded == 2 * (TOKENS - 1)
