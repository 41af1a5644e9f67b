"""This file reads symbols of a transform codec out of their streams (src/symbols.cpp)."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_char_p, c_int64, c_void_p

import numpy as np

from .library import library

# By the library's return value.
FAULTS = (
    "",
    "a block's stream of symbols is damaged",
    "a block's stream of gaps is damaged",
    "a block holds fewer remainders than its symbols ask for",
    "a block holds more remainders than its symbols ask for",
    "a block holds a symbol out of range",
    "a block's large numbers are of another count than their marks",
)


def unpack_symbols(streams: Sequence[bytes], rows: Sequence[int], packed: Sequence[int], tokens: int) -> np.ndarray:
    """Unpacks streams of bands of `rows` components, `packed` symbols a byte (0: gaps), then remainders and large
    numbers -> (r, tokens) int16. Raises ValueError, one of FAULTS, when they are not the streams of so many symbols."""
    count = len(rows)
    if len(streams) != count + 2 or len(packed) != count:
        raise ValueError(f"{len(streams)} streams for {count} bands")
    out = np.empty((sum(rows), tokens), dtype=np.int16)
    fault = library().minimemo_unpack_symbols(
        (c_char_p * (count + 2))(*streams),
        (c_int64 * (count + 2))(*map(len, streams)),
        (c_int64 * count)(*rows),
        (c_int64 * count)(*packed),
        count,
        tokens,
        out.ctypes.data_as(c_void_p),
    )
    if fault:
        raise ValueError(FAULTS[fault])
    return out
