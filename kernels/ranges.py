"""These kernels code symbols by tables of their frequencies, in fractions of a bit (native/src/ranges.cpp, or numpy).

Of a symbol all but its lowest bits, as its run says, is looked up; these are as they are, in a stream of bits. What is
looked up, 0, 1, -1, 2, -2 ..., has the codes 0, 1, 2, 3, 4 ...; where the table lacks it, it stands in a third stream,
i16 each, and its code is the last. Code j belongs to state j mod LANES. The stream of codes is the states, u32 each,
then what decoding takes in, u16 each; every state ends as it began. All is little-endian. Source: range asymmetric
numeral systems (Duda, arXiv 1311.2540), interleaved (Giesen, arXiv 1402.3392).
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from . import native
from .native.library import fields, library

LANES, BITS, CODES = 16, 12, 128  # kLanes, kBits, kCodes of native/src/ranges.h
LARGEST = 32767  # of a symbol
Streams = tuple[bytes, bytes, bytes]
_LEAST = 1 << 16
BESIDE = CODES - 1  # the code of what a table lacks
_SYMBOLS = np.array([code // 2 + 1 if code % 2 else -(code // 2) for code in range(CODES)], np.int16)
_DAMAGED = "a block's stream of ranges is damaged"
_COUNT = "a block's symbols beside its ranges are of another count than their marks"
_OUT_OF_RANGE = "a block holds a symbol out of range"
_FAULTS = "", _DAMAGED, _COUNT, _OUT_OF_RANGE  # by a job's `fault`


class Run(NamedTuple):
    """Symbols, one after the other, that share a table. shift: how many low bits of each are not looked up."""

    table: int
    shift: int
    length: int


@dataclass(frozen=True, slots=True)
class Tables:
    """frequency (tables, CODES) uint16, each row adding up to 2^BITS; below: the sums of those before; code_of (tables,
    2^BITS) uint8: the code of each of these slots. shares, slots: of each code and slot what native/src/ranges.h says,
    uint32."""

    frequency: np.ndarray
    below: np.ndarray
    code_of: np.ndarray
    shares: np.ndarray
    slots: np.ndarray

    @classmethod
    def of(cls, frequency: np.ndarray) -> Tables:
        """Raises ValueError for rows that do not add up."""
        frequency = frequency.astype(np.int64)
        if frequency.shape[1:] != (CODES,) or (frequency.sum(1) != 1 << BITS).any():
            raise ValueError(f"tables of frequencies {frequency.shape} do not add up to {1 << BITS}")
        below = np.cumsum(frequency, axis=1) - frequency
        codes = np.arange(CODES, dtype=np.uint8)
        code_of = np.stack([np.repeat(codes, row) for row in frequency])
        each = np.arange(len(frequency))[:, None]
        within = np.arange(1 << BITS) - below[each, code_of]
        slots = within | frequency[each, code_of] << BITS | code_of.astype(np.int64) << (2 * BITS + 1)
        shares = (frequency | below << 16).astype(np.uint32)
        return cls(frequency.astype(np.uint16), below.astype(np.uint16), code_of, shares, slots.astype(np.uint32))


def pack_ranges(parts: Sequence[tuple[np.ndarray, Sequence[Run]]], tables: Tables, threads: int = 1) -> list[Streams]:
    """Packs arrays of symbols (n,) int16, at most LARGEST, side by side -> of each codes, low bits, what stands beside.
    Raises ValueError for a symbol that its table lacks, with no place beside."""
    for symbols, runs in parts:
        if symbols.shape != (_count(runs),) or symbols.dtype != np.int16:
            raise ValueError(f"{symbols.dtype} symbols {symbols.shape} in runs of {_count(runs)}")
        _check(runs, tables)
    if native.unavailable() is not None:
        return [_pack(symbols, tables, runs) if len(symbols) else (b"", b"", b"") for symbols, runs in parts]
    held, jobs = [], (_Packing * len(parts))()
    for job, (symbols, runs) in zip(jobs, parts, strict=True):
        count = len(symbols)
        symbols, out = np.ascontiguousarray(symbols), np.empty(2 * count + 4 * LANES, np.uint8)
        low, beside, table = np.zeros(_low_bytes(runs), np.uint8), np.empty(count, "<i2"), np.array(runs, np.int64)
        job.symbols, job.runs, job.count, job.shares = _at(symbols), _at(table), len(runs), _at(tables.shares)
        job.out, job.room, job.low, job.beside = _at(out), len(out), _at(low), _at(beside)
        held.append((symbols, table, out, low, beside))
    opened = library()
    opened.minimemo_pack_ranges(opened.variant, jobs, len(parts), threads)
    if any(job.written < 0 for job in jobs):
        raise ValueError("a code has no frequency")
    return [
        (out[len(out) - job.written :].tobytes(), low.tobytes(), beside[len(beside) - job.besides :].tobytes())
        if len(beside) else (b"", b"", b"")
        for job, (_, _, out, low, beside) in zip(jobs, held, strict=True)
    ]  # fmt: skip


class Packed(NamedTuple):
    """Streams of `pack_ranges`, and where their symbols go: symbol i to out[places[i]]; int16, int32."""

    streams: Streams
    runs: Sequence[Run]
    out: np.ndarray
    places: np.ndarray


def unpack_ranges(parts: Sequence[Packed], tables: Tables, threads: int = 1) -> None:
    """Undoes `pack_ranges`. Raises ValueError when streams are not those of so many symbols."""
    held, jobs, asked = [], (_Unpacking * len(parts))(), 0
    for (stream, low, beside), runs, out, places in parts:
        _check(runs, tables)
        if len(low) != _low_bytes(runs):
            raise ValueError(f"a block's low bits have {len(low)} bytes where {_low_bytes(runs)} belong")
        if not _count(runs):
            if stream or beside:
                raise ValueError(_DAMAGED)
        elif native.unavailable() is not None:
            out[places] = _unpack((stream, low, beside), tables, runs)
        else:
            job, table = jobs[asked], np.array(runs, np.int64)
            job.bytes, job.length, job.low, job.beside, job.besides = stream, len(stream), low, beside, len(beside)
            job.runs, job.count, job.slots = _at(table), len(runs), _at(tables.slots)
            job.places, job.out = _at(places), _at(out)
            held.append(table)
            asked += 1
    if asked:
        opened = library()
        opened.minimemo_unpack_ranges(opened.variant, jobs, asked, threads)
        if fault := max(job.fault for job in jobs):
            raise ValueError(_FAULTS[fault])


class _Packing(Structure):
    """Packing of native/src/ranges.cpp."""

    _fields_ = fields(
        "pointer symbols runs; int64 count; pointer shares out; int64 room; pointer low beside; int64 besides written"
    )


class _Unpacking(Structure):
    """Unpacking of native/src/ranges.cpp."""

    _fields_ = fields(
        "bytes bytes; int64 length; bytes low beside; int64 besides; pointer runs; int64 count; "
        "pointer slots places out; int64 fault"
    )


def _check(runs: Sequence[Run], tables: Tables) -> None:
    """Runs follow from steps and spreads, which may come from a stranger's file."""
    if any(not (0 <= run.table < len(tables.frequency) and 0 <= run.shift <= 16) for run in runs):
        raise ValueError(_OUT_OF_RANGE)


