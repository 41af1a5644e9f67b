"""The rows of a pass, and where they stand: as numbers on a GPU, which a step of decoding reads there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from minimemo.kernels import PackedSource, Rows, Source
from minimemo.kernels.native import stack
from minimemo.models.rope import RopeTable

GROWING = 4  # lines of Places.table
MAX_GROUP = 16  # query heads of a kv head that a program of a step takes


class Cache(stack.Cache, Protocol):
    """What the decoder asks of a KV cache (engine/cache.py holds the real one), whose keys are those after RoPE."""

    @property
    def dtype(self) -> torch.dtype: ...
    def require(self, tokens: int) -> None: ...
    def write(self, layer: int, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor) -> None: ...
    def advance(self, tokens: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Row:
    """`count` new tokens that continue the sequence held by `cache` (after the shared prefix, if there is one)."""

    cache: Cache
    count: int


def spacing(rows: Sequence[Row]) -> int | None:
    """Numbers from the keys, and the values, of a row's cache to those of the next one; None where caches do not lie
    alike at equal distances."""
    steps = {0} if len(rows) == 1 else set[int]()
    for one, other in pairwise(row.cache for row in rows):
        for a, b in ((one.keys, other.keys), (one.values, other.values)):
            alike = a.shape == b.shape and a.stride() == b.stride()
            if not alike or a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
                return None
            steps.add(b.storage_offset() - a.storage_offset())
    return steps.pop() if len(steps) == 1 else None


@dataclass(frozen=True, slots=True)
class Places:
    """Where N rows of one token each stand. table: (6, N) int32; a step adds 1 to the first GROWING of its lines.

    They are: the position; the slot in the row's cache; the number of dense keys that the row sees of its own; the
    position counted from the first dense token of the prefix; how many tokens are packed, the row's or the prefix's;
    and how many of the prefix are dense.
    """

    table: Tensor
    spacing: int  # see `spacing`
    rotations: Sequence[tuple[Tensor, Tensor]]  # cos and sin (P, D) of all positions that rows may reach, for each kind

    @staticmethod
    def of(rows: Sequence[Row], prefix: Cache | None, rope: RopeTable, device: torch.device) -> Places:
        """Tells where they stand now: one copy to the device."""
        shared, start = (prefix.length, prefix.start) if prefix else (0, 0)
        slots = [row.cache.length - row.cache.start for row in rows]
        positions = [shared + row.cache.length for row in rows]
        lines = [
            positions,
            slots,
            [slot + 1 for slot in slots],
            [position - start for position in positions],
            [start if prefix else row.cache.start for row in rows],
            [shared - start] * len(rows),
        ]
        reach = shared + max(row.cache.keys.shape[2] + row.cache.start for row in rows)
        table = torch.tensor(lines, dtype=torch.int32, device=device)
        return Places(table, spacing(rows) or 0, rope.whole(reach, device))

    @property
    def positions(self) -> Tensor:
        return self.table[0]

    @property
    def slots(self) -> Tensor:
        return self.table[1]

    def sources(
        self, layer: int, rows: Sequence[Row], prefix: Cache | None, window: int | None
    ) -> list[Source | PackedSource]:
        """What the rows attend to: the prefix, read once for all of them where there is no window, and their own."""
        positions, slots, keys, dense, packed, shared = self.table
        own, n, found = rows[0].cache, len(rows), list[Source | PackedSource]()

        def whole(counts: Tensor, places: Tensor) -> Rows:
            return Rows(counts[:1]) if window is None else Rows(counts, places)

        cache = prefix or own
        if cache.packed is not None:
            heads = cache.keys.shape[1]
            part = cache.packed.part(slice(layer * heads, (layer + 1) * heads), cache.start)
            found.append(PackedSource(part, 0, n, None, window, whole(packed, positions)))
        if prefix is not None and prefix.length > prefix.start:
            found.append(Source(prefix.keys[layer], prefix.values[layer], 0, n, None, window, whole(shared, dense)))
        alone = Rows(keys, slots, self.spacing)
        return [*found, Source(own.keys[layer], own.values[layer], 0, n, None, window, alone)]
