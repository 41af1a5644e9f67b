"""What is told of long work where nobody watches."""

from __future__ import annotations

import pytest

from minimemo.cli import screen
from minimemo.cli.screen import Bar
from minimemo.events import Event


def test_a_line_after_five_seconds_then_ten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(screen, "monotonic", lambda: now)
    bar = Bar(quiet=False, terminal=False)
    for second in range(28):
        now = 100.0 + second
        bar(Event("read", 1000 * second, 28_000, "tok"))
    assert capsys.readouterr().err.splitlines() == ["read: 5,000 of 28,000 tok", "read: 15,000 of 28,000 tok",
                                                    "read: 25,000 of 28,000 tok"]  # fmt: skip
    for second in range(4):  # a stage that is over soon
        now = 200.0 + second
        bar(Event("embed", second, 4))
    bar(Event("pull x", 0, 0, "B"))
    now += 6
    bar(Event("pull x", 3_000_000, 0, "B"))
    assert capsys.readouterr().err == "pull x: 3.0 MB\n"


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr(screen, "monotonic", lambda: now)
    bar = Bar(quiet=True, terminal=False)
    for second in range(60):
        now = float(second)
        bar(Event("read", second, 60))
    assert capsys.readouterr().err == ""
