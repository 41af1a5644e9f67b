"""What gpu_check measures of a model, on one that fits a test."""

from __future__ import annotations

import json
from pathlib import Path

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


def test_a_rival_is_asked_where_it_is(tmp_path: Path) -> None:
    program = tmp_path / "llama-bench"
    row = {"n_depth": 0, "n_prompt": 512, "n_gen": 0, "avg_ts": 9.5}
    program.write_text(f"#!/bin/sh\necho '[{json.dumps(row | {'other': 1})}]'; echo \"$@\" > {tmp_path}/asked\n")
    program.chmod(0o755)
    assert model.rival(str(program), tmp_path / "a.gguf") == [row]
    assert "-d 0,4096,16384 -o json" in (tmp_path / "asked").read_text()
    assert model.rival(None, tmp_path / "a.gguf") == model.rival(str(program), tmp_path) == []
