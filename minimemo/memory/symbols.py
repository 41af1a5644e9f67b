"""Symbols whose spread is known -> byte streams that an entropy coder of whole bytes codes well, and back.

zstd codes literals by Huffman, at least one bit a byte, with one table a frame. So components of like spread share a
stream (a band), and k small symbols share a byte: base A digits, A^k <= 256. Where nearly all symbols are zero, the
gaps between the others are stored instead. All symbols of a component stand together, token after token.

Letters: r components, n tokens. Rule of this file: no model, no file, no zstd. Unpacking is native where it can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minimemo.errors import MemoError
from minimemo.kernels import native
from minimemo.kernels.ranges import LARGEST
from minimemo.kernels.transform import unpack_symbols

# (spread in steps from which it applies, symbols a byte); within a kind, finer edges only part the statistics.
# Measured on Qwen2.5-Coder-0.5B; the whole table is 2-3 % above the entropy of the single components.
_EDGES = (
    (16.0, 1), (8.0, 1), (4.0, 1), (2.4, 1), (1.7, 2), (1.2, 2), (0.85, 2), (0.65, 3), (0.5, 3), (0.38, 5), (0.3, 5),
    (0.23, 5), (0.17, 0), (0.0, 0),
)  # fmt: skip
_REACH = {1: 127, 2: 7, 3: 2, 5: 1}  # largest symbol held directly; larger ones leave a remainder
_SPARSE = 0  # "symbols a byte" of a band of gaps
_LARGE = 255  # in a byte stream: the number stands among the large ones


@dataclass(frozen=True, slots=True)
class Band:
    """Components start .. stop - 1, `packed` symbols a byte (0: gaps between nonzero ones)."""

    start: int
    stop: int
    packed: int


def bands(spread: np.ndarray, loudest: float | None = None) -> tuple[Band, ...]:
    """The bands of components whose standard deviations, in steps, are `spread` (r,), falling. loudest: what none of
    them passes, in any block; then there are as many bands for every block, some of them empty."""
    plan: list[Band] = []
    for edge, packed in _EDGES:
        start = plan[-1].stop if plan else 0
        stop = len(spread) if edge == 0.0 else int(np.searchsorted(-spread, -edge, side="right"))
        if stop > start or (loudest is not None and edge <= loudest):
            plan.append(Band(start, stop, packed))
    return tuple(plan)


def pack(symbols: np.ndarray, plan: Sequence[Band], rows: bool = True) -> tuple[bytes, ...]:
    """symbols (r, n) -> one stream a band, then that of remainders and that of the large numbers (int32).

    rows: whether the symbols of a component begin with a byte of their own, and not only those of a band.
    Remainders are whole numbers >= 0, mostly small: a byte each, the large ones as int32 besides.
    """
    symbols = symbols.astype(np.int32)
    streams, remainders = [], [np.empty(0, np.int64)]
    for band in plan:
        part = symbols[band.start : band.stop]
        part = part if rows else part.reshape(1, -1)
        stream, rest = _pack_gaps(part) if band.packed == _SPARSE else _pack_digits(part, band.packed)
        streams.append(stream)
        remainders.append(rest.astype(np.int64))
    numbers = np.concatenate(remainders)
    large = numbers[numbers >= _LARGE].astype("<i4")
    return *streams, np.minimum(numbers, _LARGE).astype(np.uint8).tobytes(), large.tobytes()


def unpack(streams: Sequence[bytes], plan: Sequence[Band], tokens: int, rows: bool = True) -> np.ndarray:
    """The inverse: (r, n) int16. Raises MemoError when the streams do not hold that many symbols."""
    if len(streams) != len(plan) + 2:
        raise MemoError(f"{len(streams)} streams of symbols instead of {len(plan) + 2}")
    # Before anything is widened: a hostile frame may inflate to far more than its block's symbols can need.
    symbols = (plan[-1].stop if plan else 0) * tokens
    if max(map(len, streams)) > 4 * (symbols + 2 * len(plan) + 1):  # large numbers have four bytes
        raise MemoError("a block's stream is longer than its symbols can need")
    if native.unavailable() is not None:
        return _unpack(streams, plan, tokens, rows)
    counts = [band.stop - band.start for band in plan]
    lengths = [tokens] * len(plan) if rows else [count * tokens for count in counts]
    try:
        symbols = unpack_symbols(streams, counts if rows else [1] * len(plan), lengths, [band.packed for band in plan])
        return symbols.reshape(sum(counts), tokens)
    except ValueError as error:
        raise MemoError(str(error)) from None


def _unpack(streams: Sequence[bytes], plan: Sequence[Band], tokens: int, rows: bool = True) -> np.ndarray:
    """In numpy, for machines without the native library."""
    rest = _Remainders(streams[-2], streams[-1])
    symbols = np.zeros((plan[-1].stop if plan else 0, tokens), dtype=np.int16)
    for band, stream in zip(plan, streams, strict=False):
        part = symbols[band.start : band.stop]
        part = part if rows else part.reshape(1, -1)  # a view
        if band.packed == _SPARSE:
            _unpack_gaps(stream, part, rest)
        else:
            _unpack_digits(stream, part, band.packed, rest)
    if len(rest.take(None)):
        raise MemoError("a block holds more remainders than its symbols ask for")
    return symbols


class _Remainders:
    """The remainders of a block, taken in order."""

    def __init__(self, small: bytes, large: bytes) -> None:
        self._left = np.frombuffer(small, dtype=np.uint8).astype(np.int64)
        is_large = self._left == _LARGE
        if len(large) != 4 * int(is_large.sum()):
            raise MemoError("a block's large numbers are of another count than their marks")
        self._left[is_large] = np.frombuffer(large, dtype="<i4")
        if self._left.size and not 0 <= self._left.min() <= self._left.max() < 2**16 - 2:  # a gap's symbol and sign
            raise MemoError("a block holds a symbol out of range")

    def take(self, count: int | None) -> np.ndarray:
        """The next ones; None: all that are left."""
        taken, self._left = self._left[:count], self._left[len(self._left) if count is None else count :]
        if count is not None and len(taken) != count:
            raise MemoError("a block holds fewer remainders than its symbols ask for")
        return taken


def _pack_digits(part: np.ndarray, packed: int) -> tuple[bytes, np.ndarray]:
    """`packed` symbols a byte, and what those at the end of their reach leave."""
    reach = _REACH[packed]
    digits = np.clip(part, -reach, reach)
    rest = np.abs(part[np.abs(digits) == reach]) - reach
    base, short = 2 * reach + 1, -part.shape[1] % packed
    digits = np.pad(digits + reach, ((0, 0), (0, short)), constant_values=reach)
    return (digits.reshape(-1, packed) @ base ** np.arange(packed)).astype(np.uint8).tobytes(), rest


def _unpack_digits(stream: bytes, part: np.ndarray, packed: int, rest: _Remainders) -> None:
    reach = _REACH[packed]
    base, each = 2 * reach + 1, -(-part.shape[1] // packed)
    codes = np.frombuffer(stream, dtype=np.uint8)
    if len(codes) != len(part) * each or (len(codes) and codes.max() >= base**packed):
        raise MemoError("a block's stream of symbols is damaged")
    table = (np.arange(256)[:, None] // base ** np.arange(packed) % base - reach).astype(np.int16)
    part[:] = table[codes].reshape(len(part), -1)[:, : part.shape[1]]
    at_end = np.abs(part) == reach
    beyond = rest.take(int(at_end.sum()))
    if len(beyond) and beyond.max() > LARGEST - reach:
        raise MemoError("a block holds a symbol out of range")
    part[at_end] += np.sign(part[at_end]) * beyond.astype(np.int16)


def _pack_gaps(part: np.ndarray) -> tuple[bytes, np.ndarray]:
    """The gaps between nonzero symbols, and their count (two numbers) and sizes, with the signs in the lowest bits."""
    flat = part.reshape(-1)
    at = np.flatnonzero(flat)
    gaps, values = np.diff(at, prepend=-1) - 1, flat[at]
    skips = gaps // _LARGE  # 255: nothing here, go on
    stream = np.full(len(gaps) + int(skips.sum()), _LARGE, dtype=np.uint8)
    stream[np.arange(len(gaps)) + np.cumsum(skips)] = gaps % _LARGE
    signed = 2 * (np.abs(values) - 1) + (values < 0)
    return stream.tobytes(), np.concatenate(([len(at) % _LARGE, len(at) // _LARGE], signed))


def _unpack_gaps(stream: bytes, part: np.ndarray, rest: _Remainders) -> None:
    low, high = rest.take(2)
    coded = rest.take(int(low + _LARGE * high))
    codes = np.frombuffer(stream, dtype=np.uint8).astype(np.int64)
    real = codes != _LARGE
    at = np.cumsum(codes + real)[real] - 1
    if len(at) != len(coded) or (len(at) and at[-1] >= part.size):
        raise MemoError("a block's stream of gaps is damaged")
    flat = part.reshape(-1)  # a view: the rows of a band are contiguous
    flat[at] = ((coded // 2 + 1) * np.where(coded % 2, -1, 1)).astype(np.int16)
