"""The engine: chunking, generation, batches over one memory. Golden tokens of a tiny seeded model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minimemo.ask.writer import Writer
from minimemo.events import Event
from tests.helpers import assert_close
from tests.tiny import tiny_engine

PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32, 38, 46, 26, 43, 38, 32, 7, 9, 50, 28, 8]


def test_golden_greedy_tokens() -> None:
    """Any change of meaning in decoder or engine shows here first."""
    engine = tiny_engine(seed=3)
    cache = engine.new_cache(64)
    tokens = list(engine.generate(cache, PROMPT, max_tokens=16))
    assert tokens == [29, 13, 48, 60, 18, 29, 40, 47, 40, 47, 60, 54, 60, 7, 60, 35]
    assert cache.length == len(PROMPT) + 15  # the last token is not run
    assert (engine.prefilled, engine.decoded) == (len(PROMPT), 15)


@pytest.mark.parametrize("chunk", [1, 2, 7, 22, 23, 24])
def test_chunked_prefill_equals_whole(chunk: int) -> None:
    whole, cut = tiny_engine(), tiny_engine(chunk=chunk)
    a, b = whole.new_cache(23), cut.new_cache(23)
    assert_close(cut.prefill(b, PROMPT), whole.prefill(a, PROMPT).double(), "logits")
    assert_close(b.keys[:, :, :23], a.keys[:, :, :23].double(), "keys")
    assert cut.prefilled == 23


@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
def test_read_hands_over_keys_before_rope_and_values(chunk: int) -> None:
    """Rotating the raw keys by their positions gives the cache's keys, bit for bit."""
    from minimemo.kernels import apply_rope

    engine = tiny_engine(chunk=chunk)
    cache = engine.new_cache(40)
    seen = []
    for piece in engine.read(cache, PROMPT):
        span = [(piece.start, len(piece.ids))]
        for layer in range(engine.config.num_layers):
            rope = engine.decoder.rope
            rotated = apply_rope(piece.keys[layer], *rope.of_spans(span, piece.keys.device)[rope.kind[layer]])
            assert torch.equal(rotated, cache.keys[layer, :, piece.start : cache.length])
            assert torch.equal(piece.values[layer], cache.values[layer, :, piece.start : cache.length])
        seen += piece.ids
    assert seen == PROMPT and cache.length == 23 and engine.prefilled == 23


def test_truncate_forgets() -> None:
    engine = tiny_engine()
    cache = engine.new_cache(64)
    engine.prefill(cache, PROMPT)
    first = list(engine.generate(cache, [1, 2], max_tokens=8))
    cache.truncate(23)
    list(engine.generate(cache, [40, 41, 42], max_tokens=8))
    cache.truncate(23)
    assert list(engine.generate(cache, [1, 2], max_tokens=8)) == first
    with pytest.raises(ValueError, match="cannot truncate"):
        cache.truncate(99)


def test_batch_over_one_memory_equals_each_alone() -> None:
    engine = tiny_engine(seed=3)
    memory = engine.new_cache(60)
    engine.prefill(memory, PROMPT)
    prompts = [[5, 6], [7], [8, 9, 10, 11, 12]]
    alone = []
    for prompt in prompts:
        alone.append(list(engine.generate(memory, prompt, max_tokens=12)))
        memory.truncate(23)
    assert engine.generate_batch(memory, prompts, max_tokens=12) == alone
    assert memory.length == 23
    stop = {alone[0][4], alone[2][2]}  # rows end at different times, the others go on
    expected = [row[: next((i for i, t in enumerate(row) if t in stop), None)] for row in alone]
    assert engine.generate_batch(memory, prompts, max_tokens=12, stop=stop) == expected


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([[5, 6, 7, 1, 2], [5, 6, 7, 3], [5, 6, 7, 1, 4, 9]], 3),
        ([[5, 6, 7]] * 2, 2),  # the last token of a prompt is its own
        ([[5, 6], [5, 6, 7]], 1),
        ([[5, 6, 7]], 0),
        ([[*range(20), 30], [*range(20), 31, 32]], 20),
    ],
)
def test_what_prompts_begin_with_is_computed_once(prompts: list[list[int]], shared: int) -> None:
    engine = tiny_engine(seed=3, chunk=8)
    memory = engine.new_cache(80)
    engine.prefill(memory, PROMPT)
    alone, before = [], engine.prefilled
    for prompt in prompts:
        alone.append(list(engine.generate(memory, prompt, max_tokens=12)))
        memory.truncate(len(PROMPT))
    separate, before = engine.prefilled - before, engine.prefilled
    assert engine.generate_batch(memory, prompts, max_tokens=12) == alone
    assert memory.length == len(PROMPT)
    assert separate - (engine.prefilled - before) == (len(prompts) - 1) * shared


def test_stop_tokens_are_not_yielded() -> None:
    engine = tiny_engine()
    tokens = list(engine.generate(engine.new_cache(64), PROMPT, max_tokens=16))
    stop = tokens[5]
    again = list(engine.generate(engine.new_cache(64), PROMPT, max_tokens=16, stop={stop}))
    assert again == tokens[: tokens.index(stop)]


