"""Views: which blocks of a memory a question gets, at which positions, and their way into a cache.

Keys are stored before RoPE, so a block can be placed anywhere: a view may skip blocks and close the gaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from minimemo.engine.cache import KVCache
from minimemo.errors import MemoError
from minimemo.events import Event, Listener, silent
from minimemo.kernels import apply_rope
from minimemo.memory.codec import Codec
from minimemo.memory.reader import MemoryReader
from minimemo.models.rope import RopeTable


@dataclass(frozen=True, slots=True)
class MemoryView:
    """blocks: indices into a memory, in the order in which they enter the cache; positions: of their first token."""

    blocks: tuple[int, ...]
    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.positions):
            raise ValueError(f"memory view: {len(self.blocks)} blocks at {len(self.positions)} positions")
        if any(number < 0 for number in (*self.blocks, *self.positions)):
            raise ValueError("memory view: blocks and positions are counted from 0")

    @classmethod
    def whole(cls, reader: MemoryReader) -> MemoryView:
        """Every block where it was."""
        blocks = tuple(range(len(reader)))
        return cls(blocks, tuple(reader.block(index).start for index in blocks))


@torch.inference_mode()
def load(
    reader: MemoryReader,
    codec: Codec,
    view: MemoryView,
    rope: RopeTable,
    cache: KVCache,
    on_event: Listener = silent,
) -> None:
    """Appends the view's blocks to the cache, keys rotated to the view's positions.

    One block is decoded at a time; a failure leaves the cache as it was. A cache that packs has to be empty. Raises
    MemoError when the cache is too small or of another model or dtype, and for damaged blocks.
    """
    if cache.bits and cache.length:
        raise ValueError(f"memory view: a cache that packs must be empty, this one holds {cache.length} tokens")
    tokens = sum(reader.block(index).tokens for index in view.blocks)
    _check_fit(codec, cache, tokens)
    layers_of = {kind: [layer for layer, own in enumerate(rope.kind) if own == kind] for kind in set(rope.kind)}
    before = cache.length
    try:
        for done, (index, position) in enumerate(zip(view.blocks, view.positions, strict=True), 1):
            _append(reader, codec, index, position, rope, layers_of, cache)
            on_event(Event("load memory", done, len(view.blocks), "blocks"))
    except BaseException:
        cache.truncate(before)
        raise


def _append(
    reader: MemoryReader,
    codec: Codec,
    index: int,
    position: int,
    rope: RopeTable,
    layers_of: Mapping[int, Sequence[int]],
    cache: KVCache,
) -> None:
    """One block, its first token at `position`. layers_of: the layers of each kind of rotation."""
    count, device = reader.block(index).tokens, cache.keys.device
    streams = reader.payload(index)
    try:
        keys, values = codec.decode(streams, count)
    except MemoError as error:
        raise MemoError(f"{reader.path}: block {index}: {error}; build it again: minimemo build DOCUMENT") from None
    keys, values = keys.to(device), values.to(device)
    rotations = rope.tables(torch.arange(position, position + count, device=device))
    rotated = torch.empty_like(keys)
    for kind, layers in layers_of.items():
        rotated[layers] = apply_rope(keys[layers], *rotations[kind])
    try:
        cache.append(rotated, values)
    except ValueError as error:
        raise MemoError(f"{reader.path}: block {index}: {error}; open it with kv-dtype bfloat16") from None


def _check_fit(codec: Codec, cache: KVCache, tokens: int) -> None:
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
    missing = cache.length + tokens - cache.capacity
    if missing > 0:
        raise MemoError(
            f"the memory's {tokens} tokens after {cache.length} others exceed the cache of {cache.capacity} "
            f"by {missing}: choose fewer blocks or a larger cache"
        )
