"""Whole memories in caches, for tests that look at what a file brought back."""

from __future__ import annotations

import numpy as np

from minimemo.engine.cache import KVCache
from minimemo.memo.memo import Memo
from minimemo.memory.reader import MemoryReader
from minimemo.memory.view import whole


def whole_memory(memo: Memo) -> KVCache:
    """As a question gets it, with room to ask."""
    memory = memo.memory()
    return memory.load(whole(memory.extents), 512)


def all_ids(reader: MemoryReader) -> np.ndarray:
    """(tokens,) int32, of all blocks."""
    return np.concatenate([np.empty(0, np.int32), *(reader.ids(index) for index in range(len(reader)))])
