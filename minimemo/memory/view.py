"""Views: which tokens of which memories a question gets, in which order. Numbers only; load.py fills a cache.

Keys are stored before RoPE, so a block can be placed anywhere: a view leaves blocks out, closes the gaps and may take
from several memories of one model. Its tokens stand at consecutive positions from 0, whatever the memory's length.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise


@dataclass(frozen=True, slots=True)
class Extent:
    """A memory's length in tokens, of which the first `opening` stand before the document; all but the last of its
    blocks hold `block_tokens`."""

    tokens: int
    opening: int
    block_tokens: int

    @property
    def blocks(self) -> int:
        return -(-self.tokens // self.block_tokens)


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start` to `end` of the document in memory number `memory`, its opening not counted."""

    memory: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """Of memory number `memory`, from block `block`, the tokens `first` to `end` of that block."""

    memory: int
    block: int
    first: int
    end: int

    @property
    def tokens(self) -> int:
        return self.end - self.first


@dataclass(frozen=True, slots=True)
class MemoryView:
    """Parts in the order in which they enter a cache."""

    parts: tuple[Part, ...]

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)


Block = tuple[int, int]  # memory number, block number


def whole(extents: Sequence[Extent]) -> MemoryView:
    """Everything, in order; only the first memory's opening, as one opening is enough."""
    return _view(extents, [(memory, block) for memory, extent in enumerate(extents) for block in range(extent.blocks)])


def chosen(extents: Sequence[Extent], ranked: Iterable[Block], budget: int) -> MemoryView:
    """The first memory's opening and of the blocks `ranked`, best first, as many as `budget` tokens hold, in order.

    A block that does not fit ends the choice: what follows it is worth less.
    """
    opening = _view(extents, ())
    held = {(part.memory, part.block): part.tokens for part in opening.parts}
    left = budget - opening.tokens
    kept: set[Block] = set()
    for block in ranked:
        if block in kept:
            continue
        left -= _part(extents, block).tokens - held.get(block, 0)
        if left < 0:
            break
        kept.add(block)
    return _view(extents, kept)


def blocks_of(extents: Sequence[Extent], spans: Iterable[Span]) -> Iterator[Block]:
    """Yields the blocks that hold each span, span by span."""
    for span in spans:
        extent = extents[span.memory]
        first = (extent.opening + span.start) // extent.block_tokens
        last = (extent.opening + max(span.start, span.end - 1)) // extent.block_tokens
        for block in range(first, min(last, extent.blocks - 1) + 1):
            yield span.memory, block


def neighbours(extents: Sequence[Extent], blocks: Iterable[Block]) -> Iterator[Block]:
    """Yields the blocks before and after each."""
    for memory, block in blocks:
        for near in (block - 1, block + 1):
            if 0 <= near < extents[memory].blocks:
                yield memory, near


def held(extents: Sequence[Extent], views: Iterable[MemoryView]) -> list[Span]:
    """The stretches of the documents that views hold between them, in order; neighbours are one."""
    spans: list[Span] = []
    for part in sorted({part for view in views for part in view.parts}):
        at = part.block * extents[part.memory].block_tokens - extents[part.memory].opening
        start, end = max(0, at + part.first), at + part.end
        if spans and spans[-1].memory == part.memory and start <= spans[-1].end:
            spans[-1] = replace(spans[-1], end=max(end, spans[-1].end))
        elif start < end:
            spans.append(Span(part.memory, start, end))
    return spans


def ranked(extents: Sequence[Extent], spans: Sequence[Span], first: int) -> Iterator[Block]:
    """Yields the blocks of the `first` spans, then their neighbours, then those of the other spans."""
    rest = iter(spans)
    best = list(blocks_of(extents, islice(rest, first)))
    yield from best
    yield from neighbours(extents, best)
    yield from blocks_of(extents, rest)


def walk(extents: Sequence[Extent], budget: int, most: int) -> list[MemoryView]:
    """All memories in at most `most` views of at most `budget` tokens, in order: all blocks where they fit, else
    stretches of neighbouring blocks at even distances. A view holds one block at least."""
    every = [(memory, block) for memory, extent in enumerate(extents) for block in range(extent.blocks)]
    room = budget - extents[0].opening if extents else 0
    each = max(1, room // max((extent.block_tokens for extent in extents), default=1))
    count = -(-len(every) // each)
    if count <= most:
        edges = [at * len(every) // count for at in range(count + 1)]  # even ones, rather than a last one of scraps
        return [_view(extents, every[start:end]) for start, end in pairwise(edges)]
    starts = [round(at * (len(every) - each) / max(1, most - 1)) for at in range(most)]
    return [_view(extents, every[at : at + each]) for at in starts]


def _view(extents: Sequence[Extent], blocks: Collection[Block]) -> MemoryView:
    """The opening of the first memory and the blocks, in order, without the openings of the others."""
    parts = {block: _part(extents, block) for block in blocks}
    for number in range(-(-extents[0].opening // extents[0].block_tokens) if extents else 0):
        part = _part(extents, (0, number))
        opening = extents[0].opening - number * extents[0].block_tokens
        parts.setdefault((0, number), replace(part, end=min(part.end, opening)))
    return MemoryView(tuple(part for part in sorted(parts.values()) if part.tokens))


def _part(extents: Sequence[Extent], block: Block) -> Part:
    """The tokens of a block that a view of it takes: openings are left out but for the first memory's."""
    memory, number = block
    extent = extents[memory]
    at = number * extent.block_tokens
    end = min(extent.tokens - at, extent.block_tokens)
    return Part(memory, number, min(end, max(0, extent.opening - at)) if memory else 0, end)
