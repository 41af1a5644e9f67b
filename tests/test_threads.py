"""What is set for torch's threads and caches of code: the defaults, and when they are left alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def _seen(code: str, **given: str) -> list[str | None]:
    """What a new process has in these variables after `code`."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | given
    probe = f"{code}; import os; print(repr([os.environ.get(n) for n in {NAMES!r}]))"
    done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=True)
    found = eval(done.stdout)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("code", ["import minimemo", "import minimemo.kernels.native"])
def test_threads_spin_briefly_unless_told(code: str) -> None:
    assert _seen(code) == ["1000", None, "64", "64"]


@pytest.mark.parametrize("given", [dict.fromkeys(NAMES[:1] + NAMES[2:], "7"), {"OMP_WAIT_POLICY": "active"}])
def test_what_the_user_says_stays(given: dict[str, str]) -> None:
    defaults = dict.fromkeys(NAMES[2:], "64")
    assert _seen("import minimemo", **given) == [(defaults | given).get(name) for name in NAMES]


def test_nothing_is_set_where_torch_came_first() -> None:
    """It has read the variables by then: setting them would only mislead."""
    assert _seen("import sys; sys.modules['torch'] = sys; import minimemo") == [None] * 4
