"""Symbols into byte streams and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimemo.errors import MemoError
from minimemo.memory.packing import Band, bands, pack, unpack


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
    assert np.array_equal(unpack(streams, plan, tokens), symbols)
    assert pack(symbols, plan) == streams


def test_literal_bytes() -> None:
    """The format: base-15 digits, low symbol first; gaps; remainders of what exceeds a band's reach."""
    plan = (Band(0, 1, 2), Band(1, 2, 0))
    symbols = np.array([[0, 1, -9], [0, 0, -2]], dtype=np.int32)
    digits = bytes([7 + 8 * 15, 0 + 7 * 15])
    assert pack(symbols, plan) == (digits, bytes([2]), bytes([2, 1, 0, 3]), b"")
    assert np.array_equal(unpack(pack(symbols, plan), plan, 3), symbols)


def test_a_quiet_component_costs_little() -> None:
    symbols = np.zeros((100, 256), dtype=np.int32)
    symbols[50, 100] = 1
    assert sum(map(len, pack(symbols, bands(np.full(100, 0.1))))) < 100


@pytest.mark.parametrize("damage", ["cut", "grown", "byte", "no remainders", "extra remainder", "fewer streams"])
def test_damage_is_named(damage: str) -> None:
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
        unpack(streams, plan, 100)
