"""Whole memories in caches, for tests that look at what a file brought back."""

from __future__ import annotations

from minimemo.engine.cache import KVCache
from minimemo.events import Listener, silent
from minimemo.memo.memo import Memo
from minimemo.memory.codec import Codec
from minimemo.memory.load import DecodedBlocks, StoredBlocks, load
from minimemo.memory.reader import MemoryReader
from minimemo.memory.view import whole
from minimemo.models.rope import RopeTable


def whole_memory(memo: Memo) -> KVCache:
    """As a question gets it, with room to ask."""
    memory = memo.memory()
    return memory.load(whole(memory.extents), 512)


def load_whole(
    reader: MemoryReader, codec: Codec, rope: RopeTable, cache: KVCache, on_event: Listener = silent
) -> None:
    stored = StoredBlocks(reader, codec)
    load(DecodedBlocks([stored]), whole([stored.extent]), rope, cache, on_event)
