"""The retriever: passages by vectors and by words, of one document and of several; sentences that are quoted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minimemo.errors import InputError
from minimemo.search.embedder import Embedder
from minimemo.search.retriever import Retriever
from minimemo.search.vectors import VectorIndex
from minimemo.text.chunks import Chunk
from tests.search.test_embedder import tiny_embedder
from tests.search.test_vectors import unit


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


def test_several_documents_are_searched_as_one(tmp_path: Path) -> None:
    embedder = Embedder.load(tiny_embedder(tmp_path))
    documents = [["the cat ran", "dogs far ."], [], ["the dog"]]
    indexes = [VectorIndex.build(embedder.embed_passages(texts)) for texts in documents if texts]
    chunks = [Chunk(i, 0, len(text), text) for texts in documents for i, text in enumerate(texts)]
    retriever = Retriever(VectorIndex.joined(indexes), chunks, embedder, [0, 0, 2])
    found = retriever.retrieve(["the dog", "the cat ran"], k=1)
    assert [(hit.document, hit.chunk.text) for (hit,) in found] == [(2, "the dog"), (0, "the cat ran")]
    np.testing.assert_array_equal(VectorIndex.joined(indexes).vectors()[:2], indexes[0].vectors())


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


def test_one_passage_and_none(tmp_path: Path) -> None:
    embedder = Embedder.load(tiny_embedder(tmp_path))
    one = Retriever(VectorIndex.build(embedder.embed_passages(["the cat"])), [Chunk(0, 0, 7, "the cat")], embedder)
    assert [[hit.chunk.index for hit in hits] for hits in one.retrieve(["dog", "cat"])] == [[0], [0]]
    empty = Retriever(VectorIndex.build(np.empty((0, embedder.dim), np.float32)), [], embedder)
    assert empty.retrieve(["cat"]) == [[]]


def test_a_number_that_stands_in_one_passage_only_wins(tmp_path: Path) -> None:
    embedder = Embedder.load(tiny_embedder(tmp_path))
    passages = ["the cat ran the cat", "dogs 7039 far .", "the dog ran the cat"]
    chunks = [Chunk(i, 0, len(text), text) for i, text in enumerate(passages)]
    retriever = Retriever(VectorIndex.build(embedder.embed_passages(passages)), chunks, embedder)
    (hits,) = retriever.retrieve(["the cat ran 7039"], k=3)
    assert hits[0].chunk.text == passages[1] and hits[0].score > hits[1].score


def test_what_is_no_text_is_found_last_and_a_row_has_its_header(tmp_path: Path) -> None:
    embedder = Embedder.load(tiny_embedder(tmp_path))
    blob = "TWFuIGlzIGRpc3Rpbmd1aXNoZWQsIG5vdCBvbmx5IGJ5IGhpcyByZWFzb24cat\n" * 3
    table = "order,cat\n1,red\n2,far\n3,ran", "4,dog\n5,the"
    passages = [blob, *table]
    chunks = [Chunk(i, 0, len(text), text) for i, text in enumerate(passages)]
    retriever = Retriever(VectorIndex.build(embedder.embed_passages(passages)), chunks, embedder)
    (hits,) = retriever.retrieve(["the cat"], k=3)
    assert hits[-1].chunk.text == blob
    assert {hit.header for hit in hits if hit.chunk.text == table[1]} == {"order,cat"}


def test_tokens_are_told_as_characters_in_proportion_within_passages(tmp_path: Path) -> None:
    chunks = [
        Chunk(0, 0, 100, "a" * 100, 0, 20),
        Chunk(1, 110, 210, "b" * 100, 19, 40),
        Chunk(0, 0, 50, "c" * 50, 0, 10),
    ]
    embedder = Embedder.load(tiny_embedder(tmp_path))
    index = VectorIndex.build(embedder.embed_passages([chunk.text for chunk in chunks]))
    retriever = Retriever(index, chunks, embedder, [0, 0, 1])
    assert retriever.characters(0, 0, 40) == (0, 210)
    assert retriever.characters(0, 10, 30) == (50, 160)
    assert retriever.characters(1, 5, 10) == (25, 50)


def test_what_words_settle_is_computed_over_the_whole_document(tmp_path: Path) -> None:
    """Spans count through the document, and its passages that hold them are the sources; of several none is sure."""
    embedder = Embedder.load(tiny_embedder(tmp_path))
    text = "Shed A holds 90 litres.\n\nThe dog ran.\n\nShed B holds 1,200 litres."
    spans = [(0, 23), (25, 37), (39, len(text))]
    chunks = [Chunk(i, a, b, text[a:b]) for i, (a, b) in enumerate(spans)]
    index = VectorIndex.build(embedder.embed_passages([c.text for c in chunks]))
    found = Retriever(index, chunks, embedder).figured("Which shed holds the most?")
    assert found and found[0].text == "Shed B (1,200 litres)" and [hit.chunk.start for hit in found[1]] == [0, 39]
    assert [text[a:b] for a, b in found[0].spans] == [chunks[0].text, chunks[2].text]
    assert Retriever(index, chunks, embedder, [0, 0, 1]).figured("Which shed holds the most?") is None
    assert Retriever(index, chunks, embedder).figured("Who ran?") is None
