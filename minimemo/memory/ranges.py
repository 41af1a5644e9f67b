"""Symbols whose spread is known -> a stream in fractions of a bit, by tables that reader and writer know, and back.

Symbols come loudest first. Those whose spread lies in the same quarter of an octave share a table, which says how often
each number is; keys and values have tables of their own, since values are rounded up earlier. Where a symbol is loud,
only its upper part is looked up, its lowest bits are as they are. What a table does not have stands beside.

Letters: n symbols. Rule of this file: no model, no file, no zstd. Tables are whole numbers made of whole numbers: a
reader that had others by one would read nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from minimemo.errors import MemoError
from minimemo.kernels.ranges import BITS, CODES, Tables, decode_ranges, encode_ranges, table_of_each
from minimemo.memory.symbols import LARGEST

STREAMS = 3  # of one kind: ranges, low bits, symbols that stand beside
_QUARTERS = 1.189207115002721, 1.4142135623730951, 1.681792830507429  # of an octave
_LOWEST, _TABLED = -4, 7  # octaves of spread with tables: from a 16th of a step to 8 steps
_BESIDE = CODES - 1  # the code of a symbol that its table does not have
_SYMBOLS = np.array([code // 2 + 1 if code % 2 else -(code // 2) for code in range(CODES)], np.int16)
_OUT_OF_RANGE = "a block holds a symbol out of range"
# For each table, in 4096ths: how many symbols are not 0, of those how many not 1 or -1, of those how many not 2 or -2,
# and from there on, each time. Counted on ten documents of 4,096 tokens at four tiers, 0.5B, keys and then values.
_RATIOS = (
    (1, 6, 4, 7), (1, 6, 4, 7), (1, 6, 4, 7), (1, 1, 4, 7),
    (8, 1, 4, 7), (31, 1, 4, 7), (89, 1, 4, 7), (202, 1, 4, 7),
    (382, 1, 4, 7), (627, 2, 4, 7), (919, 11, 5, 7), (1235, 41, 11, 7),
    (1555, 118, 25, 7), (1868, 263, 69, 58), (2160, 488, 175, 110), (2418, 772, 352, 198),
    (2663, 1117, 624, 369), (2877, 1485, 979, 632), (3049, 1817, 1346, 948), (3204, 2140, 1726, 1293),
    (3341, 2444, 2100, 1668), (3462, 2713, 2436, 2028), (3551, 2915, 2706, 2316), (3636, 3106, 2947, 2594),
    (3671, 3199, 3096, 2838), (3731, 3321, 3232, 3011), (3785, 3458, 3394, 3188), (3816, 3525, 3498, 3341),
    (1, 12, 6, 15), (1, 12, 6, 15), (1, 1, 6, 15), (4, 1, 6, 15),
    (18, 1, 6, 15), (56, 1, 6, 15), (136, 1, 6, 15), (278, 1, 6, 15),
    (484, 1, 6, 15), (745, 2, 6, 15), (1049, 10, 1, 15), (1375, 36, 3, 15),
    (1685, 108, 18, 15), (1988, 244, 64, 53), (2288, 478, 167, 69), (2541, 780, 359, 193),
    (2772, 1118, 625, 370), (2972, 1484, 987, 662), (3146, 1853, 1390, 1007), (3280, 2157, 1747, 1328),
    (3404, 2439, 2089, 1685), (3514, 2699, 2433, 2037), (3595, 2910, 2693, 2314), (3657, 3055, 2886, 2526),
    (3706, 3180, 3038, 2724), (3771, 3332, 3249, 2973), (3816, 3452, 3362, 3136), (3870, 3599, 3550, 3328),
)  # fmt: skip


class Run(NamedTuple):
    """Symbols, one after the other, that share a table. shift: how many low bits of each are not looked up."""

    table: int
    shift: int
    length: int


def runs_of(spread: np.ndarray, values: bool) -> tuple[Run, ...]:
    """The runs of symbols whose standard deviations, in steps, are `spread` (n,), falling."""
    mantissa, exponent = np.frexp(np.maximum(spread, 2.0**_LOWEST))
    octave = exponent.astype(np.int64) - 1
    shift = np.maximum(octave - (_LOWEST + _TABLED - 1), 0)
    table = 4 * (octave - shift - _LOWEST) + np.searchsorted(_QUARTERS, 2 * mantissa, side="right")
    table += 4 * _TABLED * values
    starts = np.flatnonzero(np.diff(table + len(_RATIOS) * shift, prepend=-1))
    counts = np.diff(starts, append=len(spread))
    return tuple(Run(int(table[at]), int(shift[at]), int(count)) for at, count in zip(starts, counts, strict=True))


def pack(symbols: np.ndarray, runs: Sequence[Run]) -> tuple[bytes, bytes, bytes]:
    """Symbols (n,), at most LARGEST, -> STREAMS streams."""
    upper, low = symbols.astype(np.int32), []
    for part, shift in _shifted(upper, runs):
        part += 1 << (shift - 1)
        low.append(((part[:, None] >> np.arange(shift)) & 1).astype(np.uint8).ravel())
        part >>= shift
    codes = 2 * np.minimum(np.abs(upper), CODES // 2).astype(np.uint8) - (upper > 0)
    codes[codes >= _tabled(tuple(runs))] = _BESIDE
    stream = encode_ranges(codes, _tables(), _looked_up(runs))
    bits = np.concatenate([*low, np.empty(0, np.uint8)])
    return stream, np.packbits(bits).tobytes(), upper[codes == _BESIDE].astype("<i2").tobytes()


def unpack(streams: Sequence[bytes], runs: Sequence[Run]) -> np.ndarray:
    """Undoes `pack`: (n,) int16. Raises MemoError when the streams do not hold that many symbols."""
    stream, low, beside = streams
    try:
        codes = decode_ranges(stream, _tables(), _looked_up(runs))
    except ValueError as error:
        raise MemoError(str(error)) from None
    symbols, missing = _SYMBOLS[codes], codes == _BESIDE
    if len(beside) != 2 * int(missing.sum()):
        raise MemoError("a block's symbols beside its ranges are of another count than their marks")
    symbols[missing] = np.frombuffer(beside, "<i2")
    wanted = sum(run.shift * run.length for run in runs)
    if len(low) != -(-wanted // 8):
        raise MemoError(f"a block's low bits have {len(low)} bytes where {-(-wanted // 8)} belong")
    bits, at = np.unpackbits(np.frombuffer(low, np.uint8)), 0
    for part, shift in _shifted(symbols, runs):
        taken = bits[at : at + shift * len(part)].reshape(-1, shift)
        at += taken.size
        whole = (part.astype(np.int32) << shift) + (taken @ (1 << np.arange(shift)) - (1 << (shift - 1)))
        if (np.abs(whole) > LARGEST).any():
            raise MemoError(_OUT_OF_RANGE)
        part[:] = whole
    if (symbols[missing] < -LARGEST).any():
        raise MemoError(_OUT_OF_RANGE)
    return symbols


def _shifted(symbols: np.ndarray, runs: Sequence[Run]) -> list[tuple[np.ndarray, int]]:
    """Views of the runs whose low bits are not looked up, each with its shift."""
    ends = accumulate(run.length for run in runs)
    return [(symbols[end - run.length : end], run.shift) for run, end in zip(runs, ends, strict=True) if run.shift]


def _looked_up(runs: Sequence[Run]) -> list[tuple[int, int]]:
    return [(run.table, run.length) for run in runs]


@cache
def _tables() -> Tables:
    return Tables.of(np.array([_frequencies(ratios) for ratios in _RATIOS]))


@lru_cache(maxsize=64)
def _tabled(runs: Sequence[Run]) -> np.ndarray:
    """(n,) for each symbol how many codes its table has from 0 on, besides _BESIDE."""
    counts = (_tables().frequency[:, :_BESIDE] > 0).sum(1).astype(np.uint8)
    return counts[table_of_each(_looked_up(runs))]


def _frequencies(ratios: Sequence[int]) -> list[int]:
    """One of each code, out of 2^BITS: 0, 1, -1, 2, -2 ... as far as they are one in 2^BITS, and _BESIDE."""
    whole, unit = 1 << 24, 1 << (24 - BITS)
    found, left = [0] * CODES, whole
    for size in range(CODES // 2):
        stays = left * ratios[min(size, 3)] >> 12
        here, left = left - stays, stays
        each = (here // (2 if size else 1) + unit // 2) // unit
        if size > 1 and not each:
            break
        for code in {2 * size, max(2 * size - 1, 0)}:
            found[code] = max(each, 1)
    found[_BESIDE] = 1
    found[0] += (1 << BITS) - sum(found)
    return found
