"""The vector index as a file and as a search."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from minimemo.errors import InputError, MemoError
from minimemo.search.vectors import VectorIndex


def unit(n: int, d: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("n", "d", "q", "k"), [(1, 1, 1, 1), (17, 33, 5, 3), (97, 24, 1, 97), (5, 8, 3, 5)])
def test_search_is_exact(n: int, d: int, q: int, k: int) -> None:
    vectors, queries = unit(n, d), unit(q, d, 1)
    scores, ids = VectorIndex.build(vectors).search(queries, k)
    assert scores.shape == ids.shape == (q, k)
    assert (scores.dtype, ids.dtype) == (np.float32, np.int64)
    full = queries @ vectors.T
    np.testing.assert_allclose(scores, -np.sort(-full, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(full, ids, 1), scores, atol=1e-6)


def test_nearest_rows_are_others() -> None:
    vectors = unit(17, 24)
    vectors[5:9] = vectors[5]  # twins: a row is never its own neighbour, whichever of them the search names first
    index, rows = VectorIndex.build(vectors), np.array([8, 2, 5, 16])
    full = vectors @ vectors.T
    np.fill_diagonal(full, -np.inf)
    for k in (1, 2, 16, 40):
        found = index.nearest(rows, k)
        assert found.shape == (4, min(k, 16)) and not (found == rows[:, None]).any()
        np.testing.assert_allclose(
            np.take_along_axis(full[rows], found, 1), -np.sort(-full[rows], axis=1)[:, : min(k, 16)], atol=1e-6
        )
    assert VectorIndex.build(unit(1, 8)).nearest(np.array([0]), 3).shape == (1, 0)


def test_file_round_trip(tmp_path: Path) -> None:
    path, vectors = tmp_path / "index.bin", unit(33, 24)
    index = VectorIndex.build(vectors)
    index.save(path)
    index.save(path)  # over an older one
    assert [file.name for file in tmp_path.iterdir()] == ["index.bin"]
    plain = faiss.read_index(str(path))
    np.testing.assert_array_equal(plain.reconstruct_n(0, 33), vectors)
    opened = VectorIndex.open(path, count=33)
    assert len(opened) == 33
    for found, expected in zip(opened.search(unit(4, 24, 2), 5), index.search(unit(4, 24, 2), 5), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index.bin"
    VectorIndex.build(unit(3, 8)).save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        VectorIndex.build(unit(9, 8)).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["index.bin"]


def test_damaged_and_mismatched_files(tmp_path: Path) -> None:
    path = tmp_path / "index.bin"
    with pytest.raises(MemoError, match=r"index\.bin: no such file"):
        VectorIndex.open(path)
    VectorIndex.build(unit(33, 24)).save(path)
    whole = path.read_bytes()
    for length in [0, 1, 4, 20, 40, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(MemoError, match=r"index\.bin: damaged, or not a"):
            VectorIndex.open(path)
    path.write_bytes(whole)
    with pytest.raises(MemoError, match="33 vectors for 34 chunks"):
        VectorIndex.open(path, count=34)
    for other in (faiss.IndexFlatL2(24), faiss.IndexHNSWFlat(24, 4)):
        faiss.write_index(other, str(path))
        with pytest.raises(MemoError, match="not a flat inner-product FAISS index"):
            VectorIndex.open(path)


def test_a_flipped_header_bit_never_passes_as_another_shape(tmp_path: Path) -> None:
    """Checksums are the memo's; but whatever a damaged header says, opening ends in a MemoError or the right shape."""
    path = tmp_path / "index.bin"
    VectorIndex.build(unit(5, 8)).save(path)
    whole = path.read_bytes()
    for i in range(8 * (len(whole) - 5 * 8 * 4)):
        data = bytearray(whole)
        data[i // 8] ^= 1 << i % 8
        path.write_bytes(data)
        try:
            opened = VectorIndex.open(path, count=5)
        except MemoError:
            continue
        assert opened.search(unit(1, 8), 3)[1].shape == (1, 3)


@pytest.mark.parametrize(
    "vectors",
    [unit(3, 4) * 2, np.full((2, 4), np.nan, np.float32)],
)
def test_bad_vectors(vectors: np.ndarray) -> None:
    with pytest.raises(InputError, match="vectors:"):
        VectorIndex.build(vectors)
