"""The vector index as a file and as a search; the retriever on top of it."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from minimemo.errors import InputError, MemoError
from minimemo.search.embedder import Embedder
from minimemo.search.index import Retriever, VectorIndex
from minimemo.text.chunks import Chunk
from minimemo.text.sentences import sentences
from tests.search.test_embedder import tiny_embedder


def unit(n: int, d: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("n", "d", "q", "k"), [(1, 1, 1, 1), (17, 33, 5, 3), (97, 24, 1, 97), (5, 8, 3, 9), (9, 8, 0, 3), (0, 8, 2, 3)]
)
def test_search_is_exact(n: int, d: int, q: int, k: int) -> None:
    vectors, queries = unit(n, d), unit(q, d, 1)
    scores, ids = VectorIndex.build(vectors).search(queries, k)
    assert scores.shape == ids.shape == (q, min(k, n))
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
    opened = VectorIndex.open(path, dim=24, count=33)
    assert (len(opened), opened.dim) == (33, 24)
    for found, expected in zip(opened.search(unit(4, 24, 2), 5), index.search(unit(4, 24, 2), 5), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index.bin"
    VectorIndex.build(unit(3, 8)).save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
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
    with pytest.raises(MemoError, match="vectors of 24 numbers, the embedder makes 384"):
        VectorIndex.open(path, dim=384)
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
            opened = VectorIndex.open(path, dim=8, count=5)
        except MemoError:
            continue
        assert opened.search(unit(1, 8), 3)[1].shape == (1, 3)


@pytest.mark.parametrize(
    "vectors",
    [np.ones(4, np.float32), unit(3, 4).astype(np.float64), unit(3, 4) * 2, np.full((2, 4), np.nan, np.float32)],
)
def test_bad_vectors(vectors: np.ndarray) -> None:
    with pytest.raises(InputError, match="vectors:"):
        VectorIndex.build(vectors)


def test_bad_searches() -> None:
    index = VectorIndex.build(unit(3, 4))
    with pytest.raises(InputError, match="k must be at least 1"):
        index.search(unit(1, 4), 0)
    with pytest.raises(InputError, match=r"shape \(1, 5\), not \(q, 4\)"):
        index.search(unit(1, 5), 1)


def test_retriever(tmp_path: Path) -> None:
    embedder = Embedder.load(tiny_embedder(tmp_path))
    passages = ["the cat ran", "dogs far .", "中文", "the dog"]
    chunks = [Chunk(i, 0, len(text), text) for i, text in enumerate(passages)]
    index = VectorIndex.build(embedder.embed_passages(passages))
    retriever = Retriever(index, chunks, embedder)
    found = retriever.retrieve(passages[::-1], k=2)
    assert [hits[0].chunk.text for hits in found] == passages[::-1]
    for hits in found:
        assert len(hits) == 2
        assert hits[0].score > hits[1].score
        assert hits[0].sources == ("embedding", "lexical")
        assert isinstance(hits[0].score, float)
    assert [len(hits) for hits in retriever.retrieve(["cat"], k=99)] == [4]
    assert retriever.retrieve([]) == []
    assert retriever.holds("Cats") and retriever.holds("中文") and retriever.holds("the") and not retriever.holds("cow")
    assert not retriever.holds("cat-cow")
    with pytest.raises(InputError, match="k must be at least 1"):
        retriever.retrieve(["cat"], k=0)
    with pytest.raises(MemoError, match="4 vectors for 3 chunks"):
        Retriever(index, chunks[:3], embedder)
    with pytest.raises(MemoError, match="dimension 8, the embedder makes 24"):
        Retriever(VectorIndex.build(unit(4, 8)), chunks, embedder)


def test_several_documents_are_searched_as_one(tmp_path: Path) -> None:
    embedder = Embedder.load(tiny_embedder(tmp_path))
    documents = [["the cat ran", "dogs far ."], [], ["the dog"]]
    indexes = [VectorIndex.build(embedder.embed_passages(texts)) for texts in documents if texts]
    chunks = [Chunk(i, 0, len(text), text) for texts in documents for i, text in enumerate(texts)]
    retriever = Retriever(VectorIndex.joined(indexes), chunks, embedder, [0, 0, 2])
    found = retriever.retrieve(["the dog", "the cat ran"], k=1)
    assert [(hit.document, hit.chunk.text) for (hit,) in found] == [(2, "the dog"), (0, "the cat ran")]
    np.testing.assert_array_equal(VectorIndex.joined(indexes).vectors()[:2], indexes[0].vectors())
    with pytest.raises(InputError, match=r"dimensions \[24, 8\] cannot be searched together"):
        VectorIndex.joined([indexes[0], VectorIndex.build(unit(4, 8))])


def test_words_find_what_vectors_blur(tmp_path: Path) -> None:
    """Of passages with one and the same vector, the one that holds the question's word comes first, by its words."""
    embedder = Embedder.load(tiny_embedder(tmp_path))
    passages = ["the cat ran", "the dog ran", "the zeppelin ran", "the dogs ran"]
    chunks = [Chunk(i, 0, len(text), text) for i, text in enumerate(passages)]
    same = np.repeat(unit(1, embedder.dim), 4, axis=0)
    retriever = Retriever(VectorIndex.build(same), chunks, embedder)
    first = retriever.retrieve(["What of the zeppelin?"], k=1)[0][0]
    assert (first.chunk.text, first.sources) == ("the zeppelin ran", ("lexical",))
    [hits] = retriever.retrieve(["nothing of it"], k=3)
    assert [hit.score for hit in hits] == [0, 0, 0]


