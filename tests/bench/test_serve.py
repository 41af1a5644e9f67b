"""What the benches of readers and drafts count."""

from __future__ import annotations

import pytest

from bench.lookup import Batch, _passes
from bench.soak import _growth


def test_memory_grows_from_its_first_quarter_after_the_first_minute_to_its_last() -> None:
    sizes = [(float(at), 100 + (at if at < 60 else 60 + at // 100)) for at in range(460)]
    assert _growth(sizes) == pytest.approx(4 / 161 - 1 / 161)
    assert _growth(sizes[:62]) is None, "too short to tell"


def test_drafts_are_replayed_as_an_engine_checks_them() -> None:
    copied, other = [5, 6, 7, 8, 9, 10], [20, 21, 22]
    batch = Batch([[5, 6, 7, 8, 9, 10, 11]], [copied], 7)
    assert _passes(batch, 1) == {1: 6}
    assert _passes(batch, 4) == {1: 2, 4: 1}, "a step for 5, one for 6 with 7, 8 and 9, one for 10"
    both = Batch([[5, 6, 7, 8, 9, 10, 11], [1]], [copied, other], 7)
    assert _passes(both, 1) == {2: 3, 1: 3}
