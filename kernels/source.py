"""What attention attends to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .packed import PackedKV


@dataclass(frozen=True, slots=True)
class Source:
    """Keys and values (G, T, D) that query tokens first .. first + count - 1 attend to.

    last_seen: index of the last key that the first of them sees; each next one sees one more. None: all see all.
    window: of the keys seen, only the last so many.
    """

    keys: Tensor
    values: Tensor
    first: int
    count: int
    last_seen: int | None = None
    window: int | None = None


@dataclass(frozen=True, slots=True)
class PackedSource:
    """Packed keys and values, else as Source."""

    packed: PackedKV
    first: int
    count: int
    last_seen: int | None = None
    window: int | None = None
