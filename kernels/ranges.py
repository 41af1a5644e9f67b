"""These kernels code symbols by tables of their frequencies, in fractions of a bit (native/src/ranges.cpp, or numpy).

Symbol j belongs to state j mod LANES. A stream is the states, u32 each, then what decoding takes in, u16 each, all
little-endian; every state ends as it began. Source: range asymmetric numeral systems (Duda, arXiv 1311.2540),
interleaved (Giesen, arXiv 1402.3392).
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from dataclasses import dataclass

import numpy as np

from . import native
from .native.library import library

LANES, BITS, CODES = 16, 12, 128  # kLanes, kBits, kCodes of native/src/ranges.cpp
_LEAST = 1 << 16
_DAMAGED = "a block's stream of ranges is damaged"


@dataclass(frozen=True, slots=True)
class Tables:
    """frequency (tables, CODES) uint16, each row adding up to 2^BITS; below: the sums of those before; code_of (tables,
    2^BITS) uint8: the code of each of these slots."""

    frequency: np.ndarray
    below: np.ndarray
    code_of: np.ndarray

    @classmethod
    def of(cls, frequency: np.ndarray) -> Tables:
        """Raises ValueError for rows that do not add up."""
        if frequency.shape[1:] != (CODES,) or (frequency.sum(1) != 1 << BITS).any():
            raise ValueError(f"tables of frequencies {frequency.shape} do not add up to {1 << BITS}")
        below = np.cumsum(frequency, axis=1) - frequency
        codes = np.arange(CODES, dtype=np.uint8)
        code_of = np.stack([np.repeat(codes, row) for row in frequency])
        return cls(frequency.astype(np.uint16), below.astype(np.uint16), code_of)


def encode_ranges(codes: np.ndarray, tables: Tables, runs: Sequence[tuple[int, int]]) -> bytes:
    """Codes (n,) uint8 -> a stream. runs: table and count of each run of them. Raises ValueError for a code whose table
    does not have it."""
    if len(codes) != sum(count for _, count in runs):
        raise ValueError(f"{len(codes)} codes in runs of {sum(count for _, count in runs)}")
    if not len(codes):
        return b""
    if native.unavailable() is not None:
        return _encode(codes, tables, runs)
    codes, out = np.ascontiguousarray(codes), np.empty(2 * len(codes) + 4 * LANES, np.uint8)
    written = library().minimemo_encode_ranges(
        codes.ctypes.data_as(c_void_p), *_runs(runs), tables.frequency.ctypes.data_as(c_void_p),
        tables.below.ctypes.data_as(c_void_p), out.ctypes.data_as(c_void_p), len(out),
    )  # fmt: skip
    if written < 0:
        raise ValueError("a code has no frequency")
    return out[len(out) - written :].tobytes()


def decode_ranges(stream: bytes, tables: Tables, runs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Undoes `encode_ranges`: (n,) uint8. Raises ValueError when the stream is not one of so many codes."""
    count = sum(count for _, count in runs)
    if not count:
        if stream:
            raise ValueError(_DAMAGED)
        return np.empty(0, np.uint8)
    if native.unavailable() is not None:
        return _decode(stream, tables, runs)
    codes = np.empty(count, np.uint8)
    if library().minimemo_decode_ranges(
        stream, len(stream), *_runs(runs), tables.frequency.ctypes.data_as(c_void_p),
        tables.below.ctypes.data_as(c_void_p), tables.code_of.ctypes.data_as(c_void_p), codes.ctypes.data_as(c_void_p),
    ):  # fmt: skip
        raise ValueError(_DAMAGED)
    return codes


def _runs(runs: Sequence[tuple[int, int]]) -> tuple[object, object, int]:
    numbers = c_int64 * len(runs)
    return numbers(*(table for table, _ in runs)), numbers(*(count for _, count in runs)), len(runs)


def table_of_each(runs: Sequence[tuple[int, int]]) -> np.ndarray:
    """(n,) the table of each symbol."""
    tables, counts = np.array([*runs, (0, 0)]).T
    return np.repeat(tables, counts)


def _encode(codes: np.ndarray, tables: Tables, runs: Sequence[tuple[int, int]]) -> bytes:
    """In numpy, LANES symbols at a time."""
    of = table_of_each(runs)
    sizes, firsts = tables.frequency[of, codes].astype(np.int64), tables.below[of, codes].astype(np.int64)
    if not sizes.all():
        raise ValueError("a code has no frequency")
    states, taken = np.full(LANES, _LEAST, np.int64), [np.empty(0, np.int64)]
    for at in range((len(codes) - 1) // LANES * LANES, -1, -LANES):
        size, first = sizes[at : at + LANES], firsts[at : at + LANES]
        state = states[: len(size)]
        full = state >> (32 - BITS) >= size
        taken.append(state[full] & 0xFFFF)
        state[full] >>= 16
        state[:] = (state // size << BITS) + state % size + first
    return states.astype("<u4").tobytes() + np.concatenate(taken[::-1]).astype("<u2").tobytes()


def _decode(stream: bytes, tables: Tables, runs: Sequence[tuple[int, int]]) -> np.ndarray:
    """In numpy, LANES symbols at a time."""
    of = table_of_each(runs)
    if len(stream) < 4 * LANES or len(stream) % 2:
        raise ValueError(_DAMAGED)
    states = np.frombuffer(stream, "<u4", LANES).astype(np.int64)
    words, taken = np.frombuffer(stream, "<u2", offset=4 * LANES).astype(np.int64), 0
    codes = np.empty(len(of), np.uint8)
    for at in range(0, len(of), LANES):
        table, code = of[at : at + LANES], codes[at : at + LANES]
        state = states[: len(table)]
        slot = state & ((1 << BITS) - 1)
        code[:] = tables.code_of[table, slot]
        state[:] = tables.frequency[table, code] * (state >> BITS) + slot - tables.below[table, code]
        short = state < _LEAST
        count = int(short.sum())
        if taken + count > len(words):
            raise ValueError(_DAMAGED)
        state[short] = state[short] << 16 | words[taken : taken + count]
        taken += count
    if taken != len(words) or (states != _LEAST).any():
        raise ValueError(_DAMAGED)
    return codes