def _count(runs: Sequence[Run]) -> int:
    return sum(run.length for run in runs)


def _low_bytes(runs: Sequence[Run]) -> int:
    return -(-sum(run.shift * run.length for run in runs) // 8)


def _at(x: np.ndarray) -> int:
    return x.ctypes.data


def _table_of_each(runs: Sequence[Run]) -> np.ndarray:
    """(n,) the table of each symbol."""
    tables, _, lengths = np.array(runs, np.int64).reshape(-1, 3).T
    return np.repeat(tables, lengths)


def _shifted(symbols: np.ndarray, runs: Sequence[Run]) -> list[tuple[np.ndarray, int]]:
    """Views of the runs whose low bits are not looked up, each with its shift."""
    ends = accumulate(run.length for run in runs)
    return [(symbols[end - run.length : end], run.shift) for run, end in zip(runs, ends, strict=True) if run.shift]


def _pack(symbols: np.ndarray, tables: Tables, runs: Sequence[Run]) -> Streams:
    """In numpy."""
    upper, low = symbols.astype(np.int32), [np.empty(0, np.uint8)]
    for part, shift in _shifted(upper, runs):
        part += 1 << (shift - 1)
        low.append(((part[:, None] >> np.arange(shift)) & 1).astype(np.uint8).ravel())
        part >>= shift
    sizes = np.abs(upper)
    codes = np.where(sizes < CODES // 2, 2 * sizes - (upper > 0), BESIDE).astype(np.uint8)
    codes[tables.frequency[_table_of_each(runs), codes] == 0] = BESIDE
    beside = upper[codes == BESIDE].astype("<i2").tobytes()
    return _encode(codes, tables, runs), np.packbits(np.concatenate(low)).tobytes(), beside


def _unpack(streams: Streams, tables: Tables, runs: Sequence[Run]) -> np.ndarray:
    """In numpy: (n,) int16."""
    stream, low, beside = streams
    codes = _decode(stream, tables, runs)
    symbols, missing = _SYMBOLS[codes], codes == BESIDE
    if len(beside) != 2 * int(missing.sum()):
        raise ValueError(_COUNT)
    symbols[missing] = np.frombuffer(beside, "<i2")
    bits, at = np.unpackbits(np.frombuffer(low, np.uint8)), 0
    for part, shift in _shifted(symbols, runs):
        taken = bits[at : at + shift * len(part)].reshape(-1, shift)
        at += taken.size
        whole = (part.astype(np.int32) << shift) + (taken @ (1 << np.arange(shift)) - (1 << (shift - 1)))
        if (np.abs(whole) > LARGEST).any():
            raise ValueError(_OUT_OF_RANGE)
        part[:] = whole
    if (symbols < -LARGEST).any():
        raise ValueError(_OUT_OF_RANGE)
    return symbols


def _encode(codes: np.ndarray, tables: Tables, runs: Sequence[Run]) -> bytes:
    """In numpy, LANES symbols at a time."""
    of = _table_of_each(runs)
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


def _decode(stream: bytes, tables: Tables, runs: Sequence[Run]) -> np.ndarray:
    """In numpy, LANES symbols at a time."""
    of = _table_of_each(runs)
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
