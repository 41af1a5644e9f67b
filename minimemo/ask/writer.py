"""Prompts become token ids, and token ids pieces of text: what writes answers, over a memory or from whole prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, Protocol

from minimemo.ask.clues import is_looping, is_refusal
from minimemo.events import Event, Listener, silent

if TYPE_CHECKING:
    from minimemo.ask.prompts import Prompts
    from minimemo.engine.cache import KVCache
    from minimemo.engine.engine import Engine
    from minimemo.models.tokenizer import Tokenizer

CHECK_TOKENS = 64  # Asking whether the passages state an answer takes about so many more than the answer's prompt.
SMALL = 10**9  # parameters
KEPT_ROOM = 512  # Behind a document that is kept in a cache there is room for a question, a reply and a check.
LOOP_CHECK = 16  # A reply is looked at for a loop every so many tokens: the look costs about a millisecond.


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of an answer's text; all of them joined are the text."""

    text: str


class Written(NamedTuple):
    """A whole answer, the tokens of the prompt that it was written from, and its own."""

    text: str
    prompt_tokens: int
    tokens: int


class Weighed(NamedTuple):
    """What a writer says of an answer to a prompt with passages, in log-probabilities.

    likely: of the whole answer, its end included. refusal: of saying instead that nothing answers. stated: of "yes"
    less that of "no", asked whether the passages state that answer.
    """

    likely: float
    refusal: float
    stated: float


class TextGenerator(Protocol):
    """Writes answers from prompts that stand alone. It may be another model than the memory's, on another machine."""

    @property
    def max_context(self) -> int:
        """Tokens of a prompt and its answer together, at most."""

    def count(self, text: str) -> int:
        """Counts the tokens of a text."""

    def prompt_tokens(self, system: str, text: str) -> int:
        """Counts the tokens of a prompt with all that stands around it."""

    def write(
        self, system: str, text: str, max_tokens: int, on_event: Listener, min_tokens: int = 0
    ) -> Generator[Piece, None, Written]:
        """Yields the answer in pieces, no white space around the whole; reports stage "answer" in tokens. What cannot
        hold a model to `min_tokens` leaves it alone."""


def pieces(
    texts: Iterable[tuple[str, int]], max_tokens: int, on_event: Listener = silent
) -> Generator[Piece, None, tuple[str, int]]:
    """Yields a reply that comes as `texts`, each with the tokens that it took, in pieces without white space around the
    whole; returns the text and its token count. Ends early when the reply loops."""
    reply = held = ""  # white space is held until more text follows
    count = 0
    for text, tokens in texts:
        count += tokens
        if tokens:
            on_event(Event("answer", count, max_tokens, "tok"))
        text = held + text if reply else text.lstrip()
        body = text.rstrip()
        held = text[len(body) :]
        reply += body
        if body:
            yield Piece(body)
        if count % LOOP_CHECK == 0 and is_looping(reply):
            break
    on_event(Event("answer", count, count, "tok"))
    return reply, count


