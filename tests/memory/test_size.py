"""A memory of at most so many bytes, on a tiny model."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import minimemo
from minimemo.cli.arguments import main
from minimemo.errors import InputError
from minimemo.events import Event
from minimemo.files import parse_size, size
from minimemo.memo.calibrate import calibrate
from minimemo.memory.size import MEASURED, expected_divergence, expected_quality
from minimemo.runtime import LanguageModel
from tests.conftest import TinyModels

TEXT = "".join(f"The user number {i} said Hello world, be brief about room {i * 7}. 你好{i}。\n\n" for i in range(60))


@pytest.fixture(scope="module")
def model(model: LanguageModel) -> LanguageModel:
    calibrate(model, [TEXT, TEXT[::-1]])
    return model


@pytest.mark.parametrize(
    ("text", "count"),
    [("20MB", 20_000_000), ("500kB", 500_000), ("1.5GB", 1_500_000_000), ("300000", 300_000), ("7", 7),
     (" 2 mb ", 2_000_000), ("64K", 64_000), ("10b", 10)],
)  # fmt: skip
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "MB", "0", "-3", "20MiB", "2e6", "1,5GB", "0.3", "20 apples", "٣MB", "1.MB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="write it like 20MB"):
        parse_size(text)


def test_sizes_in_words() -> None:
    assert [size(n) for n in (7, 1234, 20_460_000, 3e9)] == ["7 B", "1.2 kB", "20.5 MB", "3.0 GB"]


def test_expectations_follow_what_was_measured() -> None:
    for ratio, divergence in MEASURED:
        assert expected_divergence(ratio) == pytest.approx(divergence)
    ratios = [5, 10, 15, 20, 26, 30, 45, 70, 100, 120]
    found = [expected_divergence(ratio) for ratio in ratios]
    assert found == sorted(found) and len(set(found)) == len(found)
    assert expected_quality(26.1).startswith("about balanced (KL about 0.012")
    assert expected_quality(9).startswith("finer than high") and expected_quality(70).startswith("coarser than small")


def test_memories_fit_their_budgets(loaded: dict[str, Any], tmp_path: Path) -> None:
    """From generous to tight: each within its budget, and not far below it where it is not as good as it gets."""
    document = minimemo.Document.of(TEXT, "doc")
    high = minimemo.build(document, tmp_path / "high.memo", **loaded, memory="high")
    whole = high.manifest.files["memory.bin"].bytes
    steps = []
    for budget in (10 * whole, 2 * whole, whole, int(whole / 1.5)):
        events: list[Event] = []
        memo = minimemo.build(document, tmp_path / f"{budget}.memo", **loaded, budget=budget, on_event=events.append)
        taken = memo.manifest.files["memory.bin"].bytes
        assert taken <= budget
        assert budget == 10 * whole or taken > 0.75 * budget
        (note,) = [event.stage for event in events if event.stage.startswith("budget ")]
        assert f"budget {size(budget)}: memory.bin of about " in note and "x smaller than fp16 KV" in note
        steps.append(memo.manifest.recipe.params["key_step"])
    assert steps == sorted(steps) and len(set(steps)) == len(steps)


def test_the_smallest_that_works_works(loaded: dict[str, Any], tmp_path: Path) -> None:
    document = minimemo.Document.of(TEXT, "doc")
    with pytest.raises(InputError, match=r"budget 1\.0 kB: too small for [\d,]+ tokens; the smallest") as refused:
        minimemo.build(document, tmp_path / "a.memo", **loaded, budget="1kB")
    assert not list(tmp_path.iterdir())
    named = str(refused.value).rsplit(" ", 1)[1]
    memo = minimemo.build(document, tmp_path / "a.memo", **loaded, budget=named)
    assert memo.manifest.files["memory.bin"].bytes <= parse_size(named)


def test_once_built_it_is_there(loaded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = minimemo.Document.of(TEXT, "doc")

    def build(budget: str) -> list[str]:
        events: list[Event] = []
        minimemo.build(document, tmp_path / "a.memo", **loaded, budget=budget, on_event=events.append)
        return [event.stage for event in events]

    first = build("60kB")
    assert "read" in first
    monkeypatch.setattr("minimemo.memo.passages.encode_in_pieces", lambda *_: pytest.fail("counted again"))
    assert build("60kB") == ["already built"]
    monkeypatch.undo()
    assert "read" in build("50kB")


def test_a_killed_build_goes_on(loaded: dict[str, Any], tmp_path: Path) -> None:
    document, left = minimemo.Document.of(TEXT, "doc"), tmp_path / "left"
    given = {**loaded, "budget": "60kB", "window": 1024}

    class Killed(BaseException):
        pass

    def die(event: Event) -> None:
        if event.stage == "read" and event.done > 1200:
            shutil.copytree(tmp_path / ".a.memo.building", left)
            raise Killed

    with pytest.raises(Killed):
        minimemo.build(document, tmp_path / "a.memo", **given, on_event=die)
    left.rename(tmp_path / ".a.memo.building")
    events: list[Event] = []
    memo = minimemo.build(document, tmp_path / "a.memo", **given, on_event=events.append)
    assert [event.stage for event in events if "goes on at" in event.stage]
    assert memo.manifest == minimemo.build(document, tmp_path / "fresh.memo", **given).manifest


def test_a_document_that_takes_more_than_expected_says_so(
    loaded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minimemo.memory.size.ABOVE_ENTROPY", 0.5)
    monkeypatch.setattr("minimemo.memory.size.OVERHEAD", 0.5)
    events: list[Event] = []
    document = minimemo.Document.of(TEXT, "doc")
    minimemo.build(document, tmp_path / "a.memo", **loaded, budget="50kB", on_event=events.append)
    (note,) = [event.stage for event in events if "above the budget" in event.stage]
    assert note.startswith("memory.bin came to ") and parse_size(note.rsplit("=", 1)[1].rstrip("`")) < 50_000


def test_a_budget_and_a_tier(loaded: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one of them"):
        minimemo.build(minimemo.Document.of(TEXT), tmp_path / "a", **loaded, memory="int4", budget="1MB")


def test_on_the_command_line(
    tiny_models: TinyModels,
    model: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of standard input, whose length nobody knows beforehand."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    memo = tmp_path / "a.memo"
    assert main(["build", "-", "-o", str(memo), "--budget", "60kB", *tiny_models.options]) == 0
    assert "budget 60.0 kB: memory.bin of about" in capsys.readouterr().err
    assert (memo / "memory.bin").stat().st_size <= 60_000
    for arguments in (["--budget", "60kB", "--memory", "int4"], ["--budget", "small"]):
        with pytest.raises(SystemExit) as refused:
            main(["build", "-", *arguments])
        assert refused.value.code == 2
    assert "write it like 20MB" in capsys.readouterr().err
