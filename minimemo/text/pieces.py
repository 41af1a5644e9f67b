"""Tokenizing a text of any length piece by piece: the same tokens as in one go, in memory for one piece.

A tokenizer's working memory is about 400 bytes a character, so a long text would need more than the model. Pieces are
cut where a line begins, and each is encoded with the lines before and behind it, whose tokens are left out again. A
cut holds only where both sides agree that no token crosses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Encoded = tuple[NDArray[np.int32], NDArray[np.int64]]  # ids (n,), spans (n, 2) in characters
PIECE = 1 << 16  # characters
_CONTEXT = 256  # characters of the neighbours that a piece is encoded with, at most
_HUGE = 1 << 20  # characters
_WORD = re.compile(r"(?<=\S)(?=\s\S)")
_LINE = re.compile(r"\n(?=\S)")


def encode_in_pieces(
    text: str, encode: Callable[[str], Encoded], *, piece: int = PIECE, on_done: Callable[[int], None] | None = None
) -> Encoded:
    """`encode(text)`; on_done: called with the number of characters that are done.

    A text without line ends, or a tokenizer whose tokens cross them, is encoded in larger pieces. Where more than _HUGE
    characters have no end of a line, pieces end with words; where they have none of those either, anywhere: that many
    spaces or letters on end are too much for the patterns of a tokenizer.
    """
    ids, spans = [np.empty(0, np.int32)], [np.empty((0, 2), np.int64)]
    at, least = 0, piece
    while at < len(text):
        line = _LINE.search(text, at + least - 1)
        end = line.end() if line else len(text)
        if end - at > max(_HUGE, least):
            word = _WORD.search(text, at + least - 1, at + _HUGE)
            if word is None and _WORD.search(text, at, at + _HUGE) is None:
                encoded, where = encode(text[at : at + _HUGE])
                ids.append(encoded)
                spans.append(where + at)
                at, least = min(at + _HUGE, len(text)), piece
                continue
            end = word.end() if word else end
        # the line before the one that begins at `at`, and the one that begins at `end`, or not far from there
        first = max(text.rfind("\n", 0, max(0, at - 1)) + 1, at - _CONTEXT, 0)
        past = min(text.find("\n", end) + 1 or len(text), end + _CONTEXT, len(text))
        encoded, where = encode(text[first:past])
        where = where + first
        if ((where[:, 0] < end) & (where[:, 1] > end)).any():
            least += piece  # this cut is none: look for another one
            continue
        if ((where[:, 0] < at) & (where[:, 1] > at)).any():
            return encode(text)  # the two sides of a cut see it differently
        inside = (where[:, 0] >= at) & (where[:, 0] < end)
        ids.append(encoded[inside])
        spans.append(where[inside])
        at, least = end, piece
        if on_done:
            on_done(at)
    return np.concatenate(ids), np.concatenate(spans)
