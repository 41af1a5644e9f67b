"""Symbols whose spread is known -> a stream in fractions of a bit, by tables that reader and writer know, and back.

Symbols come loudest first. Those whose spread lies in the same quarter of an octave share a table, which says how often
each number is; keys and values have tables of their own, since values are rounded up earlier. Where a symbol is loud,
only its upper part is looked up, its lowest bits are as they are. What a table does not have stands beside.

Letters: n symbols. Rule of this file: no model, no file, no zstd. Tables are whole numbers made of whole numbers: a
reader that had others by one would read nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from minimemo.errors import MemoError
from minimemo.kernels.ranges import BESIDE, BITS, CODES, Packed, Run, Streams, Tables, pack_ranges, unpack_ranges

STREAMS = 3  # of one kind: ranges, low bits, symbols that stand beside
_QUARTERS = 1.189207115002721, 1.4142135623730951, 1.681792830507429  # of an octave
_LOWEST, _TABLED = -4, 7  # octaves of spread with tables: from a 16th of a step to 8 steps
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


def pack(parts: Sequence[tuple[np.ndarray, Sequence[Run]]], threads: int = 1) -> list[Streams]:
    """Arrays of symbols (n,) int16, at most kernels.ranges.LARGEST -> of each STREAMS streams."""
    return pack_ranges(parts, _tables(), threads)


def unpack(parts: Sequence[Packed], threads: int = 1) -> None:
    """Undoes `pack`. Raises MemoError when streams do not hold that many symbols."""
    try:
        unpack_ranges(parts, _tables(), threads)
    except ValueError as error:
        raise MemoError(str(error)) from None


@cache
def _tables() -> Tables:
    return Tables.of(np.array([_frequencies(ratios) for ratios in _RATIOS]))


def _frequencies(ratios: Sequence[int]) -> list[int]:
    """One of each code, out of 2^BITS: 0, 1, -1, 2, -2 ... as far as they are one in 2^BITS, and BESIDE."""
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
    found[BESIDE] = 1
    found[0] += (1 << BITS) - sum(found)
    return found
