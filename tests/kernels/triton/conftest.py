"""The kernels need triton, which is optional. In its interpreter no two programs of a launch store to one address."""

from __future__ import annotations

import pytest

from minimemo.kernels import triton
from tests.kernels.triton.device import DEVICE

collect_ignore_glob = [] if triton.installed() else ["test_*.py"]

if triton.installed() and DEVICE == "cpu":
    from tests.kernels.triton import interpreter

    interpreter.install()


@pytest.fixture(autouse=True)
def _stores_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        from minimemo.kernels.triton.launch import Launch

        monkeypatch.setattr(Launch, "run", interpreter.watched(Launch.run))
