"""Prompts to token ids, token ids back to pieces of text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minimemo.events import Event, Listener
from minimemo.loop.clues import is_looping

if TYPE_CHECKING:
    from minimemo.engine.cache import KVCache
    from minimemo.engine.engine import Engine
    from minimemo.models.tokenizer import Tokenizer

_LOOP_CHECK = 16  # tokens between two looks for a loop: the look costs about a millisecond


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of an answer's text; all of them joined are the text."""

    text: str


class Writer:
    """Speaks to one model, through its chat template where it has one."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self._engine = engine
        self._tokenizer = tokenizer

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text))

    def whole_turn(self, system: str, text: str) -> list[int]:
        """Ids of a prompt that stands alone; the model's reply comes next."""
        opening, closing = self._tokenizer.turn(system or None)
        return [*opening, *self._tokenizer.encode(text), *closing]

    def end_of_turn(self, system: str, text: str) -> list[int]:
        """Ids that end the turn which a memory began."""
        _, closing = self._tokenizer.turn(system or None)
        return [*self._tokenizer.encode(text), *closing]

    def reply_batch(self, memory: KVCache, rows: Sequence[Sequence[int]], max_tokens: int) -> list[str]:
        """One reply a row, all over the same memory, which stays as it is."""
        stop = self._tokenizer.stop_ids
        replies = self._engine.generate_batch(memory, rows, max_tokens=max_tokens, stop=stop)
        return [self._tokenizer.decode(ids) for ids in replies]

    def reply(
        self, cache: Callable[[], KVCache], ids: Sequence[int], max_tokens: int, on_event: Listener
    ) -> Generator[Piece, None, tuple[str, int]]:
        """Yields the reply to `ids` in pieces, no white space around the whole; returns its text and token count.

        Ends early when the reply loops. A base model, which does not know how to stop, ends with its first line.
        `cache` is asked again after every piece, and raises when the cache is no longer ours to write to.
        """
        tokens = self._engine.generate(cache(), ids, max_tokens=max_tokens, stop=self._tokenizer.stop_ids)
        stream = self._tokenizer.stream()
        one_line = not self._tokenizer.has_chat_template
        text = held = ""  # held: white space, written only when more text follows
        count = 0
        ended = False
        for token in tokens:
            count += 1
            on_event(Event("answer", count, max_tokens, "tok"))
            new = held + stream.push(token)
            new = new if text else new.lstrip()
            if one_line and "\n" in new:
                new, ended = new.split("\n", 1)[0], True
            body = new.rstrip()
            held = new[len(body) :]
            if body:
                text += body
                yield Piece(body)
                cache()
            ended = ended or (count % _LOOP_CHECK == 0 and is_looping(text))
            if ended:
                break
        rest = "" if ended else (held + stream.flush()).rstrip()
        rest = rest if text else rest.lstrip()
        if rest:
            text += rest
            yield Piece(rest)
        on_event(Event("answer", count, count, "tok"))
        return text, count
