"""The memory of one or several memos as the loop asks for it: memory.bin files of one model, views in a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minimemo.errors import MemoError
from minimemo.events import Listener, silent
from minimemo.memory.load import DecodedBlocks, StoredBlocks, load
from minimemo.memory.view import MemoryView, whole

if TYPE_CHECKING:
    from minimemo.engine.cache import KVCache
    from minimemo.engine.engine import Engine


class StoredMemory:
    """Views of open memories. Decoded blocks are kept for later views, up to a number of bytes."""

    def __init__(self, memories: Sequence[StoredBlocks], engine: Engine, on_event: Listener = silent) -> None:
        """Raises MemoError for a header that makes no sense."""
        self.extents = tuple(memory.extent for memory in memories)
        self._engine = engine
        self._on_event = on_event
        self._blocks = DecodedBlocks(memories)

    @property
    def decoded(self) -> int:
        """Blocks that were decoded so far."""
        return self._blocks.decoded

    def _compute(self, cache: KVCache, ids: Sequence[int]) -> None:
        if any(not 0 <= token < self._engine.config.vocab_size for token in ids):
            raise MemoError(
                "memory.bin: damaged (tokens that the model does not have); build it again: minimemo build DOCUMENT"
            )
        for _ in self._engine.read(cache, ids):
            pass

    def load(self, view: MemoryView, room: int) -> KVCache:
        """A cache of the view, with room for `room` tokens more, or what the model's context leaves."""
        engine = self._engine
        cache = engine.new_memory(view.tokens, min(view.tokens + room, engine.config.max_context))
        load(self._blocks, view, engine.decoder.rope, cache, self._on_event, self._compute)
        if view == whole(self.extents):
            self._blocks.forget()  # all of them are in the cache
        return cache
