"""Token ids -> memory.bin: read in fixed memory, coded block by block, resumed after a kill from the last whole block.

A build that goes on gives the bytes of one that was never interrupted: it goes on where a chunk of the reading ends,
with the exact keys and values that the reading looks at there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minimemo.ask.question import memory_room
from minimemo.engine.engine import Engine, PrefilledChunk
from minimemo.engine.reading import Reading, Window
from minimemo.errors import InputError, ModelError
from minimemo.events import Event, Listener
from minimemo.files import size
from minimemo.memo.folder import MEMO, QUALITY, TAIL
from minimemo.memo.manifest import MEMORY, Judged, Recipe
from minimemo.memo.quality import QualityCard
from minimemo.memory.blocks import BLOCK_TOKENS, FIRST_PREVIOUS, BlockAssembler, KVBlock, chain, token_array
from minimemo.memory.codec import Codec, KVLayout
from minimemo.memory.reader import MemoryReader
from minimemo.memory.tail import ExactTail
from minimemo.memory.writer import MemoryWriter, forget_journal, writing

WHOLE = 32_768  # tokens up to which all is seen, at most: reading them takes time with their square
WINDOW, STEP, FIRST = 2048, 512, 16
_LEAST = 256  # tokens of a window
_BEHIND = 8  # blocks that wait to be coded while a GPU reads on
_OPENING_ROOM = 64  # tokens of the text before the document; about 30
LONG, SAMPLE = 300_000, 8192  # tokens of which a build says how long it will take, and after how many


def reading_rule(max_context: int, window: int | None = None) -> dict[str, int]:
    """How documents are read by a model of this context (Recipe.reading); window: as the user wants it.

    Raises InputError for a window that does not fit the context, ModelError for a context that is too short for any.
    """
    most = max_context - STEP - FIRST - _OPENING_ROOM
    if most < _LEAST:
        raise ModelError(f"a context of {max_context} tokens is too short to read with; use a model of 2,048 or more")
    if window is not None and not _LEAST <= window <= most:
        raise InputError(f"window {window}: choose {_LEAST} to {most} tokens for this model")
    whole = min(max(0, max_context - memory_room()), WHOLE, window or WHOLE)
    return {"whole": whole, "window": window or min(WINDOW, most), "step": STEP, "first": FIRST}


def window_of(rule: Mapping[str, int], opening: int, tokens: int, max_context: int) -> Window | None:
    """The window through which `tokens` are read, `opening` of which stand before the document; None: all is seen."""
    if tokens <= rule["whole"]:
        return None
    window = Window(opening + rule["first"], rule["window"], rule["step"])
    if window.capacity > max_context:
        raise InputError(
            f"prompts: {opening} tokens before the document leave no room in a context of {max_context}; "
            "shorten memory_intro or choose a smaller window"
        )
    return window


class Earlier(NamedTuple):
    """The memory of an earlier state of the document, by the same recipe, whose exact end lies in the scratch folder,
    and what was measured of it."""

    memory: MemoryReader
    quality: Sequence[Judged]


def write_memory(
    ids: np.ndarray,
    opening: Sequence[int],
    engine: Engine,
    recipe: Recipe,
    codec: Codec,
    scratch: Path,
    on_event: Listener,
    earlier: Earlier | None = None,
    others: Sequence[Path] = (),
) -> tuple[Judged, ...]:
    """Reads opening and document ids into the memo's memory.bin, going on with what `scratch` holds of it.

    codec: the one that the recipe names. others: the exact ends of other documents' memories, read whole by the same
    model in the same run; a document that is read so and begins as one of them is not read up to where they part.
    Returns what was measured of the memory.
    """
    path = scratch / MEMO / MEMORY
    sequence = np.concatenate((np.array(opening, np.int32), ids))
    header = {
        "model": recipe.model,
        "document": recipe.document_sha256,
        "opening": recipe.opening,
        "opening_tokens": len(opening),
        "codec": recipe.codec,
        "params": recipe.params,
    }
    window = window_of(recipe.reading, len(opening), len(sequence), engine.config.max_context)
    card = QualityCard(scratch / QUALITY, sequence, len(opening), codec, engine)
    if path.exists():  # it appears when it is whole
        forget_journal(path)
    else:
        reading = Reading(engine, len(sequence), window)
        with writing(path, header, level=codec.level) as writer, _tail(scratch, reading, recipe, codec.layout) as tail:

            def keep(block: KVBlock) -> None:
                if block.tokens == BLOCK_TOKENS:
                    tail.put(block)  # first: what the memory holds can be gone on from
                card.look(block, tail)
                following = len(sequence) - block.start - block.tokens
                writer.add(block.hash, block.ids, codec.encode(block, following))

            if earlier is not None and not writer.hashes:
                card.adopt(earlier.quality, _take(earlier.memory, writer, sequence, recipe))
            hashes = _go_on(reading, writer, tail, sequence)
            if not hashes and window is None:
                for block in _alike(others, sequence, _unit(reading), codec.layout):
                    keep(block)
                hashes = _go_on(reading, writer, tail, sequence)
            if reading.position:
                on_event(Event(f"goes on at token {reading.position:,} of {len(sequence):,}", 1, 1, "note"))
            assembler = BlockAssembler(reading.position, hashes[-1] if hashes else FIRST_PREVIOUS)
            with _Following(keep, engine.decoder.device) as following:
                for piece in _read(reading, sequence, writer, on_event):
                    for block in assembler.push(piece.ids, piece.keys, piece.values):
                        following.take(block)
                if (rest := assembler.finish()) is not None:
                    following.take(rest)
        del reading  # its cache
    if not card.judged:
        card.measure_again(Reading(engine, len(sequence), window))
    return card.judged


class _Following:
    """Does `keep` with block after block: on a CPU at once; where a GPU reads on meanwhile, in a thread and on a stream
    of its own, at most `_BEHIND` blocks behind. What `keep` raises is raised by a later `take`, or at the end."""

    def __init__(self, keep: Callable[[KVBlock], None], device: torch.device) -> None:
        self._keep = keep
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "minimemo-keep")
        self._waiting = deque[Future[None]]()

    def __enter__(self) -> _Following:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=error is not None)
        while self._waiting and error is None:
            self._waiting.popleft().result()

    def take(self, block: KVBlock) -> None:
        if self._stream is None:
            self._keep(block)
            return
        there = torch.cuda.Event()
        there.record(torch.cuda.current_stream(self._stream.device))
        self._waiting.append(self._thread.submit(self._kept, self._stream, block, there))
        if len(self._waiting) > _BEHIND:
            self._waiting.popleft().result()

    def _kept(self, stream: torch.cuda.Stream, block: KVBlock, there: torch.cuda.Event) -> None:
        with torch.cuda.stream(stream):
            stream.wait_event(there)
            self._keep(block)
            stream.synchronize()  # the block's memory is another stream's


def _read(reading: Reading, sequence: np.ndarray, writer: MemoryWriter, on_event: Listener) -> Iterator[PrefilledChunk]:
    """Reads on to the end. Of a long document it says, once some of it is read, how long the rest will take and how
    large its memory gets."""
    begin, first, tokens = perf_counter(), reading.position, len(sequence)
    silent = tokens < LONG
    on_event(Event("read", first, tokens, "tok"))
    for piece in reading.read(sequence[first:].tolist()):
        position = reading.position
        on_event(Event("read", position, tokens, "tok"))
        yield piece
        if not silent and position >= first + SAMPLE:
            silent = True
            minutes = (perf_counter() - begin) / (position - first) * (tokens - position) / 60
            whole = writer.written / (len(writer.hashes) * BLOCK_TOKENS) * tokens
            note = f"{tokens:,} tokens: about {max(1, round(minutes))} minutes to read, memory.bin about {size(whole)}"
            on_event(Event(note, 1, 1, "note"))


def _tail(scratch: Path, reading: Reading, recipe: Recipe, layout: KVLayout) -> ExactTail:
    """With room for what is seen at the end of a chunk, and for the blocks of two chunks more: a kill may come between
    a block and the end of its chunk, and a document may grow from a little before its end."""
    window = reading.window
    if window is None:
        return ExactTail(scratch / TAIL, layout, pinned=0, ring=recipe.reading["whole"] // BLOCK_TOKENS + 1)
    ring = (window.tokens + window.step + 2 * reading.chunk) // BLOCK_TOKENS + 2
    return ExactTail(scratch / TAIL, layout, pinned=-(-window.sinks // BLOCK_TOKENS), ring=ring)


def _take(old: MemoryReader, writer: MemoryWriter, sequence: np.ndarray, recipe: Recipe) -> int:
    """Takes over the blocks with which another memory begins like `sequence`, if both are read in the same way; their
    number.

    Without the last full block of either: a codec may treat the end of a document in a way of its own.
    """
    if (old.tokens <= recipe.reading["whole"]) != (len(sequence) <= recipe.reading["whole"]):
        return 0
    hashes = chain(sequence, min(old.tokens, len(sequence)) // BLOCK_TOKENS - 1)
    same = 0
    while same < len(hashes) and old.block(same).hash == hashes[same]:
        same += 1
    writer.take(old, same)
    return same


def _go_on(reading: Reading, writer: MemoryWriter, tail: ExactTail, sequence: np.ndarray) -> list[bytes]:
    """Restores the reading to the last place that writer and tail agree on, cuts the rest off; hashes up to there."""
    written = writer.hashes
    hashes = chain(sequence, len(written))
    same = next((i for i, hash_ in enumerate(hashes) if hash_ != written[i]), len(hashes))
    unit = _unit(reading)
    for position in range(same * BLOCK_TOKENS // unit * unit, 0, -unit):
        blocks = sorted({at // BLOCK_TOKENS for span in reading.kept(position) for at in span})
        held = [(index, hashes[index]) for index in blocks]
        if all(tail.has(*one) for one in held) and all(tail.get(*one) for one in held):
            reading.restore(position, _parts(tail, held))
            del hashes[position // BLOCK_TOKENS :]
            break
    else:
        hashes = []
    writer.cut(len(hashes))
    return hashes


def _alike(others: Sequence[Path], sequence: np.ndarray, unit: int, layout: KVLayout) -> Iterator[KVBlock]:
    """The blocks, exact, that `sequence` shares with the memory that begins most like it: a whole number of units."""
    hashes = chain(sequence, len(sequence))
    with ExitStack() as stack:
        tails: list[tuple[int, ExactTail]] = []
        for path in others:
            with suppress(OSError):  # it has made room since it was looked up
                tail = stack.enter_context(ExactTail(path, layout, pinned=len(hashes), ring=1, read_only=True))
                same = next((i for i, hash_ in enumerate(hashes) if not tail.has(i, hash_)), len(hashes))
                tails.append((same, tail))
        if not tails:
            return
        (same, tail), step = max(tails, key=lambda one: one[0]), unit // BLOCK_TOKENS
        for first in range(0, same // step * step, step):
            found = (tail.get(at, hashes[at]) for at in range(first, first + step))
            numbers = [exact for exact in found if exact is not None]
            if len(numbers) < step:  # damaged
                return
            for at, exact in enumerate(numbers, first):
                ids = token_array(sequence[at * BLOCK_TOKENS : (at + 1) * BLOCK_TOKENS])
                yield KVBlock(at * BLOCK_TOKENS, ids, *exact, hashes[at])


def _unit(reading: Reading) -> int:
    """Tokens: a reading goes on at multiples of it."""
    return math.lcm(reading.chunk, BLOCK_TOKENS)


def _parts(tail: ExactTail, blocks: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, Tensor, Tensor]]:
    for index, hash_ in blocks:
        if (numbers := tail.get(index, hash_)) is not None:
            yield index * BLOCK_TOKENS, *numbers
