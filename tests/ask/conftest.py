"""Memory is asked for every phrase, and whatever is written is shown, but where a test says otherwise."""

import pytest

from tests.ask.fakes import set_limits


@pytest.fixture(autouse=True)
def _trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, SETTLED=2.0, REFUSED=-1.0)
