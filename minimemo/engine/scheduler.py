"""One model, many threads: passes in the order of their coming, and steps of several replies together in one pass.

A step of one row reads all weights for one token; a step of eight reads them once as well. So threads that decode at
the same time post their rows, and whichever of them gets the model first takes all that are there along: continuous
batching (Orca, OSDI 2022) with a leader among the callers in place of a thread of its own. A reply that begins joins at
the next step, one that nobody goes on with posts no rows and so stops nobody.

A step may bring drafts along, guesses at the tokens after its own (lookup.py): where it is the only one, they are rows
of the pass as well, and their logits stand ready if the guess was right. Among others they would make those wait, but
where a row more costs less than it saves, as in tiles.

Rule of this file: it knows no weights; what a pass computes it is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition, get_ident
from time import monotonic

from torch import Tensor

from minimemo.engine.cache import KVCache
from minimemo.threads import check_fork

MOST_ROWS = 16  # of one step; with more, packed products round their inputs otherwise (models/layers.py: FEW_ROWS)
DRAFT_ROWS = 4  # of one reply: its next token and three drafts; see docs/decisions/20
# Seconds that a step waits for rows that were in the last one. Their threads choose and decode a token in between,
# which takes under a millisecond; who reads slowly is waited for once, and joins a later step.
PATIENCE = 0.004

Pass = Callable[[Sequence["Step"]], Tensor]  # runs steps of one kind; logits (tokens, V), step by step


class Step:
    """The next token of one reply, which stands in `cache`, drafts of those that may follow, and what the model makes
    of them: a row of logits each."""

    __slots__ = ("cache", "error", "kind", "logits", "thread", "tokens")

    def __init__(self, tokens: Sequence[int], cache: KVCache, kind: str) -> None:
        self.tokens = tokens  # of which a pass may leave the last ones out
        self.cache = cache
        self.kind = kind  # of logits, see Decoder.forward
        self.thread = get_ident()
        self.logits: Tensor | None = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.logits is not None or self.error is not None


class Scheduler:
    """Gives the model to one thread at a time, first come first served, and batches steps.

    together: whether a row's numbers are the same alone and among others; where they are not, each step is a pass.
    cheap: whether drafts are checked among other replies too. drafts: how many rows a reply has at most, with drafts;
    1: none are checked. steps, rows: running counts of passes that were steps, and of the replies in them, for anyone
    who wants to know how full they were.
    """

    def __init__(self, run: Pass, together: bool, cheap: bool = False) -> None:
        self.steps = 0
        self.rows = 0
        self.drafts = DRAFT_ROWS if together else 1
        self.cheap = cheap
        self._run = run
        self._most = MOST_ROWS if together else 1
        self._changed = Condition()
        self._line: deque[object] = deque()  # who has the model stands first
        self._owner = 0
        self._depth = 0
        self._posted: list[Step] = []
        self._leading = False
        self._expected: set[int] = set()  # threads whose rows were in the last step and may come again

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits for the model and keeps it; the same thread may enter again. Raises MinimemoError after a fork."""
        check_fork()
        with self._changed:
            if self._owner == get_ident() and self._depth:
                self._depth += 1
            else:
                self._enter()
        try:
            yield
        finally:
            with self._changed:
                self._depth -= 1
                if not self._depth:
                    self._owner = 0
                    self._line.popleft()
                    self._changed.notify_all()

    def _enter(self) -> None:
        ticket = object()
        self._line.append(ticket)
        try:
            while self._line[0] is not ticket:
                self._changed.wait()
        except BaseException:
            self._line.remove(ticket)
            self._changed.notify_all()
            raise
        self._owner, self._depth = get_ident(), 1

    def step(self, tokens: Sequence[int], cache: KVCache, kind: str) -> Tensor:
        """Runs the next token of a reply, together with those of other threads; logits (n, V) after it and after the
        first n - 1 of its drafts, the tokens after the first. The cache is longer by the first alone; keys and values
        of the drafts with logits lie behind its end, for `advance`."""
        check_fork()
        step = Step(tokens, cache, kind)
        with self._changed:
            mine = self._owner == get_ident() and self._depth > 0
        if mine or self._most == 1:
            self._lead([step])
        else:
            self._join(step)
        if step.error is not None:
            raise step.error
        assert step.logits is not None
        return step.logits

    def leave(self) -> None:
        """Tells that this thread's reply is at its end: the next step need not wait for it."""
        with self._changed:
            self._expected.discard(get_ident())
            self._changed.notify_all()

    def _join(self, step: Step) -> None:
        """Posts a step, and leads the next pass where nobody does."""
        with self._changed:
            self._posted.append(step)
            self._expected.discard(get_ident())
            self._changed.notify_all()
            while self._leading and not step.done:
                self._changed.wait()
            if step.done:
                return
            self._leading = True
            until = monotonic() + PATIENCE
            while self._expected and (left := until - monotonic()) > 0:
                self._changed.wait(left)
            self._expected.clear()
        try:
            with self.alone():
                with self._changed:
                    others = [other for other in self._posted if other is not step and other.kind == step.kind]
                    taken = [step, *others][: self._most]
                    self._posted = [other for other in self._posted if other not in taken]
                self._lead(taken)
            with self._changed:
                self._expected = {one.thread for one in taken}
        except BaseException:
            with self._changed:
                self._posted = [s for s in self._posted if s is not step]
            raise
        finally:
            with self._changed:
                self._leading = False
                self._changed.notify_all()

    def _lead(self, steps: Sequence[Step]) -> None:
        """Runs steps in one pass and gives each its logits. Where they fail together each is run alone, so that one
        whose cache is full fails by itself."""
        with self.alone():
            try:
                spare = self._most - len(steps) if self.cheap or len(steps) == 1 else 0
                for step in steps:
                    step.tokens = step.tokens[: 1 + spare]
                    spare -= len(step.tokens) - 1
                logits = self._run(steps)
                self.steps += 1
                self.rows += len(steps)
                for step, rows in zip(steps, logits.split([len(step.tokens) for step in steps]), strict=True):
                    step.logits = rows
            except Exception as error:
                if len(steps) == 1:
                    steps[0].error = error
                else:
                    for step in steps:
                        self._lead([step])
