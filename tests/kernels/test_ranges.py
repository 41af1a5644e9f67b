"""Symbols into streams by tables of frequencies and back, natively and in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimemo.kernels import native, ranges
from minimemo.kernels.native.library import library
from minimemo.kernels.ranges import (
    BITS,
    CODES,
    LANES,
    LARGEST,
    Packed,
    Run,
    Streams,
    Tables,
    pack_ranges,
    unpack_ranges,
)

ONE = 1 << BITS
NATIVE = pytest.mark.skipif(native.unavailable() is not None, reason="needs the native library")


def _tables(*rows: dict[int, int]) -> Tables:
    frequency = np.zeros((len(rows), CODES), np.int64)
    for to, row in zip(frequency, rows, strict=True):
        to[list(row)] = list(row.values())
    return Tables.of(frequency)


# Of the first one all but 0 stands beside.
TABLES = _tables(
    {0: ONE - 1, 127: 1}, {0: 1000, 1: 2000, 2: 1000, 9: 95, 127: 1}, dict.fromkeys(range(CODES), ONE // CODES)
)
VARIANTS = [] if native.unavailable() is not None else list(native.variants())
RUNS = st.lists(st.builds(Run, st.integers(0, 2), st.sampled_from([0, 0, 1, 3]), st.integers(0, 90)), max_size=5)


def _symbols(runs: list[Run], seed: int) -> np.ndarray:
    """Mostly what the tables have, sometimes far out."""
    rng = np.random.default_rng(seed)
    count = sum(run.length for run in runs)
    shifts = [shift for _, shift, length in runs for _ in range(length)]
    symbols = rng.integers(-2, 3, count) << np.array(shifts, np.int64)
    far = rng.random(count) < 0.05
    symbols[far] = rng.integers(-LARGEST, LARGEST + 1, far.sum())
    return symbols.astype(np.int16)


def _unpack(streams: Streams, runs: list[Run]) -> np.ndarray:
    out = np.zeros(sum(run.length for run in runs), np.int16)
    unpack_ranges([Packed(streams, runs, out, np.arange(len(out), dtype=np.int32))], TABLES)
    return out


@given(RUNS, st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_there_and_back(runs: list[Run], seed: int) -> None:
    symbols = _symbols(runs, seed)
    (streams,) = pack_ranges([(symbols, runs)], TABLES)
    assert np.array_equal(_unpack(streams, runs), symbols)
    if len(symbols):
        assert ranges._pack(symbols, TABLES, runs) == streams
        assert np.array_equal(ranges._unpack(streams, TABLES, runs), symbols)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gives_the_same_bytes(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long runs, which some take by vectors, several at a time, on two threads, to places of their own."""
    monkeypatch.setattr(library(), "variant", ("portable", "avx2", "avx512", "amx").index(variant))
    runs = [Run(2, 2, 301), Run(2, 0, 3003), Run(1, 0, 5001), Run(0, 0, 7000)]
    rng = np.random.default_rng(7)
    all_symbols = [_symbols(runs, seed) for seed in range(3)]
    all_symbols[0][4000:] = 0  # nothing beside
    streams = pack_ranges([(symbols, runs) for symbols in all_symbols], TABLES, 2)
    assert streams == [ranges._pack(symbols, TABLES, runs) for symbols in all_symbols]
    parts = []
    for each in streams:
        places = rng.permutation(20_000)[: len(all_symbols[0])].astype(np.int32)
        parts.append(Packed(each, runs, np.zeros(20_000, np.int16), places))
    unpack_ranges(parts, TABLES, 2)
    for symbols, part in zip(all_symbols, parts, strict=True):
        assert np.array_equal(part.out[part.places], symbols)
        part.out[part.places] = 0
        assert not part.out.any()


def test_bytes_are_those_of_the_entropy() -> None:
    runs = [Run(2, 0, 500), Run(1, 0, 3000), Run(0, 0, 20_000)]
    rng = np.random.default_rng(1)
    codes = np.concatenate([TABLES.code_of[run.table, rng.integers(ONE, size=run.length)] for run in runs])
    codes[codes == CODES - 1] = 0
    symbols = ranges._SYMBOLS[codes]
    of = np.repeat([run.table for run in runs], [run.length for run in runs])
    bits = -np.log2(TABLES.frequency[of, codes] / ONE).sum()
    assert 0 <= len(pack_ranges([(symbols, runs)], TABLES)[0][0]) - bits / 8 < 4 * LANES


