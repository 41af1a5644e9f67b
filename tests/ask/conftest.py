"""Memory is asked for every phrase, and whatever is written is shown, but where a test says otherwise; answers are
weighed by round numbers, so that tests do not hang on what was fitted."""

import pytest

from minimemo.ask import trust
from tests.ask.fakes import set_limits

WEIGHTS = {
    "bias": -2.5, "held": 0.5, "around": 1.5, "figures": 1.0, "named": 1.0, "margin": 0.5, "stated": 1.0,
}  # fmt: skip
WHOLE = {"bias": -2.5, "margin": 0.5, "stated": 1.0, "same": 2.0, "first": 2.0}


@pytest.fixture(autouse=True)
def _trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, SETTLED=2.0, REFUSED=-1.0)
    monkeypatch.setattr(
        trust, "_weights", lambda: dict.fromkeys(("large", "small", "words"), WEIGHTS) | {"whole": WHOLE}
    )
