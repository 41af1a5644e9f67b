"""Numbers of bytes in words, and back. Decimal units."""

from __future__ import annotations

import re

from minimemo.errors import InputError

_UNITS = {"G": 1e9, "M": 1e6, "k": 1e3}
_WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMmGg]?)[Bb]?", re.ASCII)


def size(count: float) -> str:
    """For people: 20.4 MB."""
    for unit, scale in _UNITS.items():
        if count >= scale:
            return f"{count / scale:.1f} {unit}B"
    return f"{count:.0f} B"


def parse_size(text: str) -> int:
    """Bytes of 20MB, 500kB, 1.5GB or a plain number. Raises InputError for anything else, and for less than a byte."""
    written = _WRITTEN.fullmatch(text.strip())
    scales = {"": 1.0, **{unit.lower(): scale for unit, scale in _UNITS.items()}}
    count = round(float(written[1]) * scales[written[2].lower()]) if written else 0
    if count < 1:
        raise InputError(f"size {text!r}: write it like 20MB, 500kB, 1.5GB or 300000")
    return count
