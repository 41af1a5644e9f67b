"""Codes into streams by tables of frequencies and back, natively and in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimemo.kernels import native, ranges
from minimemo.kernels.ranges import BITS, CODES, LANES, Tables, decode_ranges, encode_ranges

ONE = 1 << BITS
NATIVE = pytest.mark.skipif(native.unavailable() is not None, reason="needs the native library")


def _tables(*rows: dict[int, int]) -> Tables:
    frequency = np.zeros((len(rows), CODES), np.int64)
    for to, row in zip(frequency, rows, strict=True):
        to[list(row)] = list(row.values())
    return Tables.of(frequency)


TABLES = _tables({0: ONE - 1, 127: 1}, {0: 1000, 1: 2000, 2: 1000, 9: 96}, dict.fromkeys(range(CODES), ONE // CODES))


def _codes(runs: list[tuple[int, int]], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    parts = [TABLES.code_of[table, rng.integers(ONE, size=count)] for table, count in runs]
    return np.concatenate([*parts, np.empty(0, np.uint8)])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 90)), max_size=5), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_there_and_back(runs: list[tuple[int, int]], seed: int) -> None:
    codes = _codes(runs, seed)
    stream = encode_ranges(codes, TABLES, runs)
    assert np.array_equal(decode_ranges(stream, TABLES, runs), codes)
    if len(codes):
        assert ranges._encode(codes, TABLES, runs) == stream
        assert np.array_equal(ranges._decode(stream, TABLES, runs), codes)


def test_bytes_are_those_of_the_entropy() -> None:
    runs = [(2, 500), (1, 3000), (0, 20_000)]
    codes = _codes(runs, 1)
    of = np.repeat([table for table, _ in runs], [count for _, count in runs])
    bits = -np.log2(TABLES.frequency[of, codes] / ONE).sum()
    assert 0 <= len(encode_ranges(codes, TABLES, runs)) - bits / 8 < 4 * LANES


def test_literal_bytes() -> None:
    """The format: a state's upper part divided by the frequency, its slot in the remainder; u32 states, then words."""
    tables = _tables({0: 1024, 5: 3072})
    state = (65536 // 3072 << BITS) + 65536 % 3072 + 1024
    expected = state.to_bytes(4, "little") + (1 << 16).to_bytes(4, "little") * (LANES - 1)
    assert encode_ranges(np.array([5], np.uint8), tables, [(0, 1)]) == expected


@NATIVE
@given(st.integers(0, 2**32 - 1), st.integers(1, 80))
@settings(max_examples=200, deadline=None)
def test_hostile_streams(seed: int, count: int) -> None:
    """Any bytes: both ways refuse them, or read the same codes."""
    rng, runs = np.random.default_rng(seed), [(1, count), (2, count // 2)]
    stream = bytearray(encode_ranges(_codes(runs, seed), TABLES, runs))
    for _ in range(rng.integers(1, 3)):
        at = int(rng.integers(len(stream) + 1))
        stream[at : at + rng.integers(3)] = rng.bytes(rng.integers(3))
    found = []
    for way in (decode_ranges, ranges._decode):
        try:
            found.append(way(bytes(stream), TABLES, runs).tolist())
        except ValueError:
            found.append(None)
    assert found[0] == found[1]


@pytest.mark.parametrize("damage", [b"", b"\0\0", b"cut"])
def test_damage_is_named(damage: bytes) -> None:
    runs = [(1, 300)]
    stream = encode_ranges(_codes(runs, 3), TABLES, runs)
    stream = stream + damage if damage != b"cut" else stream[:-2]
    if damage:
        with pytest.raises(ValueError, match="ranges is damaged"):
            decode_ranges(stream, TABLES, runs)
    for longer in ([(1, 301)], [(1, 299)], []):
        with pytest.raises(ValueError, match="ranges is damaged"):
            decode_ranges(encode_ranges(_codes(runs, 3), TABLES, runs), TABLES, longer)


def test_what_a_table_does_not_have() -> None:
    for way in (encode_ranges, ranges._encode):
        with pytest.raises(ValueError, match="no frequency"):
            way(np.array([0, 3], np.uint8), TABLES, [(1, 2)])
    with pytest.raises(ValueError, match="2 codes in runs of 3"):
        encode_ranges(np.zeros(2, np.uint8), TABLES, [(1, 3)])
    with pytest.raises(ValueError, match="do not add up"):
        Tables.of(np.full((2, CODES), math.isqrt(ONE)))
