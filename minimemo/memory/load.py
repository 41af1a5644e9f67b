"""A view's blocks from their files into a cache: decoded, kept for the next question, rotated to their new positions.

Letters: L layers, G kv heads, n tokens of a block, D head dim.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minimemo.engine.cache import KVCache
from minimemo.errors import MemoError
from minimemo.events import Event, Listener, silent
from minimemo.memory.blocks import BLOCK_TOKENS
from minimemo.memory.codec import Codec
from minimemo.memory.reader import MemoryReader
from minimemo.memory.view import Extent, MemoryView
from minimemo.models.rope import RopeTable

Compute = Callable[[KVCache, Sequence[int]], object]
KEPT_BYTES = 256 << 20  # of decoded blocks: 40 blocks of the 0.5B model, 10,000 tokens


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """One memory.bin with the codec that reads it."""

    reader: MemoryReader
    codec: Codec

    @property
    def extent(self) -> Extent:
        """Raises MemoError when the header does not say where the document begins."""
        opening, tokens = self.reader.header.get("opening_tokens", 0), self.reader.tokens
        if type(opening) is not int or not 0 <= opening <= tokens:
            raise MemoError(
                f"{self.reader.path}: damaged ({opening!r} of {tokens} tokens before the document); "
                "build it again: minimemo build DOCUMENT"
            )
        return Extent(tokens, opening, BLOCK_TOKENS)


class DecodedBlocks:
    """Blocks of one or several memories as tensors, decoded when first asked for; those used last are kept, up to
    `kept_bytes`. decoded: how many blocks have been, for anyone who wants to know what a call cost."""

    def __init__(self, memories: Sequence[StoredBlocks], kept_bytes: int = KEPT_BYTES) -> None:
        self.memories = memories
        self.decoded = 0
        self._kept_bytes = kept_bytes
        self._kept: OrderedDict[tuple[int, int], tuple[Tensor, Tensor]] = OrderedDict()
        self._bytes = 0

    def block(self, memory: int, index: int) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values, each (L, G, n, D), not to be written to. Raises MemoError for damaged ones."""
        if (memory, index) in self._kept:
            self._kept.move_to_end((memory, index))
            return self._kept[memory, index]
        reader, codec = self.memories[memory].reader, self.memories[memory].codec
        streams = reader.payload(index)
        try:
            found = codec.decode(streams, reader.block(index).tokens)
        except MemoError as error:
            raise MemoError(f"{reader.path}: block {index}: {error}; build it again: minimemo build DOCUMENT") from None
        self.decoded += 1
        self._kept[memory, index] = found
        self._bytes += _size(found)
        while self._bytes > self._kept_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _size(dropped)
        return found

    def forget(self) -> None:
        """Keeps none of them any longer."""
        self._kept.clear()
        self._bytes = 0


@torch.inference_mode()
def load(
    blocks: DecodedBlocks,
    view: MemoryView,
    rope: RopeTable,
    cache: KVCache,
    on_event: Listener = silent,
    compute: Compute | None = None,
) -> None:
    """Appends the view's tokens to the cache, at the positions after its end.

    One block is decoded at a time; a failure leaves the cache as it was. A cache that packs has to be empty.
    compute: reads token ids into the cache as the model does; a damaged block is then computed again, seeing what the
    view has before it, if its ids are whole, and a note says so (not where the cache packs).
    Raises MemoError when the cache is too small or of another model or dtype, and for damaged blocks.
    """
    if cache.bits and cache.length:
        raise ValueError(f"memory view: a cache that packs must be empty, this one holds {cache.length} tokens")
    for memory in sorted({part.memory for part in view.parts}):
        _check_model(blocks.memories[memory].codec, cache)
    missing = cache.length + view.tokens - cache.capacity
    if missing > 0:
        raise MemoError(
            f"the memory's {view.tokens} tokens after {cache.length} others exceed the cache of {cache.capacity} "
            f"by {missing}: choose fewer blocks or a larger cache"
        )
    before, device = cache.length, cache.keys.device
    try:
        for done, part in enumerate(view.parts, 1):
            try:
                found = blocks.block(part.memory, part.block)
            except MemoError as error:
                if compute is None or cache.bits:
                    raise
                compute(cache, blocks.memories[part.memory].reader.ids(part.block)[part.first : part.end].tolist())
                on_event(Event(f"{error}; computed from its text for now", 1, 1, "note"))
                continue
            keys, values = (x[:, :, part.first : part.end].to(device) for x in found)
            try:
                cache.append(rope.rotate(keys, cache.length), values)
            except ValueError as error:
                path = blocks.memories[part.memory].reader.path
                raise MemoError(f"{path}: block {part.block}: {error}; open it with kv-dtype bfloat16") from None
            on_event(Event("load memory", done, len(view.parts), "blocks"))
    except BaseException:
        cache.truncate(before)
        raise


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(x.numel() * x.itemsize for x in tensors)


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
