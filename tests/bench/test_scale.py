"""The bench of libraries on a few memos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.scale import library, nearest, picking


def test_a_row_has_every_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path))
    row = library.row(4, 2)
    assert row.keys() == {name for name, _ in library.COLUMNS}
    assert row["passages"] == 8 and all(value > 0 for value in row.values())


def test_words_that_are_asked_for_are_of_one_document_alone() -> None:
    texts = {"a": "The harbour report 20241107 names nobody.", "b": "The harbour of Lisbon has a lighthouse."}
    asked = picking._words(texts)
    assert asked["number"] == [("a", "What is said about 20241107?")]
    assert {name for name, _ in asked["word"]} == {"a", "b"} and "harbour" not in str(asked)


def test_synthetic_vectors_lie_as_real_ones() -> None:
    real = library.unit(np.random.default_rng(0), 40)
    made = nearest.synthetic(real, 300)
    assert made.shape == (300, 384) and np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    assert (made @ real.T).max(1).mean() > 0.5
