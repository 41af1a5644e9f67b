"""A view's blocks from their files into a cache: decoded, kept for the next question, rotated to their new positions.

Letters: L layers, G kv heads, n tokens of a block, D head dim.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from minimemo.engine.cache import KVCache
from minimemo.engine.engine import Engine
from minimemo.errors import MemoError
from minimemo.events import Event, Listener, silent
from minimemo.memory.codec import Codec
from minimemo.memory.reader import MemoryReader
from minimemo.memory.view import MemoryView, Part, whole

KEPT_BYTES = 128 << 20  # of decoded blocks: 21 blocks of the 0.5B model, 5,400 tokens
_THREADS = 4  # that decode for a GPU
_AGAIN = "build it again: minimemo build DOCUMENT"


class StoredMemory:
    """Open memory.bin files of one model, each with its codec, and views of them in caches.

    The blocks decoded last are kept for later views, up to KEPT_BYTES. decoded: running count of decoded blocks, for
    anyone who wants to know what a call cost. extents: of the files, in order.
    """

    def __init__(
        self, files: Sequence[tuple[MemoryReader, Codec]], engine: Engine, on_event: Listener = silent
    ) -> None:
        """Raises MemoError for a header that does not say where its document begins."""
        self.extents = tuple(reader.extent for reader, _ in files)
        self.decoded = 0
        self._files = tuple(files)
        self._engine = engine
        self._on_event = on_event
        self._kept: OrderedDict[tuple[int, int], tuple[Tensor, Tensor]] = OrderedDict()
        self._coming: dict[tuple[int, int], Future[tuple[Tensor, Tensor]]] = {}

    @torch.inference_mode()
    def load(self, view: MemoryView, room: int) -> KVCache:
        """A new cache of the view's tokens, with room for `room` tokens more, or what the model's context leaves.

        One block is decoded at a time, for a GPU a few. A damaged block whose ids are whole is computed again, seeing
        what the view has before it, and a note says so (not where the cache packs). Raises MemoError for other damage,
        for a view beyond the model's context, and for a memory of another model or dtype.
        """
        engine = self._engine
        capacity = min(view.tokens + room, engine.config.max_context)
        if view.tokens > capacity:
            raise MemoError(
                f"the memory's {view.tokens} tokens exceed the cache of {capacity} by {view.tokens - capacity}: "
                "choose fewer blocks or a larger cache"
            )
        with engine.alone():
            cache = engine.new_memory(view.tokens, capacity)
            for memory in sorted({part.memory for part in view.parts}):
                _check_model(self._files[memory][1], cache)
                blocks = {part.block for part in view.parts if part.memory == memory}
                self._files[memory][0].fetch(sorted(blocks - {block for of, block in self._kept if of == memory}))
            with self._decoding(view) as upcoming:
                for done, part in enumerate(view.parts, 1):
                    upcoming(done - 1)
                    self._append(part, cache)
                    self._on_event(Event("load memory", done, len(view.parts), "blocks"))
            if view == whole(self.extents):
                self._kept.clear()  # all of them are in the cache
        return cache

    def ids(self, view: MemoryView) -> list[int]:
        """The tokens of a view, as ids."""
        blocks = (self._files[part.memory][0].ids(part.block)[part.first : part.end] for part in view.parts)
        return [int(token) for block in blocks for token in block]

    def block(self, memory: int, index: int) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values, each (L, G, n, D), on the engine's device, not to be written to. Raises
        MemoError for damaged ones."""
        if (memory, index) in self._kept:
            self._kept.move_to_end((memory, index))
            return self._kept[memory, index]
        coming = self._coming.pop((memory, index), None)
        kv = self._decode(memory, index) if coming is None else coming.result()
        self.decoded += 1
        self._kept[memory, index] = kv
        while sum(x.nbytes for pair in self._kept.values() for x in pair) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return kv

    @torch.inference_mode()
    def _decode(self, memory: int, index: int) -> tuple[Tensor, Tensor]:
        reader, codec = self._files[memory]
        reader.fetch([index])
        streams = reader.payload(index)
        try:
            return codec.decode(streams, reader.block(index).tokens, self._engine.decoder.device)
        except MemoError as error:
            raise MemoError(f"{reader.path}: block {index}: {error}; {_AGAIN}") from None

    @contextmanager
    def _decoding(self, view: MemoryView) -> Iterator[Callable[[int], None]]:
        """For a GPU blocks are decoded by several threads, a few ahead of the part that is asked for: what the CPU does
        for one takes many times what a GPU does. On a CPU the kernels have threads of their own."""
        if self._engine.decoder.device.type != "cuda":
            yield lambda at: None
            return
        with ThreadPoolExecutor(_THREADS, "minimemo-decode") as pool:

            def upcoming(at: int) -> None:
                for part in view.parts[at : at + _THREADS]:
                    name = part.memory, part.block
                    if name not in self._kept and name not in self._coming:
                        self._coming[name] = pool.submit(self._decode, *name)

            try:
                yield upcoming
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                self._coming.clear()

    def _append(self, part: Part, cache: KVCache) -> None:
        """Appends the tokens of one part, at the positions after the cache's end."""
        try:
            keys, values = self.block(part.memory, part.block)
        except MemoError as error:
            if cache.bits:
                raise
            self._compute(part, cache)
            self._on_event(Event(f"{error}; computed from its text for now", 1, 1, "note"))
            return
        keys, values = (x[:, :, part.first : part.end] for x in (keys, values))
        try:
            self._engine.append(cache, keys, values)
        except ValueError as error:
            path = self._files[part.memory][0].path
            raise MemoError(f"{path}: block {part.block}: {error}; open it with kv-dtype bfloat16") from None

    def _compute(self, part: Part, cache: KVCache) -> None:
        """Reads the part's ids into the cache, as the model does."""
        ids = self.ids(MemoryView((part,)))
        if any(not 0 <= token < self._engine.config.vocab_size for token in ids):
            raise MemoError(f"memory.bin: damaged (tokens that the model does not have); {_AGAIN}")
        self._engine.extend(cache, ids)


def _check_model(codec: Codec, cache: KVCache) -> None:
    layers, heads, _, dim = cache.keys.shape
    if codec.layout.shape(0) != (layers, heads, 0, dim):
        raise MemoError(
            f"the memory holds {codec.layout}, the model runs {layers} layers of {heads} x {dim}: "
            "open it with the model that it was built with"
        )
    runs_in = f"int{cache.bits}" if cache.bits else str(cache.dtype).removeprefix("torch.")
    if codec.lossless and codec.layout.dtype != runs_in:
        raise MemoError(
            f"the memory is exact in {codec.layout.dtype}, the model runs with keys and values in {runs_in}: "
            f"open it with kv-dtype {codec.layout.dtype}"
        )
