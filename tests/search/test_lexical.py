"""BM25 against its formula, terms of several scripts, and the fusion of rankings."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minimemo.search.fusion import LIMIT, fuse, fuse_expanded, over_regions, standard_scores, with_phrases
from minimemo.search.lexical import BORROWED, K1, B, LexicalIndex
from minimemo.text.words import quoted, singular, terms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The LIGHT, of 1852!", ["light", "1852"]),
        ("灯塔是1852年点亮的", ["灯塔", "塔是", "1852", "年点", "点亮", "亮的"]),
        ("在 x_b", ["在", "x", "b"]),
        ("Whose lamps were those?", ["lamp"]),
        ("ＡＢＣ Straße", ["abc", "strasse"]),
        ("東京タワーへ", ["東京", "京タ", "タワ", "ワー", "ーへ"]),
        ("서울 탑", ["서울", "탑"]),
        ("é e\u0301", ["é", "é"]),
        (" …!", []),
    ],
)
def test_terms(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


@pytest.mark.parametrize(
    ("plural", "found"),
    [
        ("lamps", "lamp"), ("stories", "story"), ("houses", "house"), ("boxes", "boxe"), ("glass", "glass"),
        ("bus", "bus"), ("as", "as"), ("shoes", "shoe"), ("lamp", "lamp"), ("années", "années"), ("movies", "movy"),
    ],
)  # fmt: skip
def test_plurals(plural: str, found: str) -> None:
    """What the S stemmer does, its slips included."""
    assert singular(plural) == found


def test_scores_are_the_formula_s() -> None:
    texts = ["x b b c", "b d", "e e e e e e", ""]
    index = LexicalIndex(texts)
    mean = (4 + 2 + 6 + 0) / 4

    def weight(count: int, length: int, holders: int) -> float:
        idf = math.log(1 + (4 - holders + 0.5) / (holders + 0.5))
        return idf * count * (K1 + 1) / (count + K1 * (1 - B + B * length / mean))

    expected = [weight(2, 4, 2) + weight(1, 4, 1), weight(1, 2, 2), 0, 0]
    np.testing.assert_allclose(index.scores("b C y b"), expected, rtol=1e-6)
    np.testing.assert_array_equal(index.scores("who of them"), np.zeros(4))
    assert LexicalIndex([]).scores("b").shape == (0,)
    np.testing.assert_array_equal(LexicalIndex(["", "the"]).scores("the b"), np.zeros(2))


def test_standard_scores() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0.8, 0.02, (3, 97)).astype(np.float32)
    scores[1] = 0.7  # nothing stands out
    found = standard_scores(scores)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[[0, 2]].mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(found[[0, 2]].std(axis=1), 1, rtol=1e-4)
    np.testing.assert_array_equal(found[1], np.zeros(97))


def test_fusion_hears_who_stands_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ranking without an opinion changes nothing; scale and offset of a ranking do not count, its weight does."""
    vectors = np.array([[0.81, 0.82, 0.80, 0.79]], np.float32)
    words = np.array([[9.0, 0.0, 0.0, 0.0]], np.float32)
    silent = np.zeros((1, 4), np.float32)
    assert fuse(vectors, silent).argmax() == 1
    assert fuse(vectors, words).argmax() == 0
    np.testing.assert_allclose(fuse(vectors * 10 + 3, words * 5), fuse(vectors, words), atol=1e-4)
    monkeypatch.setattr("minimemo.search.fusion.WEIGHT", 0.9)
    assert fuse(vectors, words).argmax() == 1


def test_one_rare_word_does_not_outweigh_everything() -> None:
    """In a long document the only passage with some word stands out by many standard deviations."""
    words = np.zeros((1, 4000), np.float32)
    words[0, 0] = 9
    assert standard_scores(words)[0, 0] > 60
    assert fuse(np.zeros_like(words), words)[0, 0] == pytest.approx(LIMIT / 2, rel=1e-3)
    few = np.array([[3.0, 1.0, 0.0, 0.0, 2.0]], np.float32)
    np.testing.assert_allclose(2 * fuse(np.zeros_like(few), few), standard_scores(few), rtol=0.03)


