"""Memory is asked for every phrase, and whatever is written is shown, but where a test says otherwise; answers are
weighed by round numbers, so that tests do not hang on what was fitted."""

import pytest

from minimemo.ask import trust
from tests.ask.fakes import set_limits

WEIGHTS = {
    "bias": -1.5, "held": 0.5, "related": 1.0, "asked": 1.0, "named": 1.0, "fits": 0.5, "new": 0.5, "likely": 1.0,
    "margin": 0.5, "stated": 0.5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, SETTLED=2.0, REFUSED={False: -1.0, True: -1.0})
    monkeypatch.setattr(trust, "_weights", lambda: dict.fromkeys(("large", "small", "words"), WEIGHTS))
