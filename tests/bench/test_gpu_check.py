"""What gpu_check measures of a model, on one that fits a test."""

from __future__ import annotations

import pytest

from tests.tiny import tiny_engine
from tools.gpu_check import model


def test_a_model_is_compared_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "WRITTEN", 3)
    engine, prompt = tiny_engine(), [3, 5, 9]
    expected = list(engine.generate(engine.new_cache(8), prompt, max_tokens=4))
    result = model.measure(tiny_engine(), [*expected[:3], 63 - expected[3]], prompt, [0, 256])
    assert result["same_tokens"] == 3 and result["of"] == 4
    first, second = result["depths"]
    assert first["decode"] > 0 < first["prefill"] and "load_s" not in first
    assert second["load_s"] > 0 < second["read_s"]