def test_words_alone_find_what_the_embedder_cannot_read(tmp_path: Path) -> None:
    """Vectors of texts of unknown words are near each other for nothing: they neither rank nor lend words."""
    embedder = Embedder.load(tiny_embedder(tmp_path))
    passages = ["船长修灯塔", "灯塔很高", "船长老了", "the cat ran"]
    chunks = [Chunk(i, 0, len(text), text) for i, text in enumerate(passages)]
    retriever = Retriever(VectorIndex.build(embedder.embed_passages(passages)), chunks, embedder)
    read, unread = retriever.retrieve(["the cat", "船长修灯塔"], k=4)
    assert read[0].chunk.index == 3 and "embedding" in read[0].sources
    assert unread[0].chunk.index == 0 and [hit.sources for hit in unread[:3]] == [("lexical",)] * 3
    assert unread[3].score < unread[2].score, "a passage that shares no word is behind all that do"


def test_what_a_question_quotes_counts_half_and_regions_reach_over_passages(tmp_path: Path) -> None:
    embedder = Embedder.load(tiny_embedder(tmp_path))
    passages = ["the dog ran", "the cat ran", "far .", "the zeppelin ran", *["far ."] * 9]
    chunks = [Chunk(i, 0, len(text), text) for i, text in enumerate(passages)]
    retriever = Retriever(VectorIndex.build(np.repeat(unit(1, embedder.dim), 13, axis=0)), chunks, embedder)
    [plain] = retriever.retrieve(["the dog, the cat and the zeppelin"], k=3)
    assert len({hit.score for hit in plain}) == 1 and {hit.chunk.index for hit in plain} == {0, 1, 3}
    [found] = retriever.retrieve(['the dog, the cat and the "zeppelin"'], k=3)
    assert found[0].chunk.index == 3 and found[0].score > 2 * found[1].score
    [hits] = retriever.retrieve(["the dog, the cat and the zeppelin"], k=4, regions=True)
    assert {hit.chunk.index for hit in hits} == {0, 1, 2, 3}, "what stands between them is of the same region"


def test_sentences_of_found_passages_are_quoted(tmp_path: Path) -> None:
    embedder = Embedder.load(tiny_embedder(tmp_path))
    text = (
        "Harbours and lights. The zeppelin flew over the harbour of Bremen. The keeper painted a red wall.\n\n"
        "Nobody ever painted the tall northern tower again. The zeppelin burned near the western mill in May.\n"
    )
    ends = [text.index("\n\n"), len(text) - 1]
    spans = [(0, ends[0]), (ends[0] + 2, ends[1])]
    chunks = [Chunk(i, a, b, text[a:b]) for i, (a, b) in enumerate(spans)]
    retriever = Retriever(VectorIndex.build(np.repeat(unit(1, embedder.dim), 2, axis=0)), chunks, embedder)
    [hits] = retriever.retrieve(["Quote what burned near the mill."], k=2)
    quoted = retriever.quote("Quote what burned near the mill.", hits)
    assert quoted[0].chunk.text == "The zeppelin burned near the western mill in May."
    assert all(text[hit.chunk.start : hit.chunk.end] == hit.chunk.text for hit in quoted)
    assert len(quoted) == 1, "the others come nowhere near"
    [hits] = Retriever(VectorIndex.build(unit(1, embedder.dim)), chunks[:1], embedder).retrieve(["zeppelin"], k=1)
    alike = retriever.quote("Hamburg", hits)
    assert len(alike) == 1, "of what says nothing of it there is one at most"
    assert retriever.quote("zeppelin", []) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Term. The contract ends after five long years. The parties may renew it by written notice.",
         ["Term. The contract ends after five long years.", "The parties may renew it by written notice."]),
        ("One fat mouse ate red cheese. So.", ["One fat mouse ate red cheese. So."]),
        ("灯塔建于一八五二年。船长老了。女儿在港口卖鱼。", ["灯塔建于一八五二年。", "船长老了。女儿在港口卖鱼。"]),
        ("One fat mouse ate red cheese.\n\nII", ["One fat mouse ate red cheese.", "II"]),
        ("Rules:\n- fat mice eat ripe red cheese\n- old cats eat fat mice\n2. dogs eat no cats or mice today",
         ["Rules:\n- fat mice eat ripe red cheese", "- old cats eat fat mice", "2. dogs eat no cats or mice today"]),
        ("\n\n  Short  \n\n", ["Short"]),
        ("…", ["…"]),
        (" \n", []),
        ("", []),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: list[str]) -> None:
    """A heading goes with what follows it, the short end of a paragraph with what stands before it; spans are the
    document's."""
    found = sentences(Chunk(7, 100, 100 + len(text), text), 3)
    assert [chunk.text for chunk in found] == expected
    assert [chunk.index for chunk in found] == list(range(3, 3 + len(found)))
    assert all(text[chunk.start - 100 : chunk.end - 100] == chunk.text for chunk in found)


def test_one_passage_and_none(tmp_path: Path) -> None:
    embedder = Embedder.load(tiny_embedder(tmp_path))
    one = Retriever(VectorIndex.build(embedder.embed_passages(["the cat"])), [Chunk(0, 0, 7, "the cat")], embedder)
    assert [[hit.chunk.index for hit in hits] for hits in one.retrieve(["dog", "cat"])] == [[0], [0]]
    empty = Retriever(VectorIndex.build(np.empty((0, embedder.dim), np.float32)), [], embedder)
    assert empty.retrieve(["cat"]) == [[]]
