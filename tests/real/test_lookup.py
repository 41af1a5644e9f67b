"""Drafts and readers beside each other change no token of the 0.5B's replies."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from minimemo.runtime import load_model

pytestmark = pytest.mark.real
TEXT = (
    "The light was lit for the first time on the evening of 9 October 1852. It burned colza oil and could be seen for "
    "fourteen sea miles. The first keeper was Anders Quill, a former sailmaker with one good eye. "
)
ASKED = (
    "Repeat the passage word for word.", "Who was the first keeper?", "When was the light lit for the first time?",
    "Write a short story about the keeper.", "List every number of the passage.", "灯塔什么时候点亮的？请引用原文。",
)  # fmt: skip


def test_replies_are_the_same_with_drafts_and_among_readers() -> None:
    model = load_model("qwen2.5-coder-0.5b")
    opening, closing = model.tokenizer.turn(None)
    prompts = [[*opening, *model.tokenizer.encode(f"{TEXT * 3}\n{asked}"), *closing] for asked in ASKED]
    engine, stop = model.engine, model.tokenizer.stop_ids

    def reply(prompt: list[int], source: list[int] | None) -> list[int]:
        cache = engine.new_cache(len(prompt) + 32)
        return list(engine.generate(cache, prompt, max_tokens=32, stop=stop, source=source))

    alone = [reply(prompt, None) for prompt in prompts]
    steps = engine.scheduler.steps
    assert [reply(prompt, []) for prompt in prompts] == alone
    assert engine.scheduler.steps - steps < 0.8 * steps, "what quotes takes fewer steps"
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(lambda prompt: reply(prompt, []), prompts)) == alone
