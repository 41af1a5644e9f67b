"""Needles: hidden where they should be, asked for in every way; the table and the JSON line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.needle import Needle, haystack, main
from minimemo.models.tokenizer import Tokenizer
from tests.conftest import TinyModels

HAY = "".join(f"The user number {i} said Hello world in room {i * 7}.\n\n" for i in range(200))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "needle").mkdir()
    (tmp_path / "docs.jsonl").write_text("")
    rows = [
        {"id": "a", "needle": "Figs are one.", "question": "Which fruit?", "answers": ["Figs, nuts"], "group": "p"},
        {"id": "b", "needle": "Nuts are one.", "question": "Which fruit?", "answers": ["Figs, nuts"], "group": "p"},
        *(
            {"id": f"n{i}", "needle": f"Tower {i} is blue.", "question": f"What is tower {i}?", "answers": ["blue"]}
            for i in range(3)
        ),
    ]
    (tmp_path / "needle" / "needles_en.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "hay.txt").write_text(HAY)
    return tmp_path


@pytest.mark.parametrize("length", [600, 2000])
def test_needles_lie_at_their_depths(length: int, tiny_models: TinyModels) -> None:
    tokenizer = Tokenizer.load(tiny_models.decoder)
    needles = [Needle(depth, (f"Tower {depth} is blue.",), "", ()) for depth in (0.05, 0.5, 0.95)]
    text = haystack(HAY, length, needles, tokenizer)
    assert abs(len(tokenizer.encode(text)) - length) < 8
    for needle in needles:
        at = text.index(needle.texts[0])
        assert text[at - 2 : at] in ("\n\n", "") and abs(at / len(text) - needle.depth) < 0.1


def test_a_run(data: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]) -> None:
    run = [
        "--model", str(tiny_models.decoder), "--embedder", str(tiny_models.embedder), "--data", str(data),
        "--haystack", str(data / "hay.txt"), "--lengths", "600,1k", "--depths", "4", "--max-tokens", "4",
    ]  # fmt: skip
    assert main(run) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + 2 * 3
    told = json.loads(last)
    assert list(told["lengths"]) == ["600", "1000"] and len(told["depths"]) == 4
    for row in told["lengths"].values():
        for mode in ("memory", "rag", "memorag"):
            assert row[mode]["found"] == sum(row[mode]["by_depth"]) / 4
    assert main([*run, "--modes", "rag", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["lengths"]["600"]["rag"]["by_depth"] == told["lengths"]["600"]["rag"]["by_depth"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "4q"], "'4q' is no number of tokens"),
        (["--depths", "5"], "has 4 needles in this language"),
        (["--depths", "0"], "at least 1"),
        (["--modes", "graph"], "known modes"),
        (["--lengths", "100"], "would be most of them"),
        (["--lengths", "900k"], "give a longer haystack"),
        (["--haystack", "missing.txt"], "no such file"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, data: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [
        "--model", str(tiny_models.decoder), "--embedder", str(tiny_models.embedder), "--data", str(data),
        "--haystack", str(data / "hay.txt"), "--lengths", "600", "--depths", "4",
    ]  # fmt: skip
    assert main([*run, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
