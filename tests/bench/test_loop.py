"""bench.loop end to end on tiny models: its keys, and that its figures add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import minimemo
from bench import loop
from tests.conftest import TinyModels

TEXT = "".join(f"The user number {i} said Hello world, be brief about room {i * 7}. 你好{i}。\n\n" for i in range(30))
KEYS = {
    "build_seconds", "tokens", "tokens_per_s", "stages", "peak_rss_bytes", "memory_bytes", "index_bytes",
    "chunks_bytes", "open_s", "first_clue_s", "first_token_cold_s", "first_token_warm_s", "ask_s", "blocks_read",
    "clues_s", "clue_alone_s",
}  # fmt: skip


def test_a_run(tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "doc.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "asked").write_text('{"question": "What did user 3 say?"}\nWhich room has user 9?\n')
    given = ["--model", str(tiny_models.decoder), "--embedder", str(tiny_models.embedder), "--json"]
    given += ["--doc", str(tmp_path / "doc.txt"), "--questions", str(tmp_path / "asked"), "--memo", str(tmp_path / "m")]
    assert loop.main(given) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) >= KEYS and found["ask_errors"] == [] and found["questions"] == 2
    told = minimemo.open(tmp_path / "m").inspect()
    assert found["tokens"] == told["memory"]["tokens"] and found["memory_bytes"] == told["memory"]["bytes"]
    assert set(found["stages"]) == {"load", "tokenize", "embed", "prefill", "encode", "finish"}
    assert min(found["stages"].values()) >= 0
    assert sum(found["stages"].values()) == pytest.approx(found["build_seconds"], abs=0.5)
    assert 0 < found["open_s"] <= found["first_clue_s"] <= found["first_token_cold_s"]
    assert 0 < found["first_token_warm_s"] <= found["ask_s"]
    assert min(found["clues_s"], found["clue_alone_s"]) > 0
    assert found["blocks_read"] >= told["memory"]["blocks"]  # a view for an answer is loaded beside that for clues
    assert found["peak_rss_bytes"] > 50e6
    assert loop.main(given) == 2 and "nothing would be built" in capsys.readouterr().err


def test_bad_arguments_are_one_line(
    tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "doc.txt").write_text(TEXT, encoding="utf-8")
    given = ["--model", str(tiny_models.decoder), "--doc", str(tmp_path / "doc.txt"), "--questions"]
    (tmp_path / "asked").write_text("{}\n")
    assert loop.main([*given, str(tmp_path / "asked")]) == 2
    (tmp_path / "asked").write_text("\n")
    assert loop.main([*given, str(tmp_path / "asked")]) == 2
    errors = capsys.readouterr().err
    assert "not questions" in errors and "holds no question" in errors