def test_literal_bytes() -> None:
    """The format: a state's upper part divided by the frequency, its slot in the remainder; u32 states, then words."""
    tables = _tables({0: 1024, 5: 3072})
    state = (65536 // 3072 << BITS) + 65536 % 3072 + 1024
    expected = state.to_bytes(4, "little") + (1 << 16).to_bytes(4, "little") * (LANES - 1)
    symbol = 3  # code 5; with two low bits beside: 2 before the middle of 4, as 0 and 1
    assert pack_ranges([(np.array([symbol], np.int16), [Run(0, 0, 1)])], tables) == [(expected, b"", b"")]
    shifted = np.array([4 * symbol + 0], np.int16)
    assert pack_ranges([(shifted, [Run(0, 2, 1)])], tables) == [(expected, bytes([0b01000000]), b"")]


@NATIVE
@given(st.integers(0, 2**32 - 1), st.integers(1, 80))
@settings(max_examples=200, deadline=None)
def test_hostile_streams(seed: int, count: int) -> None:
    """Any bytes: both ways refuse them, or read the same symbols."""
    rng, runs = np.random.default_rng(seed), [Run(2, 1, count // 3), Run(1, 0, count), Run(2, 0, count // 2)]
    ((*whole,),) = pack_ranges([(_symbols(runs, seed), runs)], TABLES)
    streams = [bytearray(stream) for stream in whole]
    for _ in range(rng.integers(1, 3)):
        stream = streams[rng.choice([0, 0, 1, 2])]
        at = int(rng.integers(len(stream) + 1))
        stream[at : at + rng.integers(3)] = rng.bytes(rng.integers(3))
    damaged = bytes(streams[0]), bytes(streams[1]), bytes(streams[2])
    found = []
    for way in (_unpack, lambda streams, runs: ranges._unpack(streams, TABLES, runs)):
        try:
            found.append(way(damaged, runs).tolist())
        except ValueError:
            found.append(None)
    if len(damaged[1]) == len(whole[1]):  # of what is asked natively, the length of low bits is right
        assert found[0] == found[1]


@pytest.mark.parametrize("damage", [b"", b"\0\0", b"cut"])
def test_damage_is_named(damage: bytes) -> None:
    runs = [Run(2, 0, 300)]
    ((stream, low, beside),) = pack_ranges([(_symbols(runs, 3), runs)], TABLES)
    if damage:
        with pytest.raises(ValueError, match="ranges is damaged"):
            _unpack((stream + damage if damage != b"cut" else stream[:-2], low, beside), runs)
    for longer in ([Run(2, 0, 301)], [Run(2, 0, 299)], []):
        with pytest.raises(ValueError, match=r"ranges is damaged|another count"):
            _unpack((stream, low, beside), longer)
    with pytest.raises(ValueError, match="low bits have 1 bytes where 0 belong"):
        _unpack((stream, b"1", beside), runs)


def test_nothing_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a block has no more tokens than its opening and its tail."""
    nothing = np.empty(0, np.int16)
    for _ in range(2):
        assert pack_ranges([(nothing, [])], TABLES) == [(b"", b"", b"")]
        assert len(_unpack((b"", b"", b""), [])) == 0
        monkeypatch.setattr(native, "unavailable", lambda: "off")


@pytest.mark.parametrize("run", [Run(3, 0, 1), Run(-1, 0, 1), Run(0, 17, 1), Run(0, -1, 1)])
def test_runs_that_no_symbol_needs(run: Run) -> None:
    """They follow from a stranger's steps and spreads."""
    with pytest.raises(ValueError, match="out of range"):
        pack_ranges([(np.zeros(1, np.int16), [run])], TABLES)
    with pytest.raises(ValueError, match="out of range"):
        unpack_ranges([Packed((b"", b"\0\0\0", b""), [run], np.zeros(1, np.int16), np.zeros(1, np.int32))], TABLES)


def test_what_is_refused() -> None:
    tables = _tables({0: ONE})
    three = np.array([3], np.int16)
    for way in (
        lambda: pack_ranges([(three, [Run(0, 0, 1)])], tables),
        lambda: ranges._pack(three, tables, [Run(0, 0, 1)]),
    ):
        with pytest.raises(ValueError, match="no frequency"):
            way()
    with pytest.raises(ValueError, match=r"int16 symbols \(2,\) in runs of 3"):
        pack_ranges([(np.zeros(2, np.int16), [Run(1, 0, 3)])], TABLES)
    with pytest.raises(ValueError, match="do not add up"):
        Tables.of(np.full((2, CODES), math.isqrt(ONE)))