class Writer:
    """Speaks to one model that runs here, through its chat template where it has one: a TextGenerator, and what asks a
    memory of that model. engine: the model, or what loads it when it is first asked."""

    def __init__(self, engine: Engine | Callable[[], Engine], tokenizer: Tokenizer) -> None:
        self._engine = engine
        self._loading = Lock()
        self._kept: tuple[list[int], KVCache | None] = ([], None)
        self.tokenizer = tokenizer

    @property
    def engine(self) -> Engine:
        with self._loading:
            if callable(self._engine):
                self._engine = self._engine()
            return self._engine

    @property
    def prefilled_here(self) -> int:
        """What this thread has prefilled so far."""
        return 0 if callable(self._engine) else self._engine.prefilled_here

    @property
    def max_context(self) -> int:
        return self.engine.config.max_context

    @property
    def is_small(self) -> bool:
        """Whether the model has less than SMALL parameters, about: layers of twelve widths squared, and embeddings."""
        c = self.engine.config
        return c.num_layers * 12 * c.hidden_size**2 + c.vocab_size * c.hidden_size < SMALL

    def count(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def prompt_tokens(self, system: str, text: str) -> int:
        return len(self.turn(system, text))

    def write(
        self, system: str, text: str, max_tokens: int, on_event: Listener, min_tokens: int = 0
    ) -> Generator[Piece, None, Written]:
        """Writes from a fresh cache of just the prompt's and the answer's size."""
        ids = self.turn(system, text)
        tokens = self.tokens(self.engine.new_cache(len(ids) + max_tokens), ids, max_tokens, min_tokens, source=())
        reply, count = yield from pieces(self.texts(tokens), max_tokens, on_event)
        return Written(reply, len(ids), count)

    def answer(
        self,
        prompts: Prompts,
        prompt: str,
        check: Callable[[str], str],
        max_tokens: int,
        on_event: Listener,
        told: tuple[str, KVCache] | None = None,
        beginning: str = "",
    ) -> tuple[Written, Weighed]:
        """Writes a whole answer from passages and weighs it, or weighs the one that is `told`, with the cache that the
        prompt is in; check: writes the prompt that asks whether the passages state it. What the prompts begin with in
        common, the passages, is read once; beginning: see `_begun`."""
        stop, yes_no, reply = self.tokenizer.stop_ids, self._first(prompts), list[int]()
        begun, ids = self._begun(prompts.system, prompt, beginning)
        given, cache = told if told and told[0] else ("", self._lent(begun, len(ids) + max_tokens + CHECK_TOKENS))

        def noted(tokens: Iterable[int]) -> Iterator[int]:
            for token in tokens:
                reply.append(token)
                yield token

        following = self.tokens(cache, ids[cache.length :], max_tokens, source=begun)
        tokens = self.tokenizer.encode(given)[:max_tokens] if given else following
        text = "".join(piece.text for piece in pieces(self.texts(noted(tokens)), max_tokens, on_event))
        refusal = self.tokenizer.encode(prompts.not_found)
        likely, refused = self._likely(cache, ids[: cache.length], ids, [reply, refusal], stop)
        _, checked = self._begun(prompts.system, check(text), beginning)
        yes, no = self._likely(cache, ids[: cache.length], checked, yes_no, ())
        self._keep(begun, cache)
        return Written(text, len(ids), len(reply)), Weighed(likely, refused, yes - no)

    def decide(self, prompts: Prompts, prompt: str, blank: str) -> tuple[float, int]:
        """Gives the log-odds of "yes" to a prompt with passages, less those to the same prompt without them (`blank`),
        and the tokens of the prompt.

        A small model has a favourite of the two whatever it reads: contextual calibration (Zhao et al., 2021,
        arXiv:2102.09690).
        """
        odds = []
        for ids in (self.turn(prompts.system, text) for text in (prompt, blank)):
            yes, no = self._likely(self.engine.new_cache(len(ids)), [], ids, self._first(prompts), ())
            odds.append(yes - no)
        return odds[0] - odds[1], self.prompt_tokens(prompts.system, prompt)

    def _begun(self, system: str, text: str, beginning: str) -> tuple[list[int], list[int]]:
        """Encodes a turn; gives what it begins with up to the end of `beginning`, and all of it. What begins so is read
        by itself, and kept: the next question on the same document goes on from there, with the same bits."""
        if not (beginning and text.startswith(beginning)):
            return [], self.turn(system, text)
        opening, _ = self.tokenizer.turn(system or None)
        begun, rest = (
            [*opening, *self.tokenizer.encode(beginning)],
            self.turn(system, text[len(beginning) :], begun=True),
        )
        return (begun, [*begun, *rest]) if rest else ([], begun)

    def _lent(self, begun: list[int], room: int) -> KVCache:
        """A cache for `room` tokens that holds those of `begun`: the one that is kept, if it does and nobody has it."""
        if not begun:
            return self.engine.new_cache(room)
        with self._loading:
            (ids, kept), self._kept = self._kept, ([], None)
        if kept is not None and ids == begun and kept.capacity >= room:
            return kept
        del kept
        cache = self.engine.new_cache(max(room, len(begun) + KEPT_ROOM))
        self.engine.extend(cache, begun)
        return cache

    def _keep(self, begun: list[int], cache: KVCache) -> None:
        """Keeps a cache for the next prompt that begins so; not a far larger one, nor what another prompt cut."""
        if begun and cache.length >= len(begun) and cache.capacity <= len(begun) + 2 * KEPT_ROOM:
            cache.truncate(len(begun))
            with self._loading:
                self._kept = begun, cache

    def _likely(
        self, cache: KVCache, read: Sequence[int], ids: list[int], replies: list[list[int]], stop: Collection[int]
    ) -> list[float]:
        """Likelihoods of replies to a prompt; what it begins with in common with the tokens `read`, those in the cache,
        is not read again."""
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(read, ids[:-1], strict=False)))
        if len(ids) > cache.capacity:
            cache, same = self.engine.new_cache(len(ids)), 0
        cache.truncate(same)
        return self.engine.likelihoods(cache, ids[same:], replies, stop)

    def _first(self, prompts: Prompts) -> list[list[int]]:
        return [self.tokenizer.encode(word)[:1] for word in (prompts.yes, prompts.no)]

    def turn(self, system: str, text: str, begun: bool = False) -> list[int]:
        """Encodes a prompt that is a turn of its own, or ends the one that a memory has `begun`; a reply comes next."""
        opening, closing = self.tokenizer.turn(system or None)
        return [*([] if begun else opening), *self.tokenizer.encode(text), *closing]

    def tokens(
        self,
        cache: KVCache,
        ids: Sequence[int],
        max_tokens: int,
        min_tokens: int = 0,
        source: Sequence[int] | None = None,
    ) -> Iterator[int]:
        """Yields the tokens that follow `ids`, as they come; the cache grows with them. A reply that ends before
        min_tokens is held to go on in its line, but for one that says that there is nothing to say. source: see
        `Engine.generate`."""
        stop = self.tokenizer.stop_ids
        reply: list[int] = []
        for token in self.engine.generate(cache, ids, max_tokens=max_tokens, stop=stop, source=source):
            reply.append(token)
            yield token
        missing = min(min_tokens, max_tokens) - len(reply)
        if reply and missing > 0 and not is_refusal(self.tokenizer.decode(reply)):
            cache.truncate(cache.length - 1)
            left, breaks = max_tokens - len(reply), self.tokenizer.break_ids
            more = None if source is None else [*source, *ids, *reply[:-1]]
            yield from self.engine.generate(
                cache, reply[-1:], max_tokens=left, min_tokens=missing, stop=stop, breaks=breaks, source=more
            )

    def texts(self, tokens: Iterable[int]) -> Iterator[tuple[str, int]]:
        """Yields the text of each token, and what is left of the last one, see `pieces`. A base model, which does not
        know how to stop, ends with its first line."""
        stream, begun = self.tokenizer.stream(), False
        for token in tokens:
            text = stream.push(token)
            line = text if begun else text.lstrip()
            if "\n" in line and not self.tokenizer.has_chat_template:
                yield line.split("\n", 1)[0], 1
                return
            yield text, 1
            begun = begun or bool(line)
        yield stream.flush(), 0
