"""Symbols of known spread into ranges and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimemo.errors import MemoError
from minimemo.kernels.ranges import Packed, Run
from minimemo.memory.ranges import STREAMS, _tables, runs_of
from minimemo.memory.ranges import pack as pack_parts
from minimemo.memory.ranges import unpack as unpack_parts
from minimemo.memory.symbols import LARGEST, bands
from minimemo.memory.symbols import pack as pack_bytes


def _symbols(spread: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).laplace(size=len(spread))
    return np.rint(noise * spread / 2**0.5).astype(np.int16)


def pack(symbols: np.ndarray, runs: tuple[Run, ...]) -> tuple[bytes, ...]:
    return pack_parts([(symbols, runs)])[0]


def unpack(streams: Sequence[bytes], runs: tuple[Run, ...]) -> np.ndarray:
    out = np.zeros(sum(run.length for run in runs), np.int16)
    stream, low, beside = streams
    unpack_parts([Packed((stream, low, beside), runs, out, np.arange(len(out), dtype=np.int32))])
    return out


def _falling(count: int, seed: int, low: float = -4.0, high: float = 5.0) -> np.ndarray:
    return np.sort(np.exp(np.random.default_rng(seed).uniform(low, high, count)))[::-1]


@given(st.integers(0, 900), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_there_and_back(count: int, values: bool, seed: int) -> None:
    spread, rng = _falling(count, seed), np.random.default_rng(seed)
    symbols = _symbols(spread, seed)
    if count:
        symbols[rng.integers(count, size=3)] = rng.choice([-LARGEST, LARGEST, 300, -64, 1, 0], 3)
    runs = runs_of(spread, values)
    assert sum(run.length for run in runs) == count
    streams = pack(symbols, runs)
    assert len(streams) == STREAMS and pack(symbols, runs) == streams
    assert np.array_equal(unpack(streams, runs), symbols)


def test_runs_are_quarters_of_an_octave() -> None:
    assert runs_of(np.array([8.0, 7.9, 1.5, 1.19, 1.18, 1.0, 0.01, 0.0]), False) == (
        Run(24, 1, 1), Run(27, 0, 1), Run(18, 0, 1), Run(17, 0, 1), Run(16, 0, 2), Run(0, 0, 2)
    )  # fmt: skip
    assert runs_of(np.array([40.0]), True) == (Run(28 + 25, 3, 1),)


def test_tables_add_up_and_loud_ones_are_flat() -> None:
    frequency = _tables().frequency.astype(int)
    assert (frequency.sum(1) == 4096).all() and frequency.shape == (56, 128)
    zero = frequency[:, 0].reshape(2, 28)
    assert (np.diff(zero, axis=1) <= 0).all(), "the louder, the fewer zeros"
    assert (zero > 0).all()
    assert (zero[1] <= zero[0])[:24].all(), "values are rounded up earlier"
    assert (frequency[:, 1:127:2] == frequency[:, 2:127:2]).all(), "as many of either sign"


@pytest.mark.parametrize("high", [0.0, 2.0, 4.0])
def test_smaller_than_bytes_for_zstd(high: float) -> None:
    import zstandard

    spread = _falling(40_000, 5, -2.5, high)
    symbols, compress = _symbols(spread, 5), zstandard.ZstdCompressor(level=13).compress
    whole = sum(len(compress(stream)) for stream in pack_bytes(symbols[:, None], bands(spread), rows=False) if stream)
    assert sum(map(len, pack(symbols, runs_of(spread, False)))) < 0.98 * whole


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_hostile_streams(seed: int) -> None:
    """Any bytes: symbols within reach, or MemoError."""
    rng, spread = np.random.default_rng(seed), _falling(60, seed)
    runs = runs_of(spread, False)
    streams = [bytearray(stream) for stream in pack(30 * _symbols(spread, seed), runs)]
    for _ in range(rng.integers(1, 4)):
        stream = streams[rng.integers(STREAMS)]
        at = int(rng.integers(len(stream) + 1))
        stream[at : at + rng.integers(3)] = rng.bytes(rng.integers(3))
    try:
        found = unpack(tuple(map(bytes, streams)), runs)
    except MemoError:
        return
    assert len(found) == 60 and np.abs(found.astype(int)).max() <= LARGEST


@pytest.mark.parametrize(("at", "match"), [(0, "ranges is damaged"), (1, "low bits have"), (2, "another count")])
def test_damage_is_named(at: int, match: str) -> None:
    spread = np.array([30.0] * 9 + [1.0] * 30)
    streams = list(pack(20 * _symbols(spread, 3), runs_of(spread, False)))
    for wrong in (streams[at] + b"\1\0", streams[at][:-2]):
        with pytest.raises(MemoError, match=match):
            unpack([*streams[:at], wrong, *streams[at + 1 :]], runs_of(spread, False))
