"""Events: every stage of the code is documented, and who gives no listener finds them logged."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

import minimemo
from minimemo.events import Event, silent

ROOT = Path(__file__).resolve().parents[1]


def test_every_stage_is_documented() -> None:
    reported = set[str]()
    for path in (ROOT / "minimemo").rglob("*.py"):
        for stage, rest in re.findall(
            r'(?:Event\(|\.stage\()\s*f?"([a-z ]+?)(?: \{\w+\})?"(.*)', path.read_text(encoding="utf-8")
        ):
            if '"note"' not in rest and '"detail"' not in rest:
                reported.add(stage)
    assert {"read", "answer", "pull", "memory"} <= reported
    told = {
        stage.strip()
        for part in " ".join((minimemo.Event.__doc__ or "").split()).split(": ")
        for stage in re.split(r"[,;:.]| \(.*?\)| NAME| and ", part)
    }
    assert reported <= told, reported - told


def test_without_a_listener_events_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="minimemo"):
        for event in (Event("read", 5, 10), Event("read", 10, 10, "tokens"), Event("100 % read", 1, 1, "note")):
            silent(event)
    logged = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert logged == [("DEBUG", "read: 10 tokens"), ("INFO", "100 % read")]
