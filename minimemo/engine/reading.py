"""A sequence of any length is read in fixed memory: its first tokens stay, and a window slides over the rest.

Attention sinks and a sliding window are StreamingLLM's (arXiv 2309.17453). Every token sees the first ones and at least
the last `Window.tokens`. Positions are those of the slots in the cache (section 3.2 there): they never pass its
capacity, however long the sequence, so rotations stay inside what the model was trained on.

The cache slides in large steps: when it is full, the window's newest tokens move to the front, right behind the first
ones, and their keys are rotated anew from those before RoPE, in one pass. So each key is rounded once, whatever the
number of slides, and what the cache holds at a position follows from that position alone.

Letters: L layers, G kv heads, n tokens, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minimemo.engine.engine import Engine, PrefilledChunk
from minimemo.kernels import hugepages


@dataclass(frozen=True, slots=True)
class Window:
    """What a token sees of a long sequence: the `sinks` first tokens and at least the `tokens` last ones; `step` more
    gather before the cache slides."""

    sinks: int
    tokens: int
    step: int

    @property
    def capacity(self) -> int:
        """Slots of the cache, and the positions that are ever used."""
        return self.sinks + self.tokens + self.step

    def first_kept(self, position: int, chunk: int) -> int:
        """The first token behind the sinks that is still held when `position` tokens are read, `chunk` at a time."""
        full = self.capacity // chunk * chunk  # all tokens are held up to here
        if position <= full:
            return self.sinks
        period = self.step // chunk * chunk
        return full + (position - full - 1) // period * period - self.tokens


class Reading:
    """One sequence on its way through the decoder; `position` tokens of it are read.

    A window makes the memory that this takes independent of the sequence's length; None: every token sees all before
    it, and `tokens` of them are expected. Equal ids give equal bits, whether read in one go or restored in between.
    """

    def __init__(self, engine: Engine, tokens: int, window: Window | None = None) -> None:
        """Raises ValueError where the window is too long for the model's context."""
        capacity = window.capacity if window else tokens
        if capacity > engine.config.max_context:
            raise ValueError(f"reading: {capacity} tokens exceed the model's context of {engine.config.max_context}")
        self.window = window
        # A reading can be restored at multiples of it.
        self.chunk = min(engine.chunk, window.step) if window else engine.chunk
        self.position = 0
        self._engine = engine
        self._cache = engine.new_cache(capacity)
        self._place = 0, 0  # the cache's length before the last chunk, and that one's
        self._ids = self._keys = torch.empty(0)
        self._again: Callable[[], None] | None = None
        self._raw: Tensor | None = None  # keys before RoPE, slot by slot
        if window:
            keys = self._cache.keys
            self._raw = hugepages.empty(keys.shape, keys.dtype, keys.device)

    def read(self, ids: Sequence[int]) -> Iterator[PrefilledChunk]:
        """Reads on; hands over what a memory is made of, chunk by chunk, each valid until the next is asked for."""
        cache = self._cache
        for at in range(0, len(ids), self.chunk):
            piece = ids[at : at + self.chunk]
            keys = self._taken(piece)
            values = cache.values[:, :, cache.length - len(piece) : cache.length]
            start, self.position = self.position, self.position + len(piece)
            yield PrefilledChunk(start, piece, keys, values)

    def _taken(self, piece: Sequence[int]) -> Tensor:
        """Reads a chunk; its keys before RoPE. Where a GPU takes one in the same place as the one before, which a full
        window comes to, it is asked for all of that at once."""
        cache, ids = self._cache, torch.tensor(piece, dtype=torch.long)
        place, self._place = self._place, (cache.length, len(piece))
        if place != self._place or not cache.keys.is_cuda:
            self._again, self._ids = None, ids.to(cache.keys.device)
            self._keys = self._engine.room_for(len(piece))
            self._take()
            return self._keys
        self._ids.copy_(ids)
        if self._again is None:
            self._again = self._engine.repeated(self._take, len(piece))
        self._again()
        return self._keys

    def _take(self) -> None:
        """Reads `_ids`, their keys before RoPE into `_keys`."""
        cache = self._cache
        if self.window and cache.length + len(self._ids) > cache.capacity:
            self._slide(self.window)
        slot = cache.length
        self._engine.read_into(cache, self._ids, self._keys)
        if self._raw is not None:
            self._raw[:, :, slot : cache.length] = self._keys

    def kept(self, position: int) -> tuple[range, range]:
        """Tokens that are held when `position` of them are read: the sinks, and the last ones."""
        sinks = min(position, self.window.sinks) if self.window else 0
        first = self.window.first_kept(position, self.chunk) if self.window else 0
        return range(sinks), range(min(first, position), position)

    def restore(self, position: int, parts: Iterable[tuple[int, Tensor, Tensor]]) -> None:
        """Goes on at `position`, a multiple of `chunk`, as if all before it had been read.

        parts: (first token, keys before RoPE, values), both (L, G, n, D), in order, covering `kept(position)`.
        Raises ValueError for another position, after something was read, and where the parts leave a gap.
        """
        if self.position or position % self.chunk:
            raise ValueError(f"reading: cannot go on at {position} after {self.position} tokens, chunk {self.chunk}")
        cache, (sinks, last) = self._cache, self.kept(position)
        for start, keys, values in parts:
            for span, shift in ((sinks, 0), (last, last.start - len(sinks))):
                first, end = max(start, span.start), min(start + keys.shape[2], span.stop)
                slot = first - shift
                if first < end and slot == cache.length:
                    raw, own = (x[:, :, first - start : end - start].to(cache.keys.device) for x in (keys, values))
                    if self._raw is not None:
                        self._raw[:, :, slot : slot + end - first] = raw
                    cache.append(raw, own)
                    self._rotate(slot, raw)
        count = len(sinks) + len(last)
        if cache.length != count:
            raise ValueError(f"reading: {cache.length} of {count} tokens were given to go on at {position}")
        self.position = position

    @torch.inference_mode()
    def _slide(self, window: Window) -> None:
        """Forgets the oldest tokens behind the sinks."""
        cache, raw = self._cache, self._raw
        assert raw is not None
        old, new = cache.length - window.tokens, window.sinks
        for x in (*raw, *cache.values):  # (G, slots, D), layer by layer: the copy in between stays small
            x[:, new : new + window.tokens] = x[:, old : cache.length].clone()
        cache.truncate(new + window.tokens)
        self._rotate(new, raw[:, :, new : cache.length])

    @torch.inference_mode()
    def _rotate(self, slot: int, raw: Tensor) -> None:
        """Writes keys (L, G, n, D), before RoPE, into the cache from `slot` on, rotated to their slots."""
        self._engine.decoder.rope.rotate(raw, slot, out=self._cache.keys[:, :, slot : slot + raw.shape[2]])