def test_expanded_scores_are_the_formula_s() -> None:
    texts = ["x b b c", "b d", "e e e e e e", ""]
    index = LexicalIndex(texts)
    rows, near = np.array([3, 1]), np.array([[0, 1], [2, 3]])
    mean = (4 + 2 + 6 + 0) / 4

    def weight(count: float, length: float) -> float:
        idf = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5))
        return idf * count * (K1 + 1) / (count + K1 * (1 - B + B * length / mean))

    expected = [
        weight(BORROWED * (2 + 1), BORROWED * (4 + 2) / (1 + 2 * BORROWED)),
        weight(1, (2 + BORROWED * (6 + 0)) / (1 + 2 * BORROWED)),
    ]
    np.testing.assert_allclose(index.expanded_scores("b B", rows, near), expected, rtol=1e-6)
    np.testing.assert_array_equal(index.expanded_scores("who", rows, near), np.zeros(2))
    alone = index.expanded_scores("b", rows, np.empty((2, 0), np.int64))
    np.testing.assert_allclose(alone, index.scores("b")[rows], rtol=1e-6)


def test_a_passage_is_found_by_its_neighbours_words() -> None:
    """Of two passages as near to the query, neither of which says its word, the one among those that say it wins."""
    texts = ["zeppelin", "it ran", "lamp", "it fell", *["mill"] * 6]
    near = np.array([[1], [0], [3], [2], [5], [4], [7], [6], [9], [8]])
    vectors = np.array([[0.8, 0.8, 0.7, 0.8, *[0.7] * 6]], np.float32)
    index = LexicalIndex(texts)
    words = index.scores("zeppelin")[None]
    assert np.ptp(fuse(vectors, words)[0, [1, 3]]) == 0
    fused = fuse_expanded(vectors, words, index, ["zeppelin"], lambda rows: near[rows])
    assert fused[0].argsort()[::-1][:3].tolist() == [0, 1, 3]
    assert words[0, 1] == 0, "the scores given stay as they are"


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ('the parts related to "Governing Law" and “Term”', ["Governing Law", "Term"]),
        ("关于“学术界对开源的认识”，会议上讨论了哪些内容？", ["学术界对开源的认识"]),
        ("「馬來語言」和『印尼語言』", ["馬來語言", "印尼語言"]),
        ("the king's men didn't, 'they' said", []),
        ('"the" "" "?" one " left', []),
        ('Is a 3.5" disk larger than a 5.25" disk?', []),
        ("„Das Recht“ und « la loi »", ["Das Recht", "la loi"]),
    ],
)
def test_quoted_phrases(text: str, phrases: list[str]) -> None:
    assert quoted(text) == phrases


def test_a_quoted_phrase_weighs_half() -> None:
    queries, phrases = np.float32([[1, 2], [3, 4]]), np.float32([[5, 0], [0, 5]])
    np.testing.assert_array_equal(with_phrases(queries, phrases, [1, 1]), [[1, 2], [2.75, 3.25]])
    np.testing.assert_array_equal(with_phrases(queries, phrases[:1], [0]), [[3, 1], [3, 4]])
    np.testing.assert_array_equal(with_phrases(queries, phrases[:0], []), queries)


def test_a_long_region_stands_out_before_a_single_passage_and_no_document_reaches_into_the_next() -> None:
    scores = np.zeros((1, 30), np.float32)
    scores[0, 5], scores[0, 14:19], scores[0, 20:] = 4, 2, -1
    smooth = over_regions(scores, [0] * 20 + [1] * 10)
    assert smooth.shape == (1, 30) and smooth.dtype == np.float32
    assert smooth[0].argmax() == 16 and set(smooth[0].argsort()[-5:]) == set(range(14, 19))
    alone = over_regions(scores[:, :20], [0] * 20)
    np.testing.assert_allclose(smooth[:, :20], alone, atol=1e-6)
    np.testing.assert_allclose(over_regions(np.ones((2, 30), np.float32), [0] * 30), 1, rtol=1e-6)
    np.testing.assert_allclose(over_regions(scores[:, 5:6], [0]), 4, rtol=1e-6)