def test_no_stop_token_is_chosen_before_min_tokens() -> None:
    engine = tiny_engine()
    free = list(engine.generate(engine.new_cache(64), PROMPT, max_tokens=12))
    stop = {free[0], free[3]}
    held = list(engine.generate(engine.new_cache(64), PROMPT, max_tokens=12, min_tokens=5, stop=stop))
    cache, expected, ids = engine.new_cache(64), list[int](), PROMPT
    while len(expected) < 12:
        logits = engine.prefill(cache, ids)
        if len(expected) < 5:
            logits = logits.index_fill(-1, torch.tensor(sorted(stop)), float("-inf"))
        if (token := int(logits.argmax())) in stop:
            break
        expected.append(token)
        ids = expected[-1:]
    assert held == expected and len(held) >= 5 and held[0] != free[0]
    assert list(engine.generate(engine.new_cache(64), PROMPT, max_tokens=3, min_tokens=2)) == free[:3]
    assert list(engine.generate(engine.new_cache(64), PROMPT, max_tokens=12, min_tokens=0, stop=stop)) == []


def test_a_held_reply_does_not_go_on_with_a_break() -> None:
    """Only where it would have ended: a break that is likelier than the end is the model's own."""
    engine = tiny_engine()

    def told(**options: Any) -> list[int]:
        return list(engine.generate(engine.new_cache(64), PROMPT, max_tokens=6, **options))

    free = told()
    stop = {free[0]}
    second = told(min_tokens=4, stop=stop)[0]
    assert second != free[0]
    third = told(min_tokens=4, stop={*stop, second})[0]
    assert told(min_tokens=4, stop=stop, breaks={second})[0] == third
    assert told(min_tokens=4, stop={third}, breaks={free[0]})[0] == free[0]


def test_a_reply_that_ended_is_held_to_go_on_over_a_memory() -> None:
    """As if it had been held from the start, and the memory has its length back."""
    engine = tiny_engine()
    memory = engine.new_memory(len(PROMPT), 96)
    engine.prefill(memory, PROMPT)
    free = list(engine.generate(memory, [5], max_tokens=12))
    memory.truncate(len(PROMPT))
    stop = free[4]
    said = "the king of France"
    tokenizer: Any = SimpleNamespace(stop_ids={stop}, break_ids=frozenset(), decode=lambda ids: said)
    writer = Writer(engine, tokenizer)
    expected = list(engine.generate(memory, [5], max_tokens=12, min_tokens=8, stop={stop}))
    memory.truncate(len(PROMPT))
    assert free.index(stop) < 8 <= len(expected)
    assert list(writer.tokens(memory, [5], 12, 8)) == expected
    memory.truncate(len(PROMPT))
    assert list(writer.tokens(memory, [5], 12)) == free[: free.index(stop)]
    memory.truncate(len(PROMPT))
    said = "It is not mentioned."
    assert list(writer.tokens(memory, [5], 12, 8)) == free[: free.index(stop)]


def test_a_full_cache_says_so() -> None:
    engine = tiny_engine()
    with pytest.raises(ValueError, match="0 \\+ 23 tokens do not fit into 10"):
        engine.prefill(engine.new_cache(10), PROMPT)
    with pytest.raises(ValueError, match="nothing to prefill"):
        engine.prefill(engine.new_cache(10), [])
    with pytest.raises(ValueError, match="at least one prompt"):
        engine.generate_batch(engine.new_cache(10), [[1], []], max_tokens=3)


def test_likelihoods_are_those_of_the_tokens_and_the_end() -> None:
    engine = tiny_engine()
    cache = engine.new_cache(64)
    engine.prefill(cache, PROMPT)
    replies = [[5, 6, 7], [8]]
    found = engine.likelihoods(cache, [1, 2], replies, [0, 9])
    assert cache.length == len(PROMPT)
    for reply, got in zip(replies, found, strict=True):
        whole = engine.new_cache(64)
        logs = engine.logits(whole, [*PROMPT, 1, 2, *reply]).double().log_softmax(-1)[len(PROMPT) + 1 :]
        end = logs[len(reply), [0, 9]].exp().sum().log()
        assert got == pytest.approx(float(sum(logs[i, token] for i, token in enumerate(reply)) + end), rel=1e-4)
    assert engine.likelihoods(cache, [2], [[3]], [0]) != found[:1], "one token of a prompt is enough"


@pytest.mark.parametrize("replies", [[[5], [8]], [[5, 6], [8]], [[], [5]], [[5, 6, 7] * 4, [8, 9] * 3]])
def test_likelihoods_need_no_end_and_no_room(replies: list[list[int]]) -> None:
    engine = tiny_engine()
    cache = engine.new_cache(len(PROMPT) + 2)
    engine.prefill(cache, PROMPT)
    found = engine.likelihoods(cache, [1, 2], replies, ())
    assert cache.length == len(PROMPT)
    for reply, got in zip(replies, found, strict=True):
        logs = engine.logits(engine.new_cache(64), [*PROMPT, 1, 2, *reply]).double().log_softmax(-1)[len(PROMPT) + 1 :]
        assert got == pytest.approx(float(sum(logs[i, token] for i, token in enumerate(reply))), rel=1e-4)


@pytest.mark.parametrize("bits", [None, 8])
def test_what_is_made_to_compile_kernels_counts_as_nothing(bits: int | None) -> None:
    engine, events = tiny_engine(seed=3), list[Event]()
    engine.memory_bits = bits
    engine.warm(events.append)
    assert (engine.prefilled, engine.decoded, engine.prefilled_here) == (0, 0, 0)
    assert [event.done for event in events] == [*range(events[0].total), events[0].total]
    assert list(engine.generate(engine.new_cache(64), PROMPT, max_tokens=3)) == [29, 13, 48]
