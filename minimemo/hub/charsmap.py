"""A character map -> the `precompiled_charsmap` bytes of the tokenizers library (SentencePiece's normalization rules).

Layout: u32 byte length of the trie, the trie as u32 units, then the replacement strings, each closed by a zero byte.
The trie is a double array (Aoe, 1989) in the Darts-clone layout: a unit has its byte label in bits 0-7, "a key ends
here" in bit 8, and in bits 10-30 the XOR distance from its own place to its children's base; the child for byte c
lies at base ^ c. The unit at base ^ 0 of a node that ends a key holds the replacement's offset, with bit 31 set.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

_MAX_UNITS = 1 << 21
_WINDOW = 1024  # how far back a free place is looked for: without a bound the search is quadratic, 30 s for 5,000 keys


def build_charsmap(mapping: Mapping[str, str]) -> bytes:
    """Bytes for the map `source string -> replacement`; sources are non-empty and hold no zero character.

    The same mapping gives the same bytes whatever its order. Raises ValueError when a source cannot be a key or the
    map is too large for the layout.
    """
    strings = bytearray()
    offsets: dict[str, int] = {}
    root: dict[int, Any] = {}
    for source in sorted(mapping):
        target = mapping[source]
        if not source or "\0" in source or "\0" in target:
            raise ValueError(f"cannot map {source!r} to {target!r}: empty, or holds a zero character")
        if target not in offsets:
            offsets[target] = len(strings)
            strings += target.encode("utf-8") + b"\0"
        node = root
        for byte in source.encode("utf-8"):
            node = node.setdefault(byte, {})
        node[0] = offsets[target]
    units = _double_array(root)
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + bytes(strings)


def _double_array(root: dict[int, Any]) -> list[int]:
    """First-fit placement, breadth first. Bases are unique, or one node would find another's children."""
    units = [0] * 256
    taken = bytearray(256)
    taken[0] = 1
    bases: set[int] = set()
    queue: list[tuple[int, dict[int, Any]]] = [(0, root)]
    for place, node in queue:
        labels = sorted(node)
        if not labels:
            continue
        base = max(0, len(units) - _WINDOW)
        while base in bases or any(taken[base ^ label] for label in labels):
            base += 1
            if base == len(units):  # grows by whole blocks of 256, so that base ^ label is always inside
                units += [0] * 256
                taken += bytes(256)
        if len(units) > _MAX_UNITS:
            raise ValueError(f"a map of {len(units)} units is larger than the {_MAX_UNITS} that the layout can hold")
        bases.add(base)
        units[place] |= (place ^ base) << 10 | (256 if 0 in node else 0)
        for label in labels:
            taken[base ^ label] = 1
            if label:
                units[base ^ label] = label
                queue.append((base ^ label, node[label]))
            else:
                units[base] = 1 << 31 | node[0]
    return units
