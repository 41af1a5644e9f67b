"""The quality card: what a memory that was just written does to the model's next words, measured on its own document.

At a few places the blocks that have just been read are laid into two small caches, one as the model left them and one
as they come back from the codec, behind the opening and without what lies between, which is how a question gets them.
Then both are shown the next tokens. As far as the two next-token distributions are apart, so far is the memory from
the exact one there.

The places are the same for every document, so that one that grew keeps the figures of what it had. They are measured
before the last of their blocks is the file's, and kept beside it: a killed build goes on with those of all it holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minimemo.engine.engine import Engine
from minimemo.engine.reading import Reading
from minimemo.files import parse_json, write_whole
from minimemo.memo.manifest import Judged, checksum
from minimemo.memory.blocks import BLOCK_TOKENS, BlockAssembler, KVBlock, chain, token_array
from minimemo.memory.codec import Codec
from minimemo.memory.tail import ExactTail

CONTEXT, JUDGED = 4, 64  # blocks before the judged tokens; judged tokens
FIRST, APART = 1024, 4  # tokens before the first place; how many times as many before each next one
_ROWS = 16  # of logits at a time: a vocabulary is long


def places(tokens: int) -> list[int]:
    """After how many of a memory's tokens is judged; in one too short for any, before its end."""
    ends, end = [], FIRST
    while end + JUDGED <= tokens:
        ends.append(end)
        end *= APART
    return ends or [max(tokens - JUDGED, tokens // 2)]


class QualityCard:
    """Figures of one memory, place by place, kept in a file between the lives of its build.

    sequence: (n,) ids of the whole memory, `opening` of them before the document.
    """

    def __init__(self, path: Path, sequence: np.ndarray, opening: int, codec: Codec, engine: Engine) -> None:
        self._path = path
        self._sequence, self._opening = sequence, opening
        self._codec, self._engine = codec, engine
        self._judged = {judged.end: judged for judged in _load(path)}

    @property
    def judged(self) -> tuple[Judged, ...]:
        """In the order of the places."""
        return tuple(self._judged[end] for end in places(len(self._sequence)) if end in self._judged)

    def adopt(self, judged: Iterable[Judged], blocks: int) -> None:
        """Takes over what was measured on the first `blocks` blocks of an earlier memory."""
        self._judged |= {old.end: old for old in judged if old.end <= blocks * BLOCK_TOKENS}
        self._save()

    def look(self, block: KVBlock, tail: ExactTail) -> None:
        """Measures what is to be measured at a block; `tail` holds the full ones before it."""
        for end in places(len(self._sequence)):
            if end not in self._judged and block.start < end <= block.start + block.tokens:
                blocks = [self._kept(index, tail) for index in self._needed(end) if index * BLOCK_TOKENS < block.start]
                self._measure([*filter(None, blocks), block], end)

    def measure_again(self, reading: Reading) -> None:
        """Reads the beginning of the document once more: for a memory of which no figure is known."""
        end = places(len(self._sequence))[0]
        assembler, blocks = BlockAssembler(), []
        for piece in reading.read(self._sequence[: end + JUDGED].tolist()):
            blocks += assembler.push(piece.ids, piece.keys, piece.values)
        if (rest := assembler.finish()) is not None:
            blocks.append(rest)
        self._measure([blocks[index] for index in self._needed(end)], end)

    def _needed(self, end: int) -> list[int]:
        """Numbers of the blocks with the opening and with the context that ends there."""
        opening = range(-(-self._opening // BLOCK_TOKENS))
        return sorted({*opening, *range(self._start(end) // BLOCK_TOKENS, -(-end // BLOCK_TOKENS))})

    def _start(self, end: int) -> int:
        """The first token of the context that ends there, the first of a block."""
        room = (self._engine.config.max_context - self._opening - JUDGED) // BLOCK_TOKENS
        return max(0, -(-end // BLOCK_TOKENS) - max(1, min(CONTEXT, room))) * BLOCK_TOKENS

    def _kept(self, index: int, tail: ExactTail) -> KVBlock | None:
        hash_ = chain(self._sequence, index + 1)[index]
        if (numbers := tail.get(index, hash_)) is None:
            return None
        start, device = index * BLOCK_TOKENS, self._engine.decoder.device
        keys, values = (x.to(device) for x in numbers)
        return KVBlock(start, token_array(self._sequence[start : start + BLOCK_TOKENS]), keys, values, hash_)

    @torch.inference_mode()
    def _measure(self, blocks: Sequence[KVBlock], end: int) -> None:
        """Nothing, where a block is missing."""
        if [block.start // BLOCK_TOKENS for block in blocks] != self._needed(end):
            return
        engine, start = self._engine, self._start(end)
        exact, stored = (engine.new_cache(self._opening + end - start + JUDGED) for _ in range(2))
        for block in blocks:
            following = len(self._sequence) - block.start - block.tokens
            coded = self._codec.encode(block, following)
            back = self._codec.decode(coded, block.tokens, engine.decoder.device)
            last = (end if block.start >= start else self._opening) - block.start
            for cache, kv in ((exact, (block.keys, block.values)), (stored, back)):
                keys, values = (x[:, :, : max(0, last)].to(cache.keys.device) for x in kv)
                engine.append(cache, keys, values)
        ids = self._sequence[end : end + JUDGED].tolist()
        divergence, same = _compared(*(engine.logits(cache, ids) for cache in (exact, stored)))
        self._judged[end] = Judged(end, len(ids), float(f"{divergence:.3g}"), round(same, 4))
        self._save()

    def _save(self) -> None:
        body = {"judged": [asdict(judged) for judged in self.judged]}
        write_whole(self._path, json.dumps({**body, "checksum": checksum(body)}).encode())


def _load(path: Path) -> list[Judged]:
    """What `_save` wrote; nothing of a file that is not whole."""
    try:
        body = parse_json(path.read_text(encoding="utf-8"))
        if body.pop("checksum") == checksum(body):
            return [Judged(**judged) for judged in body["judged"]]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        pass
    return []


def _compared(exact: Tensor, stored: Tensor) -> tuple[float, float]:
    """Mean KL(exact || stored) in nats, and share of equal first choices, of logits (n, V) each."""
    divergence = 0.0
    for p, q in zip(exact.split(_ROWS), stored.split(_ROWS), strict=True):
        p, q = p.log_softmax(-1), q.log_softmax(-1)
        divergence += float((p.exp() * (p - q)).sum(-1).clamp_min(0).sum())
    same = (exact.argmax(-1) == stored.argmax(-1)).float().mean()
    return divergence / len(exact), float(same)
