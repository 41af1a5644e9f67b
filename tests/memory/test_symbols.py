"""Symbols into byte streams and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimemo.errors import MemoError
from minimemo.memory.symbols import Band, _unpack, bands, pack, unpack

WAYS = [unpack, _unpack]  # the native one, where it is built, and numpy's
ways = pytest.mark.parametrize("way", WAYS, ids=["native", "numpy"])


def _symbols(deviations: np.ndarray, tokens: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).laplace(size=(len(deviations), tokens))
    return np.rint(noise * deviations[:, None] / 2**0.5).astype(np.int32)


@given(st.integers(0, 60), st.integers(1, 256), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_round_trip(components: int, tokens: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    deviations = np.sort(np.exp(rng.uniform(-4, 5, components)))[::-1]
    symbols = _symbols(deviations, tokens, seed)
    if symbols.size:
        symbols.reshape(-1)[rng.integers(symbols.size)] = rng.choice([-32767, 32767, 300, -1, 0])
    plan = bands(deviations)
    assert sum(band.stop - band.start for band in plan) == components
    streams = pack(symbols, plan)
    assert all(np.array_equal(way(streams, plan, tokens), symbols) for way in WAYS)
    assert pack(symbols, plan) == streams


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
@settings(max_examples=120, deadline=None)
def test_hostile_streams(seed: int, tokens: int) -> None:
    """Any bytes: both ways refuse them, or read the same symbols."""
    rng = np.random.default_rng(seed)
    deviations = np.sort(np.exp(rng.uniform(-3, 5, rng.integers(1, 12))))[::-1]
    plan = bands(deviations)
    streams = [bytearray(stream) for stream in pack(_symbols(deviations, tokens, seed), plan)]
    for _ in range(rng.integers(1, 4)):
        stream = streams[rng.integers(len(streams))]
        at = int(rng.integers(len(stream) + 1))
        stream[at : at + rng.integers(2)] = rng.choice([b"", b"\xff", b"\xff" * 4, bytes([rng.integers(256)])])
    found = []
    for way in WAYS:
        try:
            found.append(way(tuple(map(bytes, streams)), plan, tokens).tolist())
        except MemoError:
            found.append(None)
    assert found[0] == found[1]


@ways
def test_literal_bytes(way: Callable[..., np.ndarray]) -> None:
    """The format: base-15 digits, low symbol first; gaps; remainders of what exceeds a band's reach."""
    plan = (Band(0, 1, 2), Band(1, 2, 0))
    symbols = np.array([[0, 1, -9], [0, 0, -2]], dtype=np.int32)
    digits = bytes([7 + 8 * 15, 0 + 7 * 15])
    assert pack(symbols, plan) == (digits, bytes([2]), bytes([2, 1, 0, 3]), b"")
    assert np.array_equal(way(pack(symbols, plan), plan, 3), symbols)


def test_a_quiet_component_costs_little() -> None:
    symbols = np.zeros((100, 256), dtype=np.int32)
    symbols[50, 100] = 1
    assert sum(map(len, pack(symbols, bands(np.full(100, 0.1))))) < 100


@pytest.mark.parametrize("damage", ["cut", "grown", "byte", "no remainders", "extra remainder", "fewer streams"])
@ways
def test_damage_is_named(damage: str, way: Callable[..., np.ndarray]) -> None:
    deviations = np.array([30.0, 3.0, 1.5, 0.6, 0.3, 0.1, 0.1])
    plan = bands(deviations)
    streams = list(pack(_symbols(deviations * 2, 100, 3), plan))
    if damage == "cut":
        streams[0] = streams[0][:-1]
    elif damage == "grown":
        streams[0] += b"\0"
    elif damage == "byte":
        streams[2] = b"\xff" + streams[2][1:]  # beyond 15 * 15
    elif damage == "no remainders":
        streams[-2] = b""
    elif damage == "extra remainder":
        streams[-2] += b"\0"
    else:
        streams.pop()
    with pytest.raises(MemoError):
        way(streams, plan, 100)
