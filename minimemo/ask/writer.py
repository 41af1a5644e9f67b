"""Prompts to token ids, token ids back to pieces of text; and what writes an answer from a prompt that stands alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from minimemo.ask.answer import is_refusal
from minimemo.ask.clues import is_looping
from minimemo.events import Event, Listener, silent

if TYPE_CHECKING:
    from minimemo.engine.cache import KVCache
    from minimemo.engine.engine import Engine
    from minimemo.models.tokenizer import Tokenizer

LOOP_CHECK = 16  # tokens between two looks for a loop: the look costs about a millisecond


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of an answer's text; all of them joined are the text."""

    text: str


class Written(NamedTuple):
    """A whole answer, and what it took."""

    text: str
    prompt_tokens: int
    tokens: int


class TextGenerator(Protocol):
    """Writes answers from prompts that stand alone. It may be another model than the memory's, on another machine."""

    @property
    def max_context(self) -> int:
        """Tokens of a prompt and its answer together, at most."""

    def count(self, text: str) -> int:
        """Tokens of a text."""

    def prompt_tokens(self, system: str, text: str) -> int:
        """Tokens of a prompt with all that stands around it."""

    def write(
        self, system: str, text: str, max_tokens: int, on_event: Listener, min_tokens: int = 0
    ) -> Generator[Piece, None, Written]:
        """Yields the answer in pieces, no white space around the whole; reports stage "answer" in tokens. What cannot
        hold a model to `min_tokens` leaves it alone."""


class GrowingText:
    """A reply as it comes. `text`: what was given out of it, no white space around the whole."""

    def __init__(self) -> None:
        self.text = ""
        self._held = ""  # white space, given out only when more text follows

    def push(self, new: str) -> str:
        """What to give out now; "" while it is white space."""
        new = self._held + new
        new = new if self.text else new.lstrip()
        body = new.rstrip()
        self._held = new[len(body) :]
        self.text += body
        return body


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
        """One reply a row, all over the same memory, see `Engine.generate_batch`."""
        stop = self._tokenizer.stop_ids
        replies = self._engine.generate_batch(memory, rows, max_tokens=max_tokens, stop=stop)
        return [self._tokenizer.decode(ids) for ids in replies]

    def tokens(self, cache: KVCache, ids: Sequence[int], max_tokens: int, min_tokens: int = 0) -> Iterator[int]:
        """The tokens that follow `ids`, as they come; the cache grows with them. A reply that ends before min_tokens
        is held to go on in its line, but for one that says that there is nothing to say."""
        stop = self._tokenizer.stop_ids
        told: list[int] = []
        for token in self._engine.generate(cache, ids, max_tokens=max_tokens, stop=stop):
            told.append(token)
            yield token
        missing = min(min_tokens, max_tokens) - len(told)
        if told and missing > 0 and not is_refusal(self._tokenizer.decode(told)):
            cache.truncate(cache.length - 1)
            left, breaks = max_tokens - len(told), self._tokenizer.break_ids
            yield from self._engine.generate(
                cache, told[-1:], max_tokens=left, min_tokens=missing, stop=stop, breaks=breaks
            )

    def whole_reply(self, cache: KVCache, ids: Sequence[int], max_tokens: int, min_tokens: int = 0) -> str:
        """The reply to `ids`, as `pieces` gives it but all at once; the cache grows with it."""
        return "".join(piece.text for piece in self.pieces(self.tokens(cache, ids, max_tokens, min_tokens), max_tokens))

    def text(self, ids: Sequence[int]) -> str:
        """What tokens say."""
        return self._tokenizer.decode(ids)

    def likelihoods(self, cache: KVCache, ids: Sequence[int], replies: Sequence[Sequence[int]]) -> list[float]:
        """Of each reply to `ids`, see `Engine.likelihoods`."""
        return self._engine.likelihoods(cache, ids, replies, self._tokenizer.stop_ids)

    def reply(
        self,
        cache: Callable[[], KVCache],
        ids: Sequence[int],
        max_tokens: int,
        on_event: Listener,
        min_tokens: int = 0,
    ) -> Generator[Piece, None, tuple[str, int]]:
        """Yields the reply to `ids` in pieces; returns its text and token count.

        `cache` is asked again after every piece, and raises when the cache is no longer ours to write to.
        """
        tokens = self.tokens(cache(), ids, max_tokens, min_tokens)
        return (yield from self.pieces(tokens, max_tokens, on_event, cache))

    def pieces(
        self,
        tokens: Iterable[int],
        max_tokens: int,
        on_event: Listener = silent,
        check: Callable[[], object] = lambda: None,
    ) -> Generator[Piece, None, tuple[str, int]]:
        """Yields a reply's text in pieces, no white space around the whole; returns it and its token count.

        Ends early when the reply loops. A base model, which does not know how to stop, ends with its first line.
        `check` is called after every piece.
        """
        stream = self._tokenizer.stream()
        one_line = not self._tokenizer.has_chat_template
        reply = GrowingText()
        count = 0
        ended = False
        for token in tokens:
            count += 1
            on_event(Event("answer", count, max_tokens, "tok"))
            new = stream.push(token)
            if one_line and "\n" in (line := new if reply.text else new.lstrip()):
                new, ended = line.split("\n", 1)[0], True
            if body := reply.push(new):
                yield Piece(body)
                check()
            ended = ended or (count % LOOP_CHECK == 0 and is_looping(reply.text))
            if ended:
                break
        if not ended and (body := reply.push(stream.flush())):
            yield Piece(body)
        on_event(Event("answer", count, count, "tok"))
        return reply.text, count


class LocalGenerator:
    """A model that runs here, from a fresh cache of just a prompt's size."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self._engine = engine
        self._writer = Writer(engine, tokenizer)

    @property
    def max_context(self) -> int:
        return self._engine.config.max_context

    def count(self, text: str) -> int:
        return self._writer.count(text)

    def prompt_tokens(self, system: str, text: str) -> int:
        return len(self._writer.whole_turn(system, text))

    def write(
        self, system: str, text: str, max_tokens: int, on_event: Listener, min_tokens: int = 0
    ) -> Generator[Piece, None, Written]:
        ids = self._writer.whole_turn(system, text)
        fresh = self._engine.new_cache(len(ids) + max_tokens)
        reply, count = yield from self._writer.reply(lambda: fresh, ids, max_tokens, on_event, min_tokens)
        return Written(reply, len(ids), count)
