"""Two answers to one question, from passages and from memory: the one that both find likely.

Either source misleads a small model in its own way: passages that do not hold the answer, a memory that is seen as a
whole. An answer is weighed by its log-probability given each source, as sequences are in retrieval-augmented
generation (Lewis et al., arXiv:2005.11401, section 2.1). The mean a token in its place does worse (LOG.md).
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import chain, islice
from typing import TYPE_CHECKING

from minimemo.ask.recollection import Recollection
from minimemo.ask.run import Run, Settings
from minimemo.ask.writer import Piece, Writer, Written

if TYPE_CHECKING:
    from minimemo.engine.engine import Engine


class Agreement:
    """Writes answers that passages and memory agree on, with the memory's own model."""

    def __init__(self, engine: Engine, writer: Writer, recollection: Recollection, settings: Settings) -> None:
        self._engine = engine
        self._writer = writer
        self._recollection = recollection
        self._settings = settings

    def write(self, run: Run, system: str, text: str) -> Generator[Piece, None, Written]:
        """Yields the answer in pieces. Nothing is given out before both answers are whole; one from passages that is
        longer than `agreed_tokens` streams on from there, and the memory's is not asked for."""
        limit = self._settings.agreed_tokens
        ids = self._writer.whole_turn(system, text)
        fresh = self._engine.new_cache(len(ids) + run.max_tokens)
        tokens = self._writer.tokens(fresh, ids, run.max_tokens)
        with run.meter.stage("answer", report=False):
            told = list(islice(tokens, limit + 1))
        if len(told) <= limit:
            recalled, by_memory = self._recollection.weigh(run, told, min(limit, run.max_tokens))
            if by_memory:
                fresh.truncate(len(ids) - 1)
                by_passages = self._writer.likelihoods(fresh, ids[-1:], [told, recalled])
                first, second = (
                    one + self._settings.memory_weight * two for one, two in zip(by_passages, by_memory, strict=True)
                )
                told = recalled if second > first else told
        with run.meter.stage("answer", report=False):
            reply, count = yield from self._writer.pieces(chain(told, tokens), run.max_tokens, run.meter.on_event)
        return Written(reply, len(ids), count)
